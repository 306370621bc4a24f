"""Transfer: what is frozen stays, what is saved comes back, and the test split is measured once, at the end."""
import json
import socket
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from ftlearn.data import Affine, Split, Task
from ftlearn.pretraining.autoencoders import ResidualCNN
from ftlearn.training import read_weights
from ftlearn.transfer import model as transfer
from ftlearn.transfer.model import (FullFineTuning, LinearProbe, TransferModel, check_task, extract_features, finetune, learning_curve,
                                    torchvision_backbone, torchvision_names, tune)
from ftlearn.transfer.text import bag_of_words, class_weights, weighted_classification
from ftlearn.transfer.tokens import look_up_names

from conftest import changed, patterns, snapshot, tiny_backbone

QUICK = dict(steps=6, batch_size=8)


# --- What changes and what does not ----------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", [None, Affine()], ids=["cached features", "augmented"])
def test_a_linear_probe_leaves_the_backbone_bitwise_unchanged(make_model, task, augment):
    "Guards against a frozen batch normalisation that still moves its statistics."
    model = make_model()
    before = snapshot(model)
    result = finetune(model, task, LinearProbe(), augment=augment, **QUICK)
    assert changed(before, model) == ["head.weight", "head.bias"]
    assert result.trained_weights == 8 * 3 + 3


def test_fine_tuning_changes_every_weight_and_no_statistic(make_model, task):
    "Guards against layers that were left out, and against pretrained statistics that a few images overwrite."
    model = make_model()
    before = snapshot(model)
    result = finetune(model, task, FullFineTuning(), **QUICK)
    weights = [name for name, _ in model.named_parameters()]
    assert changed(before, model) == [name for name in before if name in weights]
    assert result.trained_weights == sum(w.numel() for w in model.parameters())


def test_training_from_scratch_moves_the_statistics(make_model, task):
    "Guards against a comparison with a network from scratch whose batch normalisation was crippled."
    model = make_model(pretrained=False)
    before = snapshot(model)
    finetune(model, task, **QUICK)
    assert "backbone.stem.1.running_mean" in changed(before, model)


def test_a_strategy_can_follow_another(make_model, task):
    "Guards against a backbone that stays frozen after a linear probe, and against statistics frozen by an earlier strategy."
    model = make_model()
    finetune(model, task, LinearProbe(), **QUICK)
    before = snapshot(model)
    finetune(model, task, FullFineTuning(), **QUICK)
    assert "backbone.stem.0.weight" in changed(before, model)
    before = snapshot(model)
    finetune(model, task, LinearProbe(), **QUICK)
    assert all(name.startswith("head.") for name in changed(before, model))


def test_cached_features_give_the_same_head(make_model, task):
    "Guards against features that were cached with dropout, in another order, or with moving statistics."
    cached, uncached = make_model(), make_model()
    cached_history = finetune(cached, task, LinearProbe(), seed=4, **QUICK).history
    history = finetune(uncached, task, LinearProbe(), seed=4, augment=lambda images, rng: images, **QUICK).history
    assert torch.allclose(cached.head.weight, uncached.head.weight, atol=1e-5)
    assert cached_history.losses == pytest.approx(history.losses, rel=1e-4)


def test_features_are_those_of_the_frozen_network(make_model, task):
    "Guards against features of another row, and against features that carry a graph."
    model = make_model().train()
    features = extract_features(model, task.train, batch_size=5)
    assert torch.allclose(features.inputs, model.eval().features(task.train.inputs), atol=1e-6)
    assert torch.equal(features.labels, task.train.labels) and not features.inputs.requires_grad and not features.inputs.is_inference()


def test_backbone_and_head_have_their_own_rates(make_model, task):
    "Guards against a learning rate that is ignored."
    model = make_model()
    strategy = FullFineTuning(lr=1e-5, head_lr=1e-1, weight_decay=0.5)
    strategy.prepare(model)
    optimizer = strategy.optimizer(model)
    rates = {id(w): group["lr"] for group in optimizer.param_groups for w in group["params"]}
    assert {rates[id(w)] for w in model.backbone.parameters()} == {1e-5} and {rates[id(w)] for w in model.head.parameters()} == {1e-1}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.5}
    with pytest.raises(ValueError, match="lr"): finetune(model, task, strategy, lr=1.0)


def test_the_learning_rate_reaches_the_weights(make_model, task):
    "Guards against a backbone that does not learn, or learns as fast as a new head."
    still, moved = make_model(), make_model()
    before = snapshot(still.backbone)
    finetune(still, task, FullFineTuning(lr=0.0, weight_decay=0.0), **QUICK)
    finetune(moved, task, FullFineTuning(lr=1e-2), **QUICK)
    assert changed(before, still.backbone) == [] and changed(before, moved.backbone)


class AsTrainerWants(nn.Module):
    "A model that computes its loss"
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, labels):
        logits = self.model(images)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def test_a_frozen_backbone_stays_frozen_in_transformers_trainer(make_model, task, tmp_path):
    "Guards against `model.train()` in somebody else's loop, which sets frozen layers moving."
    from transformers import Trainer, TrainingArguments
    model = make_model()
    LinearProbe().prepare(model)
    before = snapshot(model)
    rows = [{"images": image, "labels": label} for image, label in zip(task.train.inputs, task.train.labels)]
    options = TrainingArguments(tmp_path, max_steps=4, per_device_train_batch_size=8, report_to=[], use_cpu=True, save_strategy="no",
                                eval_strategy="steps", eval_steps=2, disable_tqdm=True, logging_strategy="no")
    Trainer(AsTrainerWants(model), options, train_dataset=rows, eval_dataset=rows[:8]).train()
    assert changed(before, model) == ["head.weight", "head.bias"]


# --- The test split --------------------------------------------------------------------------------------------------


@pytest.fixture
def one_process(monkeypatch):
    "Calls one after the other, in this process, where a test can watch them"
    monkeypatch.setattr(transfer, "in_parallel", lambda function, arguments: [function(*call) for call in arguments])


class Sealed(Split):
    "A split that nobody may look at"
    def __init__(self): pass
    def __len__(self): raise AssertionError("the test split was touched")
    def __getattribute__(self, name):
        if name == "__class__": return object.__getattribute__(self, name)
        raise AssertionError("the test split was touched")


def test_nothing_is_chosen_by_the_test_split(make_model, task, one_process):
    "Guards against a test split used to choose weights, a strategy or its strength."
    task = Task(task.name, task.train, task.validation, Sealed(), task.label_names)
    result = finetune(make_model(), task.few_shot(5), **QUICK)
    tune(make_model, task, [LinearProbe(), FullFineTuning(lr=1e-4)], **QUICK)
    assert 0 <= result.validation["accuracy"] <= 1 and "validation" in repr(result)
    with pytest.raises(AssertionError, match="touched"): result.test


class LookedAtOnly(Split):
    "A split that no gradient may come from"
    def __getitems__(self, rows):
        assert not torch.is_grad_enabled()
        return super().__getitems__(rows)


@pytest.mark.parametrize("strategy", [LinearProbe(), FullFineTuning()], ids=lambda s: s.name)
def test_nothing_is_learnt_from_the_validation_split(make_model, task, strategy):
    "Guards against validation rows in the gradient, or in the batch statistics."
    looked_at = Task(task.name, task.train, LookedAtOnly(task.validation.inputs, task.validation.labels), task.test, task.label_names)
    another = Task(task.name, task.train, Split(255 - task.validation.inputs, task.validation.labels), task.test, task.label_names)
    measure = lambda model, split: {"loss": 1.0, "accuracy": next(rising)}
    found = []
    for t in (looked_at, another):
        rising, model = iter(range(100)), make_model(pretrained=False)
        finetune(model, t, strategy, measure=measure, **QUICK)
        found.append(snapshot(model))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    finetune(make_model(), looked_at, strategy, **QUICK)


def test_the_test_split_is_measured_once_and_only_of_these_weights(make_model, task, monkeypatch):
    "Guards against the test accuracy of weights that changed after the run."
    measured = []
    result = finetune(make_model(), task, **QUICK)
    with monkeypatch.context() as patched:
        patched.setattr(transfer, "evaluate", lambda model, split: measured.append(split) or {"accuracy": 0.5})
        assert result.test == result.test == {"accuracy": 0.5} and measured == [task.test]
    later = finetune(result.model, task, **QUICK)
    stale = finetune(later.model, task, LinearProbe(), **QUICK)
    with pytest.raises(RuntimeError, match="has changed"): later.test
    stale.test


def test_tune_chooses_by_the_validation_split(make_model, task, monkeypatch, one_process):
    "Guards against the last, or the first, candidate whatever it is worth."
    quality = {"a": (0.5, 1.0), "b": (0.9, 2.0), "c": (0.9, 1.5), "d": (0.1, 0.1)}
    def finetune(model, task, strategy, **options): return SimpleNamespace(validation=dict(zip(("accuracy", "loss"), quality[strategy])))
    monkeypatch.setattr(transfer, "finetune", finetune)
    assert tune(make_model, task, "abcd") == "c"


def test_methods_are_compared_on_the_same_draws(task, one_process):
    "Guards against a difference between draws that is taken for one between methods."
    seen = {"a": [], "b": []}
    def method(name): return lambda drawn, seed: seen[name].append((len(drawn.train), seed, drawn.train.inputs.sum().item())) or 0.5
    curve = learning_curve(task, {name: method(name) for name in seen}, shots=(1, 2), seeds=range(3))
    assert sorted(seen["a"]) == sorted(seen["b"]) and len(set(seen["a"])) == 6 and curve["a"] == {1: [50.0] * 3, 2: [50.0] * 3}


# --- Models and tasks that do not fit --------------------------------------------------------------------------------


def test_a_head_for_another_number_of_labels_is_refused(make_model, task):
    "Guards against an index error in the middle, or labels that can never be predicted."
    other = Task("two", patterns(20, 2), patterns(20, 2), patterns(20, 2), ["a", "b"])
    with pytest.raises(ValueError, match="3 outputs and the task 2 labels"): finetune(make_model(), other)


def test_a_head_for_other_labels_is_refused(make_model, task):
    "Guards against a model that saves the label names of an earlier task."
    other = Task("other", task.train, task.validation, task.test, ["x", "y", "z"])
    with pytest.raises(ValueError, match="label"): finetune(make_model(), other, **QUICK)


def test_one_class_is_refused(make_model, task):
    "Guards against a perfect accuracy on a task that asks nothing."
    one = Task("one", Split(task.train.inputs, torch.zeros(42, dtype=torch.long)), task.validation, task.test, task.label_names)
    with pytest.raises(ValueError, match="one class"): check_task(make_model(), one)


def test_an_objective_replaces_no_strategys_own(make_model, task):
    "Guards against a pull towards the source that is silently left out."
    seen = []
    def loss(model, inputs, labels):
        seen.append(len(labels))
        return F.cross_entropy(model(inputs), labels)
    class Own(FullFineTuning):
        def objective(self, model, train): return loss, train
    with pytest.raises(ValueError, match="Own has an objective of its own"): finetune(make_model(), task, Own(), objective=loss, **QUICK)
    for strategy, options in ((Own(), {}), (FullFineTuning(), {"objective": loss})):
        seen.clear()
        finetune(make_model(), task, strategy, **options, **QUICK)
        assert len(seen) == QUICK["steps"]


# --- Losses and baselines of lessons 10 and 11 -----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12,), (3, 4)], ids=["rows", "words"])
def test_weighted_classes_count_alike(shape):
    "By hand, for a label a row and for a label a word, some of which (−100) do not count"
    logits, labels = torch.randn(*shape, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2, 2, -100, -100]).view(shape)
    given = labels if len(shape) == 1 else [[label for label in row if label >= 0] for row in labels.tolist()]
    found = weighted_classification(given, 3)(lambda x: x, logits, labels)
    of_each = F.cross_entropy(logits.view(-1, 3)[:10], labels.flatten()[:10], reduction="none")
    assert found == pytest.approx(torch.stack([part.mean() for part in of_each.split([5, 2, 3])]).mean())
    assert (class_weights(given, 3) * torch.tensor([5, 2, 3])).tolist() == pytest.approx([10 / 3] * 3)
    with pytest.raises(ValueError, match="class 3 has no rows"): class_weights(given, 4)


def test_baselines_are_between_0_and_1_as_results_are():
    texts = Split(["good film", "bad film"] * 8, torch.tensor([1, 0] * 8))
    words = Split([["ada", "met", "bob"]] * 4, [[1, 0, 1]] * 4)
    assert bag_of_words(Task("t", texts, texts, texts, ["no", "yes"])) == 1
    assert look_up_names(Task("w", words, words, words, ["O", "B-PER"], "token-classification")) == 1


# --- Saving and loading ----------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_glyph_cnn(tmp_path, monkeypatch):
    "A network in the place of the one pretrained on letters, which would take a minute"
    folder = tmp_path / "glyph-cnn"
    folder.mkdir()
    torch.manual_seed(99)
    save_file(ResidualCNN((4, 8), 1).state_dict(), folder / "model.safetensors")
    config = {"backbone": "glyph-cnn", "widths": [4, 8], "depth": 1, "prepare": {"size": 8, "mean": [0.5], "std": [0.3]}}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(transfer, "glyph_cnn", lambda: folder)
    monkeypatch.setattr(transfer, "untrained_glyph_cnn", lambda: (ResidualCNN((4, 8), 1), transfer.Preprocess(8, [0.5], [0.3])))
    return folder


def test_a_saved_model_comes_back(tiny_glyph_cnn, task, tmp_path):
    "Guards against a head, statistics or label names that were not saved."
    model = TransferModel.from_pretrained("glyph-cnn", task)
    model.prepare.mean = [0.25]
    with torch.no_grad():
        for buffer in model.buffers(): buffer.add_(1)
    finetune(model, task, **QUICK)
    again = TransferModel.from_pretrained(model.save_pretrained(tmp_path / "saved"))
    assert changed(snapshot(model), again) == [] and again.label_names == ["a", "b", "c"] and not again.training
    assert torch.equal(again(task.test.inputs), model.eval()(task.test.inputs))
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == ["config.json", "model.safetensors"]


def test_a_saved_backbone_takes_a_new_head(tiny_glyph_cnn, task, tmp_path):
    "Guards against a new head on random weights."
    model = TransferModel.from_pretrained("glyph-cnn", task)
    finetune(model, task, **QUICK)
    model.save_pretrained(tmp_path / "saved")
    other = Task("two", patterns(20, 2), patterns(20, 2), patterns(20, 2), ["x", "y"])
    again = TransferModel.from_pretrained(tmp_path / "saved", other)
    assert changed(snapshot(model.backbone), again.backbone) == [] and again.head.out_features == 2 and again.pretrained
    scratch = TransferModel.from_scratch(tmp_path / "saved", other)
    assert changed(snapshot(model.backbone), scratch.backbone) and not scratch.pretrained


def test_pretrained_weights_are_loaded_and_scratch_is_random(tiny_glyph_cnn, task):
    "Guards against a comparison of a network with itself."
    weights = read_weights(tiny_glyph_cnn / "model.safetensors")
    assert changed(weights, TransferModel.from_pretrained("glyph-cnn", task).backbone) == []
    first, again, other = (TransferModel.from_scratch("glyph-cnn", task, seed) for seed in (0, 0, 1))
    assert changed(weights, first.backbone) and changed(snapshot(first), again) == [] and changed(snapshot(first), other)


def test_the_head_depends_on_its_seed_alone(make_model):
    "Guards against two methods that start from different heads, and against a global generator that moves on."
    torch.manual_seed(1)
    first = torch.rand(1)
    names = ["a", "b"]
    backbones = [tiny_backbone() for _ in range(3)]
    torch.manual_seed(1)
    a, b, c = (TransferModel(backbone, names, seed) for backbone, seed in zip(backbones, (0, 0, 1)))
    assert torch.rand(1) == first
    assert torch.equal(a.head.weight, b.head.weight) and not torch.equal(a.head.weight, c.head.weight)


@pytest.mark.parametrize("name, words", [("resnet81", "Did you mean"), ("no such thing", "glyph-cnn")])
def test_unknown_backbones_are_answered_with_names(task, name, words):
    "Guards against a random network under a mistyped name."
    with pytest.raises(ValueError, match=words): TransferModel.from_pretrained(name, task)


@pytest.mark.parametrize("spoil, words", [(lambda f: (f / "config.json").unlink(), "no config.json"), (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
                                          (lambda f: (f / "model.safetensors").write_bytes(b"x"), "cannot be read as weights"),
                                          (lambda f: (f / "model.safetensors").unlink(), "no weights file")], ids=["config", "json", "weights", "missing"])
def test_a_damaged_model_is_refused(tiny_glyph_cnn, task, tmp_path, spoil, words):
    "Guards against random weights where saved ones were asked for."
    folder = TransferModel.from_pretrained("glyph-cnn", task).save_pretrained(tmp_path / "saved")
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=words): TransferModel.from_pretrained(folder)


# --- Weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "pth", "pt", "bin"])
def test_weights_are_read_from_every_format(tmp_path, suffix):
    "Guards against weights that change on their way."
    state = {"layer.weight": torch.randn(3, 2), "steps": torch.tensor(7)}
    path = tmp_path / f"w.{suffix}"
    if suffix == "safetensors": save_file(state, path)
    elif suffix == "npz": np.savez(path, **{name: value.numpy() for name, value in state.items()})
    else: torch.save({"state_dict": state} if suffix == "pt" else state, path)
    found = read_weights(path)
    assert found.keys() == state.keys() and all(torch.equal(found[name], value) for name, value in state.items())


class Malicious:
    "Creates a file when it is unpickled"
    def __init__(self, path): self.path = path
    def __reduce__(self):
        import os
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("suffix", ["pth", "bin", "npz", "safetensors", "ckpt"])
def test_weights_run_no_code(tmp_path, suffix):
    "Guards against a downloaded file that executes what its author likes."
    path, ran = tmp_path / f"w.{suffix}", tmp_path / "ran"
    if suffix == "npz": np.savez(path, evil=np.array([Malicious(ran)], dtype=object))
    else: torch.save({"evil": Malicious(ran)}, path)
    with pytest.raises(ValueError, match="cannot be read as weights"): read_weights(path)
    assert not ran.exists()


def test_missing_weights_are_said_within_seconds(tmp_path, task, monkeypatch):
    "Guards against minutes of waiting, and against random weights in place of those that are missing."
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    def refuse(*arguments, **options): raise OSError
    monkeypatch.setattr(socket, "create_connection", refuse)
    started = time.monotonic()
    with pytest.raises(ConnectionError, match="'glyph-cnn'.*weights="): TransferModel.from_pretrained("squeezenet1_0", task)
    assert time.monotonic() - started < 10
    with pytest.raises(FileNotFoundError, match="no weights file"): TransferModel.from_pretrained("squeezenet1_0", task, weights=tmp_path / "none.pth")


def test_torchvision_weights_come_from_a_file(tmp_path, task):
    "Guards against `weights=` being ignored."
    import torchvision
    state = torchvision.models.squeezenet1_1().state_dict()
    torch.save(state, tmp_path / "w.pth")
    model = TransferModel.from_pretrained("squeezenet1_1", task, weights=tmp_path / "w.pth")
    assert all(torch.equal(value, state[name]) for name, value in model.backbone.state_dict().items())


# --- torchvision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, width", [("resnet18", 512), ("squeezenet1_0", 512), ("mobilenet_v3_small", 1024), ("efficientnet_b0", 1280), ("convnext_tiny", 768)])
def test_torchvision_models_give_features(name, width):
    "Guards against a head on top of the scores of the old one, or on features that are not those of the last layer."
    backbone = torchvision_backbone(name, pretrained=False)
    model = TransferModel(backbone, ["a", "b"])
    assert backbone.width == width and model.eval()(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 2)
    model(torch.rand(1, 3, 40, 30)).sum().backward()
    assert all(w.grad is not None for w in model.parameters())


@pytest.mark.parametrize("name", ["alexnet", "densenet121", "googlenet", "inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "resnet50",
                                  "shufflenet_v2_x0_5", "swin_t", "swin_v2_t", "vgg11", "vit_b_16"])
def test_torchvision_models_lose_their_head(name):
    "Guards against a classifying layer that is sought in the wrong place. On the meta device nothing is computed."
    import torchvision
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"): model = transfer.remove_head(torchvision.models.get_model(name, weights=None, **options))
    heads = [path for path, module in model.named_modules() if getattr(module, "out_features", 0) == 1000 and not path.lower().startswith("aux")]
    assert heads == []


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_a_scale_of_their_own_get_it(name, tmp_path):
    "Guards against images on ImageNet's scale in front of weights that were trained on another, and against heads for training only."
    import torchvision
    official = torchvision.models.get_model(name, weights=None, aux_logits=True, transform_input=True, init_weights=False).eval()
    torch.save(official.state_dict(), tmp_path / "weights.pth")
    module = torchvision_backbone(name, weights=tmp_path / "weights.pth").module.eval()
    assert not [key for key, _ in module.named_parameters() if key.lower().startswith("aux")]
    official.fc = torch.nn.Identity()
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(): ours, theirs = module(images), official(images)
    assert (ours - theirs).norm() <= 1e-3 * (theirs - theirs.mean(1, keepdim=True)).norm()      # relative: untrained networks answer with tiny numbers
