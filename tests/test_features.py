"""What frozen layers give is kept, and never stale: another weight, pixel or setting makes it anew, and the result is the same as without."""
import json
import os
import warnings

import pytest
import torch
from torch import nn

import ftlearn.transfer.model as module
from ftlearn.adaptation.freezing import FullFineTuning, LinearProbe, OneGroup, PartialFreezing, layer_groups
from ftlearn.data import Affine, ImageFiles, Rows, Split, Task
from ftlearn.pretraining.autoencoders import Preprocess
from ftlearn.training import fit, predict
from ftlearn.transfer.model import (AboveCut, Backbone, TextEncoder, TextPreprocess, TransferModel, cached_features, extract_features, find_cut, finetune, remove_head)

from conftest import changed, patterns, snapshot

QUICK = dict(steps=6, batch_size=8)
WORDS = "the a good bad film plot was is not very dull bright and i it liked slept cried laughed again".split()


# --- Networks of many kinds, tiny ------------------------------------------------------------------------------------


def tokenizer():
    "Whole words, no training needed"
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")


SIZES = dict(vocab_size=40, pad_token_id=0)
CONFIGS = {"Bert": dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32),
           "Roberta": dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32),
           "DistilBert": dict(dim=16, n_layers=4, n_heads=2, hidden_dim=32),
           "ModernBert": dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3),
           "Albert": dict(embedding_size=8, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32),
           "GPT2": dict(n_embd=16, n_layer=4, n_head=2, embd_pdrop=0.0, bos_token_id=2, eos_token_id=3)}


def text_model(name, kind="Sequence", labels=2):
    "A classifier of texts or of words, with random weights that count as pretrained"
    import transformers
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **CONFIGS[name], num_labels=labels)
    encoder = TextEncoder(getattr(transformers, f"{name}For{kind}Classification")(config))
    prepare = TextPreprocess(tokenizer(), 32, by_word=kind == "Token")
    return TransferModel(Backbone(name, encoder, encoder.width, prepare, True, 1e-3, encoder.has_bias), ["O", "B-x"] if kind == "Token" else ["bad", "good"])


def sentences(n, seed):
    "Texts of 2 to 12 words"
    rng = torch.Generator().manual_seed(seed)
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (int(length),), generator=rng)) for length in torch.randint(2, 13, (n,), generator=rng)]


def text_task():
    return Task("texts", *(Split(Rows(sentences(n, n)), torch.arange(n) % 2) for n in (25, 14, 10)), ["bad", "good"], "text-classification")


def tagging_task():
    def split(n):
        texts = [text.split() for text in sentences(n, n)]
        return Split(Rows(texts), Rows([int(word in WORDS[:8]) for word in words] for words in texts))
    return Task("tags", split(25), split(14), split(10), ["O", "B-x"], "token-classification")


def vision_model(name):
    "A classifier of torchvision that counts as pretrained; one that forgets nothing by chance"
    import torchvision
    torch.manual_seed(0)
    options = dict(image_size=32) if name.startswith("vit") else {}
    prepare = Preprocess(32, [0.5] * 3, [0.3] * 3)
    network = remove_head(torchvision.models.get_model(name, weights=None, **options)).eval()
    return TransferModel(Backbone(name, network, network(torch.zeros(2, 3, 32, 32)).shape[1], prepare, True, 1e-4), ["a", "b", "c"])


def train(model, task, strategy, cache, **options):
    "The weights after a few steps; nothing of a dropout's luck is left over from another run"
    return finetune(model, task, strategy, cache=cache, **{**QUICK, **options})


def closest(a, b):
    "The largest difference of two sets of weights, relative to the largest weight; but a softmax does not see the bias of a key, whose gradient is rounding alone"
    return max(((a[name] - b[name]).abs().max() / a[name].abs().max().clamp(min=1e-6)).item() for name in a if a[name].is_floating_point() and not name.endswith(("key.bias", "k_lin.bias")))


# --- The same training, whatever the network ----------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_the_network_of_the_course_trains_as_without(cache, make_model, task, blocks):
    plain, kept = make_model(), make_model()
    a, b = train(plain, task, PartialFreezing(blocks), False), train(kept, task, PartialFreezing(blocks), True)
    assert len(folders(cache)) == 2
    assert closest(snapshot(plain), snapshot(kept)) < 1e-5
    assert a.history.losses == pytest.approx(b.history.losses, rel=1e-4) and a.test["loss"] == pytest.approx(b.test["loss"], rel=1e-4)
    assert a.trained_weights == b.trained_weights


def test_a_network_from_scratch_trains_as_without(cache, make_model, task):
    "Guards against statistics that move on stand-ins instead of on data."
    plain, kept = make_model(pretrained=False), make_model(pretrained=False)
    train(plain, task, PartialFreezing(1), False), train(kept, task, PartialFreezing(1), True)
    assert closest(snapshot(plain), snapshot(kept)) < 1e-4 and list((cache / "features").glob("[!.]*"))


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0", "densenet121", "efficientnet_b0", "vit_b_16"])
def test_torchvision_gives_the_same_from_the_cut(cache, task, name, monkeypatch):
    model = vision_model(name)
    PartialFreezing(len(layer_groups(model.backbone)) // 2).prepare(model)
    cut = find_cut(model, task.train)
    assert cut is not None and cut.skipped
    learner, _, validation = module.above_what_is_frozen(model, task.train, task.validation, cache=True)
    whole, above = predict(model, task.validation), predict(learner, validation)
    assert (whole - above).norm() <= 0.02 * (whole - whole.mean(0)).norm(), "more than bfloat16 could explain"
    monkeypatch.setattr("ftlearn.training.autocast_dtype", lambda device: None)
    learner, _, validation = module.above_what_is_frozen(model, task.train, task.validation, cache=True)
    whole, above = predict(model, task.validation), predict(learner, validation)
    assert (whole - above).norm() <= 1e-4 * (whole - whole.mean(0)).norm()


@pytest.mark.parametrize("kind", ["Sequence", "Token"])
@pytest.mark.parametrize("name", ["Bert", "Roberta", "DistilBert", "ModernBert", "GPT2"])
def test_language_models_train_as_without(cache, name, kind):
    "Guards against a mask, a length or a random number of the upper layers that differs; their dropout is on."
    task = text_task() if kind == "Sequence" else tagging_task()
    plain, kept = text_model(name, kind), text_model(name, kind)
    strategy = PartialFreezing(2, lr=1e-3)
    a, b = train(plain, task, strategy, False), train(kept, task, strategy, True)
    folders = list((cache / "features").glob("[!.]*"))
    assert len(folders) == 2
    rows = [json.loads((folder / "kept.json").read_text()) for folder in folders]
    tokens = sorted(int(model_split.inputs.lengths.sum()) for model_split in map(plain.prepare_split, (task.train, task.validation)))
    assert sorted(r["shape"][0] for r in rows) == tokens and all(r["by token"] for r in rows)        # no padding on the disk
    assert closest(snapshot(plain), snapshot(kept)) < 1e-3
    assert a.history.losses == pytest.approx(b.history.losses, rel=1e-3)
    assert a.validation == pytest.approx(b.validation, rel=1e-3)


def test_layers_that_share_their_weights_are_cached_rightly_or_not_at_all(cache):
    task, plain, kept = text_task(), text_model("Albert"), text_model("Albert")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(plain, task, PartialFreezing(1), False), train(kept, task, PartialFreezing(1), True)
    assert closest(snapshot(plain), snapshot(kept)) < 1e-3


def test_blocks_below_the_cut_do_not_run(cache, make_model, task):
    "Guards against a cache that is read and saves nothing."
    model, seen = make_model(), []
    first = model.backbone.stem[0]
    first.register_forward_hook(lambda *_: seen.append(1))
    train(model, task, PartialFreezing(1), True)
    looked = len(seen)
    train(model, task, PartialFreezing(1), True, steps=60)
    assert looked <= 20 and len(seen) - looked <= 8, "forty more steps, and no more looks"


def test_frozen_layers_in_the_middle_still_run(cache, make_model, task):
    plain, kept = make_model(), make_model()
    strategy = OneGroup(group=1, lr=1e-2)
    train(plain, task, strategy, False), train(kept, task, strategy, True)
    assert closest(snapshot(plain), snapshot(kept)) < 1e-5


class Around(nn.Module):
    "A network with a path around its middle, like a U-Net"
    width = 4

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, images):
        early = self.first(images)
        return (self.third(self.second(early)) + early).mean((2, 3))


def around():
    torch.manual_seed(0)
    return TransferModel(Backbone("around", Around(), 4, Preprocess(8, [0.5], [0.3]), True, 1e-3), ["a", "b", "c"])


class Last(PartialFreezing):
    def prepare(self, model):
        model.requires_grad_(False)
        for part in (model.backbone.third, model.head): part.requires_grad_(True)


def test_a_path_around_the_cut_is_noticed(cache, task):
    "Guards against the worst there could be: a wrong result, quietly. The cut moves down to where there is no path around it."
    plain, kept = around(), around()
    Last().prepare(kept)
    assert find_cut(kept, task.train).name == "backbone.first"
    train(plain, task, Last(), False), train(kept, task, Last(), True)
    assert closest(snapshot(plain), snapshot(kept)) < 1e-5


class Moving(Around):
    "A network with statistics but no scale between its layers: from scratch they move, though everything before them is frozen"
    def __init__(self):
        super().__init__()
        self.statistics = nn.BatchNorm2d(4, affine=False)

    def forward(self, images): return self.third(self.second(self.statistics(self.first(images)))).mean((2, 3))


@pytest.mark.parametrize("pretrained, cut", [(True, "backbone.second"), (False, "backbone.first")])
def test_the_cut_is_below_statistics_that_move(cache, task, pretrained, cut):
    torch.manual_seed(0)
    model = TransferModel(Backbone("moving", Moving(), 4, Preprocess(8, [0.5], [0.3]), pretrained, 1e-3), ["a", "b", "c"])
    Last().prepare(model)
    if pretrained: module.freeze_statistics(model)
    assert find_cut(model, task.train).name == cut


@pytest.mark.parametrize("strategy", [FullFineTuning(), OneGroup(0)], ids=lambda s: s.name)
def test_where_nothing_can_be_cached_it_is_said_and_done_without(cache, make_model, task, strategy):
    plain, kept = make_model(), make_model()
    with pytest.warns(UserWarning, match="nothing of the model could be cached"): train(kept, task, strategy, True)
    train(plain, task, strategy, False)
    assert changed(snapshot(plain), kept) == [] and not (cache / "features").exists()


def test_augmentation_and_cache_are_refused_together(cache, make_model, task):
    "Guards against images that are augmented in name only."
    for strategy in (LinearProbe(), PartialFreezing(1)):
        with pytest.raises(ValueError, match="give augment or cache"): train(make_model(), task, strategy, True, augment=Affine())


def test_augmented_copies_can_be_cached(cache, make_model, task):
    "A fixed number of them is data like any other."
    copies = torch.cat([task.train.inputs, (255 * Affine()(task.train.inputs / 255, torch.Generator().manual_seed(0))).to(torch.uint8)])
    more = Task(task.name, Split(copies, task.train.labels.repeat(2)), task.validation, task.test, task.label_names)
    plain, kept = make_model(), make_model()
    train(plain, more, PartialFreezing(1), False), train(kept, more, PartialFreezing(1), True)
    assert closest(snapshot(plain), snapshot(kept)) < 1e-5


def test_features_can_be_augmented_in_each_epoch(cache, make_model, task):
    "Noise on what is cached is drawn anew in every step, and the cache stays what it was."
    model = make_model()
    LinearProbe().prepare(model)
    features = cached_features(model, task.train)
    before, seen = features.inputs.clone(), []
    def noise(x, rng):
        seen.append(x + 0.1 * torch.randn(x.shape, generator=rng))
        return seen[-1]
    fit(model.head, features, steps=12, batch_size=42, augment=noise)
    assert torch.equal(features.inputs, before) and not torch.allclose(seen[0].sum(), seen[1].sum())


# --- Never stale ----------------------------------------------------------------------------------------------------------


def folders(cache): return {folder.name for folder in (cache / "features").glob("[!.]*")}


def probe(model, split):
    LinearProbe().prepare(model)
    return cached_features(model, split).inputs


def test_features_come_from_the_disk_and_are_those_that_are_computed(cache, make_model, task, monkeypatch):
    model = make_model()
    first = probe(model, task.train)
    passes = []
    model.backbone.register_forward_hook(lambda m, args, out: passes.append(len(out)))
    second = probe(model, task.train)
    assert torch.equal(first, second) and torch.allclose(second, extract_features(model, task.train).inputs)
    assert passes[0] == 8 and len(passes) == 2, "a look at eight rows, and the extraction of this test"
    assert len(folders(cache)) == 1


def one_weight(model, split):
    with torch.no_grad(): model.backbone.stem[0].weight[0, 0, 0, 0] += 1e-3
    return model, split


def one_statistic(model, split):
    model.backbone.stem[1].running_var[0] *= 1.01
    return model, split


def one_pixel(model, split):
    inputs = split.inputs.clone()
    inputs[-1, 0, 0, 0] ^= 1
    return model, Split(inputs, split.labels)


def another_order(model, split): return model, Split(split.inputs.flip(0), split.labels)
def fewer_rows(model, split): return model, split.select(range(20))


def normalisation(model, split):
    model.prepare.mean = [0.4]
    return model, split


def a_setting(model, split):
    model.backbone.stem[1].eps = 1e-2
    return model, split


CHANGES = [one_weight, one_statistic, one_pixel, another_order, fewer_rows, normalisation, a_setting]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("strategy", [LinearProbe(), PartialFreezing(1)], ids=lambda s: s.name)
def test_any_change_makes_another_cache(cache, make_model, task, change, strategy):
    model = make_model()
    strategy.prepare(model)
    def inputs(model, split): return module.above_what_is_frozen(model, split, task.validation, cache=True)[1].inputs
    def values(found): return found.kept if hasattr(found, "kept") else found
    inputs(model, task.train)
    before = folders(cache)
    model, split = change(model, task.train)
    found = values(inputs(model, split))
    assert folders(cache) - before
    assert len(found) == len(split)
    if isinstance(strategy, LinearProbe): assert torch.allclose(found, extract_features(model, split).inputs)


def test_features_of_a_network_that_learns_are_not_stale(cache, make_model, task):
    "Guards against a fingerprint of nothing where no weight is frozen."
    model = make_model()
    cached_features(model, task.train)
    before = folders(cache)
    model, split = one_weight(model, task.train)
    assert torch.allclose(cached_features(model, split).inputs, extract_features(model, split).inputs) and folders(cache) > before


def test_labels_do_not_matter_and_are_never_stale(cache, make_model, task):
    model = make_model()
    probe(model, task.train)
    other = Split(task.train.inputs, task.train.labels.flip(0))
    assert torch.equal(cached_features(model, other).labels, other.labels) and len(folders(cache)) == 1


def test_weights_above_the_cut_do_not_matter(cache, make_model, task):
    "What was kept before a run serves the next, though the upper layers have learned."
    model = make_model()
    train(model, task, PartialFreezing(1), True)
    before = folders(cache)
    train(model, task, PartialFreezing(1), True)
    assert folders(cache) == before


def test_labels_of_words_choose_the_words(cache):
    model, task = text_model("Bert", "Token"), tagging_task()
    LinearProbe().prepare(model)
    first = cached_features(model, task.train)
    other = Split(task.train.inputs, Rows([1 - tag for tag in tags] for tags in task.train.labels))
    found, expected = cached_features(model, other), extract_features(model, other)
    assert torch.equal(found.labels, expected.labels) and torch.allclose(found.inputs, expected.inputs, atol=1e-5)
    assert not torch.equal(found.labels, first.labels)


def test_a_shorter_length_makes_another_cache(cache):
    "The tokenizer's settings are in the tokens: they matter if they change one."
    task, long, short = text_task(), text_model("Bert"), text_model("Bert")
    short.prepare.max_length = 6
    train(long, task, PartialFreezing(2), True)
    before = folders(cache)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(short, task, PartialFreezing(2), True)
    assert len(folders(cache) - before) == 2


def test_the_same_tokens_in_other_rows_make_another_cache(cache):
    "Guards against two data sets that differ only in where a text ends."
    model = text_model("Bert")
    PartialFreezing(2).prepare(model)
    ids, keys = [2, 7, 8, 3, 2, 9, 10, 11, 3], []
    for ends in ([0, 4, 9], [0, 5, 9]):
        rows = [ids[a:b] for a, b in zip(ends, ends[1:])]
        tokens = module.Tokens(module.Ragged(rows, 0), module.Ragged([[1] * len(row) for row in rows], 0))
        keys.append(module.fingerprint_of_features(model, Split(tokens, torch.tensor([0, 1])), "somewhere"))
    assert keys[0] != keys[1]


def test_other_code_with_the_same_weights_is_noticed(cache, make_model, task, monkeypatch):
    "No fingerprint can know all of a program; eight rows are computed in any case, and tell."
    model = make_model()
    old = probe(model, task.train).clone()
    forward = type(model.backbone).forward
    monkeypatch.setattr(type(model.backbone), "forward", lambda self, images: 2 * forward(self, images))
    assert torch.allclose(probe(model, task.train), 2 * old) and len(folders(cache)) == 1


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(file.read_bytes()[:100]), lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\x7f"), lambda file: file.unlink()],
                         ids=["cut short", "altered", "removed"])
@pytest.mark.parametrize("strategy", [LinearProbe(), PartialFreezing(1)], ids=lambda s: s.name)
def test_a_damaged_file_is_made_again(cache, make_model, task, strategy, damage):
    first, second = make_model(), make_model()
    train(first, task, strategy, True)
    for folder in (cache / "features").glob("[!.]*"): damage(next(file for file in folder.iterdir() if file.name in ("kept", "features.safetensors")))
    with pytest.warns(UserWarning, match="is damaged and is built again"): train(second, task, strategy, True)
    assert closest(snapshot(first), snapshot(second)) < 1e-6


def test_files_are_mapped_and_cannot_be_written_through(cache, make_model, task):
    "Guards against a run that alters what the next one reads."
    model = make_model()
    train(model, task, PartialFreezing(1), True)
    before = folders(cache)
    _, kept, _ = module.above_what_is_frozen(model, task.train, task.validation, cache=True)
    kept.inputs.kept.zero_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(make_model(), task, PartialFreezing(1), True)
    assert folders(cache) == before


def test_what_was_not_used_for_longest_goes_first(cache, make_model, task, monkeypatch):
    model = make_model()
    LinearProbe().prepare(model)
    parts = [task.train.select(range(start, start + 10)) for start in (0, 10, 20)]
    for part in parts: cached_features(model, part)
    assert len(folders(cache)) == 3
    keys = [module.fingerprint_of_features(model, part)[:24] for part in parts]
    for age, key in enumerate(keys): os.utime(cache / "features" / key, (1e9 + age, 1e9 + age))
    size = sum(file.stat().st_size for folder in (cache / "features").glob("[!.]*") for file in folder.iterdir())
    monkeypatch.setattr(module, "FEATURES_ON_DISK", size - 1)
    cached_features(model, parts[0])
    assert folders(cache) == {keys[0], keys[2]}, "the first was just used, so the second is the oldest"


def test_image_files_are_not_decoded_again(cache, make_model, tmp_path):
    "Guards against a cache of features that still decodes every image in every step."
    from PIL import Image
    data = patterns(24)
    for row, image in enumerate(data.inputs): Image.fromarray(image[0].numpy()).save(tmp_path / f"{row}.png")
    files = ImageFiles([tmp_path / f"{row}.png" for row in range(24)], 8, channels=1)
    task = Task("files", Split(files, data.labels), patterns(12), patterns(12), ["a", "b", "c"])
    decoded, decode = [], ImageFiles._decode
    ImageFiles._decode = lambda self, path: decoded.append(path) or decode(self, path)
    try:
        train(make_model(), task, PartialFreezing(1), True)
        decoded.clear()
        train(make_model(), task, PartialFreezing(1), True, steps=30)
    finally: ImageFiles._decode = decode
    assert len(decoded) < 48, "a check of eight rows, a few times; thirty steps of eight images would be 240"
    with open(tmp_path / "0.png", "wb") as file: Image.fromarray(data.inputs[1, 0].numpy()).save(file, "png")
    before = folders(cache)
    train(make_model(), task, PartialFreezing(1), True)
    assert folders(cache) - before, "another image in the file, another cache"
