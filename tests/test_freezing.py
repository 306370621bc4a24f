"""Partial freezing: every weight in one group, from input to output, and what is below stays exactly as it was."""
import pytest
import torch
from torch import nn

from ftlearn.adaptation.freezing import (BiasesAndNorms, DiscriminativeRates, FullFineTuning, GradualUnfreezing, LinearProbe, OneGroup, PartialFreezing,
                                         interpolate, layer_groups)
from ftlearn.transfer.model import finetune, remove_head

from conftest import changed, snapshot

VISION = ["alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mobilenet_v3_small", "resnet18", "squeezenet1_0",
          "swin_t", "vgg11_bn", "vit_b_16"]
QUICK = dict(steps=4, batch_size=8)


def vision(name):
    "A classifier of torchvision without its head"
    import torchvision
    return remove_head(torchvision.models.get_model(name, weights=None, **({"init_weights": False} if name in ("googlenet", "inception_v3") else {})))


def text(name):
    "An encoder or decoder of transformers with three layers"
    import transformers
    layers = {"Bert": "num_hidden_layers", "GPT2": "n_layer", "DistilBert": "n_layers", "ModernBert": "num_hidden_layers"}
    return getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**{layers[name]: 3}))


@pytest.mark.parametrize("make, name", [(vision, name) for name in VISION] + [(text, name) for name in ("Bert", "DistilBert", "GPT2", "ModernBert")],
                         ids=lambda value: value if isinstance(value, str) else "")
def test_every_weight_is_in_exactly_one_group(make, name):
    "Guards against weights that nobody freezes or unfreezes, in the architectures that people use."
    with torch.device("meta"): backbone = make(name)
    groups = layer_groups(backbone)
    grouped = [id(w) for _, weights in groups for w in weights]
    assert sorted(grouped) == sorted({id(w) for w in backbone.parameters()})
    assert len(groups) >= 3 and len({name for name, _ in groups}) == len(groups)
    assert all(any(w.ndim >= 2 for w in weights) for _, weights in groups), "a group of scales only"


@pytest.mark.parametrize("make, name, first, last", [(vision, "resnet18", "conv1", "layer4.1"), (vision, "vgg11_bn", "features.0", "classifier.3"),
                                                     (text, "Bert", "embeddings", "pooler"), (text, "DistilBert", "embeddings", "transformer.layer.2")])
def test_groups_run_from_input_to_output(make, name, first, last):
    "Guards against freezing the last layers and training the first."
    with torch.device("meta"): names = [group for group, _ in layer_groups(make(name))]
    assert names[0].startswith(first) and names[-1].startswith(last), names
    numbers = [group for group in names if "layer." in group]
    assert numbers == sorted(numbers)


def test_shared_weights_are_in_one_group():
    "Guards against a weight that one group freezes and another one unfreezes."
    first, last = nn.Linear(4, 4), nn.Linear(4, 4)
    last.weight = first.weight
    (_, a), (_, b) = layer_groups(nn.Sequential(first, nn.Sequential(nn.Linear(4, 4)), last))
    assert [id(w) for w in a] == [id(first.weight), id(first.bias)] and id(last.bias) in map(id, b)


def test_a_network_without_weights_has_no_groups():
    "Guards against a partial freezing of nothing."
    with pytest.raises(ValueError, match="no weights"): layer_groups(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize("blocks", [0, 1, 2, 3])
def test_only_the_last_blocks_change(make_model, task, blocks):
    "Guards against frozen blocks whose weights or statistics move, and against unfrozen ones that the optimizer lacks."
    model = make_model()
    names = {id(w): f"backbone.{name}" for name, w in model.backbone.named_parameters()}
    groups = [[names[id(w)] for w in weights] for _, weights in layer_groups(model.backbone)]
    learning = sum(groups[len(groups) - blocks:], []) + ["head.weight", "head.bias"]
    before = snapshot(model)
    result = finetune(model, task, PartialFreezing(blocks=blocks), **QUICK)
    assert set(changed(before, model)) == set(learning)
    assert result.trained_weights == sum(before[name].numel() for name in learning)


def test_frozen_blocks_of_a_network_from_scratch_do_not_move(make_model, task):
    "Guards against statistics that move in blocks which do not learn."
    model = make_model(pretrained=False)
    before = snapshot(model)
    finetune(model, task, PartialFreezing(blocks=1), **QUICK)
    assert not [name for name in changed(before, model) if name.startswith("backbone.stem")]
    assert [name for name in changed(before, model) if "running_mean" in name]


def test_all_blocks_are_full_fine_tuning(make_model, task):
    "Guards against a block that belongs to no count."
    partial, full = make_model(), make_model()
    finetune(partial, task, PartialFreezing(blocks=len(layer_groups(partial.backbone))), **QUICK)
    finetune(full, task, FullFineTuning(), **QUICK)
    assert changed(snapshot(full), partial) == []


def test_no_block_is_a_linear_probe(make_model, task):
    "Guards against two names for two results."
    partial, probe = make_model(), make_model()
    finetune(partial, task, PartialFreezing(blocks=0), **QUICK)
    finetune(probe, task, LinearProbe(), **QUICK)
    assert changed(snapshot(probe), partial) == []


@pytest.mark.parametrize("blocks", [-1, 99])
def test_an_impossible_number_of_blocks_is_refused(make_model, task, blocks):
    "Guards against a negative index that freezes something else."
    with pytest.raises(ValueError, match="layer groups"): finetune(make_model(), task, PartialFreezing(blocks=blocks), **QUICK)


# --- Slowly, one after the other, one alone --------------------------------------------------------------------------


def moved_groups(before, model):
    "The layer groups whose weights are not bitwise what they were, by number, and the head as −1"
    names = {id(w): name for name, w in model.named_parameters()}
    groups = [*layer_groups(model.backbone), ("head", list(model.head.parameters()))]
    moved = changed(before, model)
    return {i if name != "head" else -1 for i, (name, weights) in enumerate(groups) if any(names[id(w)] in moved for w in weights)}


@pytest.mark.parametrize("every, steps, untouched", [(2, 2, "all"), (2, 3, "all but the last"), (1, 30, "none")])
def test_gradual_unfreezing_goes_from_the_output_to_the_input(make_model, task, every, steps, untouched):
    model = make_model()
    before, last = snapshot(model), len(layer_groups(model.backbone)) - 1
    finetune(model, task, GradualUnfreezing(every=every), steps=steps, batch_size=8, warmup=0)
    assert moved_groups(before, model) == {"all": {-1}, "all but the last": {-1, last}, "none": {-1, *range(last + 1)}}[untouched]


def test_gradual_unfreezing_resumes_where_it_was(make_model, task, tmp_path):
    "Guards against a schedule that starts again: what was free would be frozen once more."
    def run(model, **options): return finetune(model, task, GradualUnfreezing(every=3), steps=12, batch_size=8, measure_every=4, **options)
    whole = make_model()
    run(whole)
    stopped = make_model()
    class Stop(Exception): pass
    looks = []
    def interrupt(model, split):
        from ftlearn.training import evaluate
        looks.append(1)
        if len(looks) == 2: raise Stop
        return evaluate(model, split)
    strategy = GradualUnfreezing(every=3)
    strategy.prepare(stopped)
    from ftlearn.training import fit
    options = dict(steps=12, batch_size=8, measure_every=4, checkpoint=tmp_path / "run.pt")
    with pytest.raises(Stop): fit(stopped, task.train, task.validation, optimizer=strategy.optimizer(stopped), measure=interrupt, **options)
    resumed = make_model()
    strategy.prepare(resumed)
    fit(resumed, task.train, task.validation, optimizer=strategy.optimizer(resumed), **options)
    assert changed(snapshot(whole), resumed) == []


def test_discriminative_rates_fall_towards_the_input(make_model):
    model = make_model()
    optimizer = DiscriminativeRates(lr=1e-2, factor=2.0).optimizer(model)
    rates = [group["lr"] for group in optimizer.param_groups[:-1]]
    assert rates == pytest.approx([1e-2 / 2**depth for depth in range(len(rates) - 1, -1, -1)])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_bitfit_changes_vectors_only(make_model, task):
    model = make_model()
    before = snapshot(model)
    finetune(model, task, BiasesAndNorms(lr=1e-2), **QUICK)
    moved = set(changed(before, model))
    assert moved == {name for name, w in model.named_parameters() if w.ndim < 2 or name.startswith("head")}


@pytest.mark.parametrize("group", [-1, 0, 1])
def test_one_group_is_one_group(make_model, task, group):
    model = make_model()
    before = snapshot(model)
    finetune(model, task, OneGroup(group, lr=1e-2), **QUICK)
    assert moved_groups(before, model) == {group}


def test_one_group_that_is_not_there_is_refused(make_model, task):
    with pytest.raises(ValueError, match="layer groups 0 to"): finetune(make_model(), task, OneGroup(99), **QUICK)


def test_the_ends_of_the_line_are_the_two_models(make_model, task):
    source, tuned = make_model(), make_model()
    finetune(tuned, task, FullFineTuning(), **QUICK)
    assert changed(snapshot(source), interpolate(source, tuned, 0.0)) == [] == changed(snapshot(tuned), interpolate(source, tuned, 1.0))
    middle, a, b = interpolate(source, tuned, 0.5).head.weight, source.head.weight, tuned.head.weight
    assert torch.allclose(middle, (a + b) / 2)
    with pytest.raises(ValueError, match="no line between them"): interpolate(nn.Linear(2, 3), nn.Linear(2, 4), 0.5)
