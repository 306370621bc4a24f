"""What it saves to compute once what does not change: a linear probe, and networks of which the lower part is frozen.

A training step passes each block forwards and, where it learns, twice as much backwards. With a share f of equal blocks frozen
a step costs f + 3 (1 − f) forward passes, and 3 (1 − f) with the frozen part cached: 4/3 as fast for f = 1/2, twice for f = 3/4.
More is to be had where the lower blocks are the dear ones, as in SqueezeNet, and where images must be decoded."""
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from ftlearn.adaptation.freezing import PartialFreezing, layer_groups
from ftlearn.data import ImageFiles, Split, Task, load_task
from ftlearn.pretraining.autoencoders import Preprocess
from ftlearn.transfer.model import MINILM, Backbone, LinearProbe, TransferModel, feature_width, finetune, remove_head

from .models import glyph_cnn
from .timing import Row, interleaved

FASTER = 8         # times, at least: a linear probe with its features computed once
TWICE = 2          # times, at least: partial freezing with the frozen part cached


def probe() -> Row:
    task, model = load_task("digits"), glyph_cnn()
    steps = 10 * math.ceil(len(task.train) / 32)
    def run(augment): return lambda: finetune(model, task, LinearProbe(), steps=steps, augment=augment)
    # Whatever augments the images, even if it leaves them as they are, sends them through the backbone in every epoch.
    seconds = interleaved({"cached": run(None), "through the backbone": run(lambda images, rng: images)}, rounds=5, warmup=1)
    faster = seconds["through the backbone"] / seconds["cached"]
    return Row("a linear probe, ten epochs, with cached features", f"{faster:.1f} × as fast as through the backbone", f"≥ {FASTER}", faster >= FASTER)


def photographs(folder: Path, n: int = 160, classes: int = 2, size: int = 500) -> Task:
    "JPEG files as large as those of a web page, decoded when they are asked for, as those of a folder of more than a gigabyte are."
    from PIL import Image
    rng = torch.Generator().manual_seed(0)
    for row in range(n):
        noise = torch.rand(3, 24, 24, generator=rng)
        pixels = torch.nn.functional.interpolate(noise[None], (size, size), mode="bicubic")[0].clamp(0, 1)
        Image.fromarray((255 * pixels.permute(1, 2, 0)).to(torch.uint8).numpy()).save(folder/f"{row}.jpg", quality=90)
    split = Split(ImageFiles([folder/f"{row}.jpg" for row in range(n)], 224), torch.arange(n) % classes)
    return Task("photographs", split.select(range(n - 32)), split.select(range(n - 32, n)), split.select(range(n - 32, n)), [str(label) for label in range(classes)])


def squeezenet(task: Task) -> TransferModel:
    import torchvision
    torch.manual_seed(0)
    module, prepare = remove_head(torchvision.models.squeezenet1_1(weights=None)).eval(), Preprocess(224, [0.5] * 3, [0.25] * 3)
    return TransferModel(Backbone("squeezenet1_1", module, feature_width(module, prepare), prepare, True, 1e-4), task.label_names)


def minilm(task: Task) -> TransferModel: return TransferModel.from_pretrained(MINILM, task)


def partly_frozen(what: str, model: TransferModel, task: Task, share: float, promise: float | None = None, rounds: int = 2) -> Row:
    "As many steps as `finetune` makes by default, with a share of the blocks frozen; the cache is filled in the round that is not counted."
    groups = len(layer_groups(model.backbone))
    free = groups - round(share * groups)
    def run(cache): return lambda: finetune(model, task, PartialFreezing(free), cache=cache)
    seconds = interleaved({"plain": run(False), "cached": run(True)}, rounds, warmup=1)
    faster = seconds["plain"] / seconds["cached"]
    return Row(f"{what}, {groups - free} of {groups} blocks frozen, their output cached", f"{faster:.2f} × as fast as not cached",
               f"≥ {promise}" if promise else "", not promise or faster >= promise)


def measure() -> Iterator[Row]:
    yield probe()
    reviews, before = load_task("reviews"), os.environ.get("FTLEARN_CACHE")
    some = replace(reviews, train=reviews.train.select(range(256)), validation=reviews.validation.select(range(64)))
    bert, digits = minilm(some), load_task("digits")
    with tempfile.TemporaryDirectory() as folder:
        photos = photographs(Path(folder))
        os.environ["FTLEARN_CACHE"] = f"{folder}/cache"
        for blocks in (4, 5): yield partly_frozen("SqueezeNet on JPEG files", squeezenet(photos), photos, blocks / 9, TWICE if blocks == 5 else None)       # nine have no half
        yield partly_frozen("MiniLM on reviews", bert, some, 6/7)
        yield partly_frozen("MiniLM on reviews", bert, some, 1/2)
        yield partly_frozen("the glyph CNN on digits", glyph_cnn(), digits, 1/2)
    os.environ.pop("FTLEARN_CACHE") if before is None else os.environ.update(FTLEARN_CACHE=before)


if __name__ == "__main__":
    for row in measure(): print(row, flush=True)
