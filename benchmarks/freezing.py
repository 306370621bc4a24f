"""How many labels before I unfreeze? Four ways to fine-tune, from one label a class to all, on a near and a far target, and what each forgets and costs.

    python -m benchmarks.freezing --minutes 20

A quarter of an hour on two cores; it goes on where it was stopped. The table goes to nbs/results/freezing.json, and lesson 12 draws it."""
import argparse
import json
import re
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from ftlearn.adaptation.freezing import PartialFreezing
from ftlearn.core import generator, in_parallel
from ftlearn.data import HELD_OUT_FONTS, MARK, Rows, Split, Task, _words_and_tags, _write, docstrings, fonts, has_letter, load_task, prose
from ftlearn.training import encoded, evaluate
from ftlearn.transfer.model import FullFineTuning, LinearProbe, TransferModel, finetune, measure_of

from .parts import PRACTICE, write_table
from .strategies import letters, reader

import torchvision.transforms.functional as V      # last: ftlearn.core must have mended torchvision, where it does not fit its torch

TABLE = Path(__file__).parents[1]/"nbs"/"results"/"freezing.json"
LRS = (3e-4, 1e-3, 3e-3)
ALL = "all"
BUDGETS = {"digits": (1, 2, 5, 10, 30, ALL), "letters": (1, 2, 5, 10, 30), "docs-entities": (20, 80, 320)}
SEEDS = range(5)
BACKBONES = {"digits": "glyph-cnn", "letters": "glyph-cnn", "docs-entities": "docs-encoder"}
OTHER_PACKAGES = ("PIL", "dateutil", "filelock", "fontTools", "jinja2", "mpmath", "packaging")      # what the packages of the corpus require
NEAR_LETTERS = 40


class Probed(FullFineTuning):
    "The head first, then everything (LP-FT, Kumar et al. 2022)."


METHODS = {"head": [LinearProbe(head_lr=lr) for lr in (1e-3, 3e-3, 1e-2)], "last two blocks": [PartialFreezing(2, lr=lr) for lr in LRS],
           "everything": [FullFineTuning(lr=lr) for lr in LRS], "head, then everything": [Probed(lr=lr, head_lr=1e-3) for lr in LRS]}


# --- Targets -----------------------------------------------------------------------------------------------------------


@cache
def target(name: str) -> Task: return near_letters() if name == "letters" else load_task(name)


def near_letters() -> Task:
    "Letters that the network was pretrained on, in fonts that it has never seen."
    unseen = [fonts()[name] for names in HELD_OUT_FONTS.values() for name in names]
    known = [letter for letter in letters().label_names if sum(has_letter(font)(letter) for font in unseen) >= 4]
    chosen = known[::len(known) // NEAR_LETTERS][:NEAR_LETTERS]
    def split(part, n): return _write(chosen, unseen, n, generator(0, f"near letters {part}"))
    return Task("letters", split("train", 4000), split("validation", 400), split("test", 1000), chosen)


def changed(images: torch.Tensor) -> dict[str, torch.Tensor]:
    "The same digits, blurred, turned by 30 degrees, and inverted."
    return {"blurred": V.gaussian_blur(images, 3, 1.0), "rotated": V.rotate(images, 30), "inverted": 255 - images}


def other_docstrings() -> Split:
    "Sentences with names of code from packages that are in no part of the corpus; none that the corpus has, too."
    task = target("docs-entities")
    known = {" ".join(words) for split in task.splits.values() for words in split.inputs}
    files = [path for name in OTHER_PACKAGES for path in sorted(Path(find_spec(name).origin).parent.rglob("*.py"))]
    paragraphs = (text for path in files for docstring in docstrings(path) for text in prose(docstring))
    found = dict.fromkeys(s for text in paragraphs for s in re.split(rf"(?<=[.!?:])\s+(?=[{MARK}A-Z\"'(])", text) if MARK in s)
    rows = [row for row in map(_words_and_tags, found) if 5 <= len(row[0]) <= 60 and " ".join(row[0]) not in known]
    return Split(Rows(words for words, _ in rows), Rows(tags for _, tags in rows))


@cache
def shifts(name: str) -> dict[str, Split]:
    "Other test sets of the same labels."
    if name == "digits": return {kind: Split(images, target(name).test.labels) for kind, images in changed(target(name).test.inputs).items()}
    return {"other packages": other_docstrings()} if name == "docs-entities" else {}


# --- One run -----------------------------------------------------------------------------------------------------------


def drawn(name: str, budget, seed: int) -> Task: return target(name) if budget == ALL else target(name).few_shot(budget, seed)


def adapted(name: str, budget, strategy, seed: int):
    "The result of one run; a probe first, if the strategy says so."
    task = drawn(name, budget, seed)
    model = TransferModel.from_pretrained(BACKBONES[name], task, seed=seed)
    options = dict(seed=seed) | (dict(batch_size=16, steps=max(150, len(task.train) // 8)) if name == "docs-entities" else {})
    before = finetune(model, task, LinearProbe(), **options).seconds if isinstance(strategy, Probed) else 0.0
    result = finetune(model, task, strategy, **options)
    return result, before + result.seconds


def quality(name: str, budget, strategy) -> tuple[float, float]:
    "On validation data: accuracy or F1, then the loss."
    found = adapted(name, budget, strategy, PRACTICE)[0].validation
    return found.get("f1", found.get("accuracy")), -found["loss"]


def score(measured: dict) -> float: return round(100 * measured.get("f1", measured.get("accuracy")), 2)


def source_accuracy(model: TransferModel) -> float:
    "How well the source's own head still reads letters from the features, in %."
    return score(evaluate(reader(model.backbone, model.prepare), letters().test))


def run(name: str, budget, strategy, seed: int) -> dict[str, float]:
    "What one run measures on the test split, on other test sets, on the source, and on the clock."
    result, seconds = adapted(name, budget, strategy, seed)
    found = {"test": score(result.test), "seconds": round(seconds, 2)}
    found |= {kind: score(measure_of(result.task)(result.model, split)) for kind, split in shifts(name).items()}
    return found | ({"source": source_accuracy(result.model)} if BACKBONES[name] == "glyph-cnn" else {})


def memory(name: str, strategy) -> float:
    "What a step needs beyond the weights, in MB: gradients, the optimizer's two moments, and the activations that are kept for the backward pass."
    task = drawn(name, 5, 0) if name != "docs-entities" else drawn(name, 80, 0)
    model = TransferModel.from_pretrained(BACKBONES[name], task)
    strategy.prepare(model)
    learning = [w for w in model.parameters() if w.requires_grad]
    split, kept = encoded(model, task.train), {}
    def note(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor
    held = {w.untyped_storage().data_ptr() for w in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor): loss = model(split.__getitems__(list(range(16)))[0]).sum()
    activations = sum(size for pointer, size in kept.items() if pointer not in held)
    return round((activations + 3 * 4 * sum(w.numel() for w in learning)) / 1e6, 2)


# --- The study ---------------------------------------------------------------------------------------------------------


def cell(name: str, method: str, budget) -> dict:
    "Choose the learning rate, then measure every draw."
    candidates = METHODS[method]
    tried = in_parallel(quality, [(name, budget, strategy) for strategy in candidates])
    best = candidates[max(range(len(candidates)), key=tried.__getitem__)]
    runs = in_parallel(run, [(name, budget, best, seed) for seed in SEEDS])
    return {"lr": best.head_lr if isinstance(best, LinearProbe) else best.lr} | {key: [r[key] for r in runs] for key in runs[0]}


def main(minutes: float) -> None:
    found = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    table = {"command": "python -m benchmarks.freezing --minutes 20", "unit": "test accuracy or F1 in %, one value a draw; seconds of a run on one core; MB a step needs beyond the weights",
             "untouched": {}, "memory": {}, "cells": {}} | found
    def write():
        TABLE.parent.mkdir(exist_ok=True)
        write_table(TABLE, table)
    if not table["untouched"]:
        model = TransferModel.from_pretrained("glyph-cnn", target("digits"))
        table["untouched"] = {"source": source_accuracy(model)}
        table["memory"] = {name: {method: memory(name, METHODS[method][0]) for method in METHODS} for name in ("digits", "docs-entities")}
        write()
    end = time.monotonic() + 60 * minutes
    for name, budgets in BUDGETS.items():
        for budget in budgets:
            for method in METHODS:
                cells = table["cells"].setdefault(name, {}).setdefault(method, {})
                if str(budget) in cells: continue
                if time.monotonic() > end: return
                start = time.perf_counter()
                cells[str(budget)] = cell(name, method, budget)
                write()
                measured = cells[str(budget)]
                print(f"{name} {budget} {method}: {sum(measured['test']) / len(measured['test']):.1f} % at {measured['lr']:g}, {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    from benchmarks.freezing import main      # by its own name, so that other processes find the functions that remember their results
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20, help="stop after so many; what is measured stays")
    main(parser.parse_args().minutes)
