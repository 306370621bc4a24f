"""Low-rank adaptation: the function starts where it was, only the factors move, and what is merged or saved is the same function."""
import copy
import json
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from torch import nn

from ftlearn.adaptation.low_rank import AdaptedModel, LoRA, adaptable, load_adapter, merge_adapters, named_for_peft, save_adapter, weight_updates
from ftlearn.training import predict, read_weights
from ftlearn.transfer import model as transfer
from ftlearn.transfer.model import Backbone, FullFineTuning, LinearProbe, TransferModel, feature_width, finetune, remove_head

from conftest import changed, improving, snapshot, tiny_backbone
from test_language import ARCHITECTURES, checkpoints, tagged, texts        # fixtures

QUICK = dict(steps=4, batch_size=8)
FAST = LoRA(rank=2, lr=1e-2)


def learned(model, task, strategy=FAST, **options):
    "The model after a few steps, the factors far from zero"
    finetune(model, task, strategy, **QUICK | options)
    return model


# --- The formula -----------------------------------------------------------------------------------------------------


class ByHand(nn.Module):
    "Hu et al. 2022, equation 3"
    def __init__(self, layer, A, B, scale):
        super().__init__()
        self.layer, self.A, self.B, self.scale = layer, nn.Parameter(A), nn.Parameter(B), scale

    def forward(self, x): return self.layer(x) + self.scale * (x @ self.A.T @ self.B.T)


@pytest.mark.parametrize("rank, alpha", [(1, 8.0), (3, 8.0), (3, 1.5), (50, 8.0)])
def test_the_adapters_compute_the_formula(checkpoints, texts, rank, alpha):
    "Guards against another scale, factors that are exchanged, and a scale that changes where a rank is cut."
    model = TransferModel.from_pretrained(checkpoints / "bert", texts).eval()
    plain = copy.deepcopy(model)
    LoRA(rank=rank, alpha=alpha).prepare(model)
    name = "bert.encoder.layer.1.intermediate.dense"
    layer, before = (named_for_peft(m)[0].get_submodule(name) for m in (model, plain))
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert A.shape == (min(rank, 16), 16) and B.shape == (24, min(rank, 16))
    with torch.no_grad(): B.normal_()
    hand, x = ByHand(before, A.detach().clone(), B.detach().clone(), alpha / rank), torch.randn(5, 16)
    for computed in (layer(x), hand(x)): computed.square().sum().backward()
    torch.testing.assert_close(layer(x), hand(x))
    torch.testing.assert_close(A.grad, hand.A.grad)
    torch.testing.assert_close(B.grad, hand.B.grad)


@pytest.mark.parametrize("name", [*ARCHITECTURES, "sentence"])
def test_language_models_start_where_they_were_and_only_factors_and_head_move(checkpoints, texts, name):
    "Guards against a start away from the source, frozen weights that move, and adapters that are never called."
    model = TransferModel.from_pretrained(checkpoints / name, texts).eval()
    logits, before = predict(model, texts.test), {key: value.clone() for key, value in model.state_dict().items()}
    FAST.prepare(model)
    assert torch.equal(predict(model, texts.test), logits)
    fresh = TransferModel.from_pretrained(checkpoints / name, texts)
    result = finetune(fresh, texts, FAST, **QUICK)
    after = {key.replace(".base_layer", ""): value for key, value in fresh.state_dict().items() if ".lora_" not in key}
    assert after.keys() == before.keys()
    assert [key for key in before if not torch.equal(before[key], after[key])] == [key for key in before if key.startswith("head.") or key.removeprefix("backbone.") in fresh.fresh]
    factors = {key: w for key, w in fresh.named_parameters() if ".lora_" in key}
    assert factors and all(w.any() for w in factors.values()), "a factor B that is still zero was never called"
    assert result.trained_weights == sum(w.numel() for w in [*factors.values(), *fresh.new_weights()])


def test_a_convolution_starts_where_it_was_and_its_statistics_stay(make_model, task):
    "Guards against filters, statistics or scales that move under the adapters."
    model = make_model()
    before = snapshot(model)
    logits = predict(model, task.test)
    FAST.prepare(model)
    assert torch.equal(predict(model, task.test), logits)
    model = learned(make_model(), task)
    after = {key.replace(".base_layer", ""): value for key, value in model.state_dict().items() if ".lora_" not in key}
    assert [key for key in before if not torch.equal(before[key], after[key])] == ["head.weight", "head.bias"]
    assert not torch.allclose(predict(model, task.test), logits, atol=1e-2)


def test_the_number_of_trained_weights_is_r_times_d_plus_k(make_model, task):
    "Guards against a count that includes what is frozen, or leaves the head out."
    model = make_model()
    inner, layers = named_for_peft(model)[0], adaptable(model)
    shapes = [inner.get_submodule(name).weight.flatten(1).shape for name in layers]
    assert finetune(model, task, LoRA(rank=2), **QUICK).trained_weights == sum(2 * (d + k) for d, k in shapes) + 8 * 3 + 3


# --- Which layers ----------------------------------------------------------------------------------------------------


def vision(name, **options):
    "A classifier of torchvision as a backbone, with random weights"
    import torchvision
    torch.manual_seed(0)
    module = remove_head(torchvision.models.get_model(name, weights=None, **options))
    prepare = transfer.Preprocess(64 if name != "vit_b_16" else 224, [0.5] * 3, [0.3] * 3)
    return TransferModel(Backbone(name, module, feature_width(module, prepare), prepare, True, 1e-4), ["a", "b", "c"])


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "swin_t", "convnext_tiny", "squeezenet1_1"])
def test_every_adapter_of_a_torchvision_model_has_a_gradient_and_can_be_merged(name):
    "Guards against layers that lend their weights to a function, and against grouped filters, where an adapter is dead or wrong."
    model, images = vision(name).train(), torch.rand(4, 3, 64, 64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d): module.momentum = None       # random weights need statistics that fit them
    model(images)
    logits = model.eval()(images)
    LoRA(rank=2).prepare(model)
    model.eval()
    torch.testing.assert_close(model(images), logits)
    factors = [w for key, w in model.named_parameters() if ".lora_B" in key]
    model(images).square().sum().backward()
    assert len(factors) > 8 and all(w.grad is not None for w in factors)
    with torch.no_grad():
        for w in factors: w.normal_(std=0.02)
    adapted = model(images)
    assert (adapted - logits).abs().max() > 1e-4
    torch.testing.assert_close(merge_adapters(model)(images), adapted, rtol=1e-3, atol=1e-4)


def test_layers_that_only_lend_their_weights_get_no_adapter():
    "Guards against adapters inside torch's attention, which would never be called."
    model = vision("swin_t")
    assert not any(name.endswith(("qkv", "proj")) for name in adaptable(model)) and any("mlp" in name for name in adaptable(model))


def test_filters_that_peft_cannot_match_get_no_adapter():
    "Guards against a product that differs from its filters in dilation, groups or padding: merged, it would be another function."
    convolutions = [nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
                    nn.Conv2d(4, 4, 3, stride=2)]
    module = nn.Sequential(nn.Conv2d(1, 4, 1), *convolutions, nn.Flatten(), nn.Linear(36, 5))
    model = TransferModel(Backbone("own", module, 5, transfer.Preprocess(8, [0.5], [0.3]), True, 1e-3), ["a", "b"])
    assert adaptable(model) == [f"backbone.{i}" for i in (0, 1, 5, 7)]
    LoRA(rank=2).prepare(model)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if ".lora_B" in key: weight.normal_()
    images = torch.rand(3, 1, 8, 8)
    adapted = model.eval()(images)
    torch.testing.assert_close(merge_adapters(model)(images), adapted, rtol=1e-3, atol=1e-4)


def test_a_layer_in_two_places_gets_no_adapter(make_model):
    "Guards against products that are added twice to a shared weight."
    model = make_model()
    model.backbone.stages[1][0].first[0].weight = nn.Parameter(torch.randn(8, 4, 3, 3))
    before = adaptable(model)
    first = [name for name in before if "stages.0" in name][:2]
    model.get_submodule(first[1]).weight = model.get_submodule(first[0]).weight
    assert set(before) - set(adaptable(model)) == set(first)


def test_layers_are_chosen_by_the_ends_of_their_names(checkpoints, texts):
    "Guards against targets that are ignored or match by accident."
    model = TransferModel.from_pretrained(checkpoints / "bert", texts)
    LoRA(rank=2, targets=["query", "attention.output.dense"]).prepare(model)
    adapted = {key.split(".lora_A")[0].split("layer.")[1] for key, _ in model.named_parameters() if ".lora_A" in key}
    assert adapted == {f"{i}.attention.{name}" for i in (0, 1) for name in ("self.query", "output.dense")}


@pytest.mark.parametrize("strategy, words", [(LoRA(targets=["quary"]), "unknown layer 'quary'. Did you mean 'query'"), (LoRA(rank=0), "at least 1, and is 0")])
def test_impossible_wishes_are_refused(checkpoints, texts, strategy, words):
    model = TransferModel.from_pretrained(checkpoints / "bert", texts)
    with pytest.raises(ValueError, match=words): strategy.prepare(model)
    assert type(model) is TransferModel and not any(".lora_" in key for key in model.state_dict())


def test_the_head_is_never_adapted(make_model, task):
    "Guards against a head that is both free and restricted."
    assert not any("head" in name for name in adaptable(make_model()))
    with pytest.raises(ValueError, match="unknown layer 'head'"): finetune(make_model(), task, LoRA(targets=["head"]), **QUICK)


# --- Seeds, rates, state ---------------------------------------------------------------------------------------------


def test_the_first_factors_depend_on_their_seed_alone(make_model):
    "Guards against runs that cannot be repeated, and against a global generator that moves on."
    torch.manual_seed(1)
    wanted = torch.rand(1)
    models = [make_model() for _ in range(3)]
    torch.manual_seed(1)
    for model, seed in zip(models, (0, 0, 1)): LoRA(rank=2, seed=seed).prepare(model)
    assert torch.rand(1) == wanted
    a, b, c = (snapshot(model) for model in models)
    assert changed(a, models[1]) == [] and changed(a, models[2]) and all(".lora_A" in key for key in changed(a, models[2]))
    assert not any(value.any() for key, value in c.items() if ".lora_B" in key)


def test_factors_learn_at_their_own_rate(make_model):
    "Guards against the backbone's rate, which is ten times too low for them, and against a rate that is ignored."
    for strategy, rate in ((LoRA(), 1e-2), (LoRA(lr=5e-3), 5e-3)):
        model = make_model()
        strategy.prepare(model)
        factors, head = strategy.optimizer(model).param_groups
        assert factors["lr"] == pytest.approx(rate) and head["lr"] == 1e-2
        assert {id(w) for w in factors["params"]} == {id(w) for key, w in model.named_parameters() if ".lora_" in key}


def test_a_model_with_adapters_gets_no_second_ones(make_model, task):
    "Guards against adapters on adapters, and against a first product that is lost."
    model = learned(make_model(), task)
    before = snapshot(model)
    with pytest.raises(ValueError, match="has adapters already.*merge_adapters"): finetune(model, task, FAST, **QUICK)
    assert changed(before, model) == []
    logits = predict(model, task.test)
    again = merge_adapters(model)
    FAST.prepare(again)
    torch.testing.assert_close(predict(again, task.test), logits, rtol=1e-4, atol=1e-4)


def test_another_strategy_can_follow(make_model, task):
    "Guards against factors that move under a linear probe, and against weights that stay frozen after merging."
    model = learned(make_model(), task)
    before = snapshot(model)
    finetune(model, task, LinearProbe(), **QUICK)
    assert set(changed(before, model)) <= {"head.weight", "head.bias"}
    merged = merge_adapters(model)
    before = snapshot(merged)
    finetune(merged, task, FullFineTuning(), **QUICK)
    assert "backbone.stem.0.weight" in changed(before, merged)


def test_the_best_weights_are_kept(make_model, task):
    "Guards against the last factors where the best were asked for."
    model, states = make_model(), []
    def measure(model, split):
        states.append(snapshot(model))
        return {"loss": abs(len(states) - 2) + 0.1}
    result = finetune(model, task, FAST, steps=4, batch_size=8, measure_every=1, measure=measure)
    assert result.history.best_step == 2 and changed(states[1], model) == [] and changed(states[3], model)


def test_a_resumed_run_is_the_same(make_model, task, tmp_path):
    "Guards against factors that are made anew, or left out of the checkpoint."
    options = dict(strategy=FAST, steps=6, batch_size=8, measure_every=1)
    whole, interrupted, resumed = make_model(), make_model(), make_model()
    finetune(whole, task, measure=improving(0), **options)
    with pytest.raises(KeyboardInterrupt): finetune(interrupted, task, measure=improving(0, 3), checkpoint=tmp_path / "run.pt", **options)
    finetune(resumed, task, measure=improving(3), checkpoint=tmp_path / "run.pt", **options)
    assert changed(snapshot(whole), resumed) == []


def test_it_learns_in_mixed_precision(checkpoints, texts, monkeypatch):
    "Guards against factors kept in bfloat16, where small steps are lost."
    monkeypatch.setattr("ftlearn.training.MIXED_PRECISION_FROM", 0)
    monkeypatch.setattr("ftlearn.training.autocast_dtype", lambda device: torch.bfloat16)
    model = TransferModel.from_pretrained(checkpoints / "bert", texts)
    result = finetune(model, texts, LoRA(rank=2, lr=1e-2, head_lr=1e-2), steps=60, batch_size=16)
    assert {w.dtype for w in model.parameters()} == {torch.float32} and result.validation["accuracy"] > 0.9


def test_a_copy_is_a_model_of_its_own(make_model, task):
    "Guards against a copy whose merging changes the original."
    model = learned(make_model(), task)
    before, logits = snapshot(model), predict(model, task.test)
    duplicate = copy.deepcopy(model)
    merge_adapters(duplicate)
    assert isinstance(model, AdaptedModel) and changed(before, model) == [] and torch.equal(predict(model, task.test), logits)


# --- Merging, saving, loading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ARCHITECTURES, "sentence"])
def test_merged_and_saved_language_models_are_the_same_function(checkpoints, texts, tmp_path, name):
    "Guards against a product that is lost or transposed, foreign names in the file, and random weights under the right ones."
    from transformers import pipeline
    model = learned(TransferModel.from_pretrained(checkpoints / name, texts), texts, LoRA(rank=2, lr=3e-2))
    ordinary, logits = TransferModel.from_pretrained(checkpoints / name, texts), predict(model, texts.test)
    assert not torch.allclose(logits, predict(ordinary, texts.test), atol=1e-2)
    classifier = pipeline("text-classification", model=str(model.save_pretrained(tmp_path / "saved")), top_k=None)
    assert isinstance(model, AdaptedModel)
    for expected, found in zip(logits.softmax(1), classifier(list(texts.test.inputs))):
        assert {answer["label"]: answer["score"] for answer in found} == pytest.approx(dict(zip(texts.label_names, expected.tolist())), abs=2e-4)
    torch.testing.assert_close(predict(TransferModel.from_pretrained(tmp_path / "saved"), texts.test), logits, rtol=1e-4, atol=1e-4)
    merged = merge_adapters(model)
    assert type(merged) is TransferModel and merged.state_dict().keys() == ordinary.state_dict().keys()
    assert [type(m) for m in merged.modules()] == [type(m) for m in ordinary.modules()] and all(w.requires_grad for w in merged.parameters())
    torch.testing.assert_close(predict(merged, texts.test), logits, rtol=1e-4, atol=1e-4)


def test_a_merged_and_saved_cnn_is_the_same_function(make_model, task, tmp_path):
    model = learned(make_model(), task)
    model.name, logits = "glyph-cnn", predict(model, task.test)
    saved = TransferModel.from_pretrained(model.save_pretrained(tmp_path / "saved"))
    torch.testing.assert_close(predict(saved, task.test), logits, rtol=1e-4, atol=1e-4)
    assert saved.state_dict().keys() == make_model().state_dict().keys()


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "gpt2", "sentence"])
def test_an_adapter_file_brings_the_model_back(checkpoints, texts, tmp_path, name):
    "Guards against a head that is left out, and against a file with the backbone in it."
    model = learned(TransferModel.from_pretrained(checkpoints / name, texts), texts)
    folder = save_adapter(model, tmp_path / "adapter")
    assert {file.name for file in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    loaded = load_adapter(TransferModel.from_pretrained(checkpoints / name, texts), folder)
    assert changed(snapshot(model), loaded) == [] and torch.equal(predict(loaded, texts.test), predict(model, texts.test))
    assert sum(value.numel() for value in read_weights(folder / "adapter_model.safetensors").values()) == sum(w.numel() for w in model.parameters() if w.requires_grad)
    assert finetune(merge_adapters(loaded), texts, FAST, **QUICK).trained_weights


def test_an_adapter_file_of_a_cnn_brings_the_model_back(make_model, task, tmp_path):
    model = learned(make_model(), task)
    loaded = load_adapter(make_model(), save_adapter(model, tmp_path / "adapter"))
    assert changed(snapshot(model), loaded) == []


@pytest.mark.parametrize("name, by_word", [("modernbert", True), ("gpt2", True), ("distilbert", True), ("distilbert", False), ("roberta", False), ("gpt2", False), ("sentence", False)])
def test_peft_reads_the_adapter_file(checkpoints, texts, tagged, tmp_path, name, by_word):
    "Guards against a format of our own: peft puts the file on transformers' model, and gets the same logits."
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification
    task = tagged if by_word else texts
    source = TransferModel.from_pretrained(checkpoints / name, task)
    source.save_pretrained(tmp_path / "source")
    model = learned(source, task)
    save_adapter(model, tmp_path / "adapter")
    base = (AutoModelForTokenClassification if by_word else AutoModelForSequenceClassification).from_pretrained(tmp_path / "source").eval()
    with torch.inference_mode():
        tokens = model.prepare(list(task.test.inputs)[:4])
        ours, plain = model(tokens), base(**tokens).logits
        theirs = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()(**tokens).logits
    mask = tokens["attention_mask"].bool() if by_word else slice(None)
    torch.testing.assert_close(theirs[mask], ours[mask], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(plain[mask], ours[mask], atol=1e-2)


def test_an_adapter_for_other_weights_or_labels_is_refused(make_model, task, tmp_path):
    "Guards against factors that are added to weights they were not made for: another model, and nobody would notice."
    folder = save_adapter(learned(make_model(), task), tmp_path / "adapter")
    other = TransferModel(tiny_backbone(seed=1), task.label_names)
    renamed = TransferModel(tiny_backbone(), ["b", "a", "c"])
    for model, words in ((other, "other backbone weights"), (renamed, "other labels")):
        before = snapshot(model)
        with pytest.raises(ValueError, match=words): load_adapter(model, folder)
        assert type(model) is TransferModel and changed(before, model) == []
    with pytest.raises(ValueError, match="has adapters already"): load_adapter(learned(make_model(), task), folder)


def test_damaged_and_missing_adapter_files_are_named(make_model, task, tmp_path):
    with pytest.raises(FileNotFoundError, match="adapter_model.safetensors"): load_adapter(make_model(), tmp_path)
    folder = save_adapter(learned(make_model(), task), tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == 2 and config["modules_to_save"] == ["head"]
    (folder / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read as weights"): load_adapter(make_model(), folder)


@pytest.mark.parametrize("function", [merge_adapters, lambda model: save_adapter(model, "nowhere")])
def test_without_adapters_there_is_nothing_to_merge_or_save(make_model, function):
    with pytest.raises(ValueError, match="no adapters"): function(make_model())


def test_a_broken_product_is_not_merged(make_model, task):
    "Guards against a model of NaN."
    model = learned(make_model(), task)
    with torch.no_grad(): next(w for key, w in model.named_parameters() if ".lora_B" in key).fill_(math.nan)
    with pytest.raises(ValueError, match="NaN"): merge_adapters(model)


# --- The update ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2])
def test_the_update_has_the_rank_that_was_asked_for(make_model, task, rank):
    "Guards against an update that is measured from elsewhere than the source, or without the products."
    source = make_model()
    found = weight_updates(learned(make_model(), task, LoRA(rank=rank, lr=1e-2)), source)
    assert list(found) == adaptable(source)
    assert {torch.linalg.matrix_rank(update.double(), rtol=1e-4).item() for update in found.values()} == {rank}
    everything = weight_updates(learned(make_model(), task, FullFineTuning()), source)
    assert max(torch.linalg.matrix_rank(update).item() for update in everything.values()) > rank
    assert not any(update.any() for update in weight_updates(make_model(), source).values())


def test_weights_that_were_there_before_can_be_adapted_by_peft_alone(make_model, task):
    "Guards against a parity that holds only because both sides are ours: peft's own injection gives the same names."
    ours, theirs = make_model(), make_model()
    FAST.prepare(ours)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=adaptable(make_model())), theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
