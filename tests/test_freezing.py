"""Partial freezing: every weight in one group, from input to output, and what is below stays exactly as it was."""
import pytest
import torch
from torch import nn

from ftlearn.adaptation.freezing import (BiasesAndNorms, DiscriminativeRates, FullFineTuning, GradualUnfreezing, LinearProbe, MovingStatistics, OneGroup,
                                         PairsThenProbe, PartialFreezing, ProbeThenFineTuning, interpolate, layer_groups, pair_loss)
from ftlearn.adaptation.proximal import L2SP
from ftlearn.data import Split
from ftlearn.training import fit
from ftlearn.transfer.model import TransferModel, extract_features, finetune, remove_head

from conftest import changed, snapshot, tiny_backbone

VISION = ["alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mobilenet_v3_small", "resnet18", "squeezenet1_0",
          "swin_t", "vgg11_bn", "vit_b_16"]
QUICK = dict(steps=4, batch_size=8)


def vision(name):
    "A classifier of torchvision without its head"
    import torchvision
    return remove_head(torchvision.models.get_model(name, weights=None, **({"init_weights": False} if name in ("googlenet", "inception_v3") else {})))


BERT = dict(num_hidden_layers=3, hidden_size=16, num_attention_heads=2, intermediate_size=32)
TEXT = {"Bert": BERT, "DistilBert": dict(n_layers=3, dim=16, n_heads=2, hidden_dim=32), "Roberta": BERT, "GPT2": dict(n_layer=3, n_embd=16, n_head=2),
        "ModernBert": BERT | dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)}


def text(name):
    "A small encoder or decoder of transformers with three layers"
    import transformers
    return getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(vocab_size=50, **TEXT[name]))


@pytest.mark.parametrize("make, name", [(vision, name) for name in VISION] + [(text, name) for name in TEXT], ids=lambda value: value if isinstance(value, str) else "")
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


CALLED = ["resnet18", "squeezenet1_0", "efficientnet_b0", "convnext_tiny", "vit_b_16"]


@pytest.mark.parametrize("make, name", [(vision, name) for name in CALLED] + [(text, name) for name in TEXT], ids=lambda value: value if isinstance(value, str) else "")
def test_groups_are_in_the_order_in_which_they_are_called(make, name):
    "Guards against an order of definition that is not the one of the data's way: the wrong end would be frozen."
    with torch.device("meta" if make is vision else "cpu"): network, images = make(name).eval(), torch.zeros(1, 3, 224, 224)
    called, names = {}, {module: name for name, module in network.named_modules()}
    def note(module, args): called.setdefault(names[module], len(called))
    for module in names: module.register_forward_pre_hook(note)
    if make is vision: network(images)
    else: network(input_ids=torch.tensor([[1, 5, 6, 2]]), attention_mask=torch.ones(1, 4, dtype=torch.long))
    def place(owner):
        while owner not in called: owner = owner.rpartition(".")[0]       # a part that its parent reads without calling it
        return called[owner]
    places = {id(w): place(name.rpartition(".")[0]) for name, w in network.named_parameters()}
    ways = [[places[id(w)] for w in weights] for _, weights in layer_groups(network)]
    assert all(max(before) < min(after) for before, after in zip(ways, ways[1:])), ways


class Backwards(nn.Module):
    "Its last part is defined before its first one, and nothing is in a list"

    def __init__(self):
        super().__init__()
        self.config, self.last, self.first = None, nn.Linear(8, 8), nn.Linear(64, 8)

    def forward(self, images): return self.last(self.first(images.flatten(1)[:, :64]).relu())


def test_groups_can_be_given(task):
    "Guards against networks whose groups nobody can put in order."
    backbone = tiny_backbone()
    backbone.module = Backwards()
    model = TransferModel(backbone, task.label_names)
    assert [name for name, _ in layer_groups(model.backbone)] == ["last", "first"]
    def groups(module): return [(name, list(module.get_submodule(name).parameters())) for name in ("first", "last")]
    before = snapshot(model)
    finetune(model, task, PartialFreezing(1, groups=groups), **QUICK)
    assert set(changed(before, model)) == {"backbone.last.weight", "backbone.last.bias", "head.weight", "head.bias"}
    assert "groups" not in repr(PartialFreezing(1, groups=groups))             # an address would make every run another one


STRATEGIES = [PartialFreezing, DiscriminativeRates, GradualUnfreezing, OneGroup]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_group_is_not_enough(make_model, task, strategy):
    "Guards against a strategy that has nothing to choose between and does not say so."
    def whole(module): return [("all", list(module.parameters()))]
    with pytest.raises(ValueError, match="found 1 layer group in ResidualCNN.*pass groups="): finetune(make_model(), task, strategy(groups=whole), **QUICK)


@pytest.mark.parametrize("groups", [lambda module: layer_groups(module)[1:], lambda module: layer_groups(module) + layer_groups(module)[:1]], ids=["missing", "twice"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_given_groups_hold_each_weight_once(make_model, task, strategy, groups):
    "Guards against a weight that is free although nobody freed it."
    with pytest.raises(ValueError, match="must be in exactly one layer group"): finetune(make_model(), task, strategy(groups=groups), **QUICK)


def test_a_dictionary_of_blocks_is_opened():
    "Guards against blocks that count as one."
    blocks = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    assert [name for name, _ in layer_groups(nn.Sequential(nn.Linear(4, 4), blocks))] == ["0", "1.a", "1.b"]


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
    assert changed(snapshot(source), interpolate(source, tuned, 0.0, head=True)) == [] == changed(snapshot(tuned), interpolate(source, tuned, 1.0, head=True))
    middle, a, b = interpolate(source, tuned, 0.5, head=True).head.weight, source.head.weight, tuned.head.weight
    assert torch.allclose(middle, (a + b) / 2)
    with pytest.raises(ValueError, match="no line between them"): interpolate(nn.Linear(2, 3), nn.Linear(2, 4), 0.5)


def test_a_tied_weight_is_averaged_once():
    "Guards against an average of an average, where a state dict lists one tensor under two names."
    def tied(value):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        nn.init.constant_(model[0].weight, value)
        return model
    mixed = interpolate(tied(0.0), tied(1.0), 0.25)
    assert mixed[0].weight is mixed[1].weight and torch.equal(mixed[0].weight, torch.full((3, 3), 0.25))


def test_a_head_that_was_never_trained_is_not_averaged(make_model, task):
    "Guards against a mixture of a trained head with a random one."
    source, tuned = make_model(), make_model()
    nn.init.normal_(source.head.weight)
    finetune(tuned, task, FullFineTuning(), **QUICK)
    mixed = interpolate(source, tuned, 0.5)
    assert torch.equal(mixed.head.weight, tuned.head.weight) and not torch.equal(mixed.head.weight, source.head.weight)
    for ours, a, b in zip(mixed.pretrained_weights(), source.pretrained_weights(), tuned.pretrained_weights()): assert torch.allclose(ours, (a + b) / 2)
    source.label_names = ["x", "y", "z"]
    with pytest.raises(ValueError, match="different labels.*head=False"): interpolate(source, tuned, 0.5, head=True)


def test_a_new_layer_below_the_head_is_not_averaged(make_model):
    "Guards against a random layer in the mixture, in architectures that have one of their own below the head."
    source, tuned = make_model(), make_model()
    name, weight = next((name, w) for name, w in tuned.backbone.named_parameters() if w.ndim > 1)
    tuned.fresh = {name}
    nn.init.ones_(weight)
    mixed = interpolate(source, tuned, 0.0)
    assert changed(snapshot(source.backbone), mixed.backbone) == [name]


def test_frozen_statistics_are_the_source_s_at_every_share(make_model, task):
    source, tuned = make_model(), make_model()
    finetune(tuned, task, FullFineTuning(lr=1e-2), **QUICK)
    moved = changed(snapshot(source.backbone), interpolate(source, tuned, 0.3).backbone)
    assert moved and not [name for name in moved if "running" in name]


# --- Statistics, and the head first ----------------------------------------------------------------------------------


class MovingL2SP(MovingStatistics, L2SP): pass


@pytest.mark.parametrize("strategy, moves", [(FullFineTuning(), False), (MovingStatistics(), True), (L2SP(1.0), False), (MovingL2SP(1.0), True)],
                         ids=lambda value: getattr(value, "name", ""))
def test_statistics_move_where_they_are_asked_to(make_model, task, strategy, moves):
    "Guards against a comparison of frozen with frozen, and against a pull that is lost by it."
    model = make_model()
    before = snapshot(model)
    finetune(model, task, strategy, **QUICK)
    assert any("running_mean" in name for name in changed(before, model)) == moves
    assert getattr(strategy, "strength", 1.0) == 1.0


def test_moving_statistics_are_pulled_like_frozen_ones(make_model, task):
    "Guards against a base class that hides the other one's optimizer."
    model = make_model()
    before = snapshot(model)
    finetune(model, task, MovingL2SP(1e9, lr=1e-3), **QUICK)
    assert all(torch.allclose(w, before[f"backbone.{name}"], atol=1e-6) for name, w in model.backbone.named_parameters())


def test_a_probe_comes_first(make_model, task):
    "Guards against a second part that begins with a random head, or a first one that touches the backbone."
    probed, by_hand = make_model(), make_model()
    finetune(probed, task, ProbeThenFineTuning(lr=1e-9, head_lr=1e-9, probe_steps=40), **QUICK)
    fit(by_hand.head, extract_features(by_hand, task.train), steps=40, lr=1e-2)
    assert torch.allclose(probed.head.weight, by_hand.head.weight, atol=1e-5)
    assert all(w.requires_grad for w in probed.parameters())
    before = snapshot(probed)
    finetune(probed, task, ProbeThenFineTuning(lr=1e-2), **QUICK)
    assert {name.split(".")[0] for name in changed(before, probed)} == {"backbone", "head"}


def test_a_probe_first_where_a_layer_below_the_head_is_new(make_model, task):
    "Guards against features of a layer that is still random."
    model = make_model()
    name = [name for name, w in model.backbone.named_parameters() if w.ndim > 1][-1]
    model.fresh = {name}
    before = snapshot(model)
    finetune(model, task, ProbeThenFineTuning(lr=1e-12, head_lr=1e-12, probe_steps=10), **QUICK)
    moved = [n for n, value in model.state_dict().items() if not torch.allclose(value, before[n], atol=1e-6)]
    assert sorted(moved) == sorted([f"backbone.{name}", "head.weight", "head.bias"])


def test_pairs_change_the_backbone_and_leave_its_statistics(make_model, task):
    "Guards against a head that takes part in the first part, and against a backbone that the second one changes."
    model, again = make_model(), make_model()
    before = snapshot(model)
    finetune(model, task, PairsThenProbe(lr=1e-2, pair_steps=4), **QUICK)
    finetune(again, task, PairsThenProbe(lr=1e-2, head_lr=1e-9, pair_steps=4), **QUICK)
    assert {name.split(".")[0] for name in changed(before, model)} == {"backbone", "head"}
    assert torch.allclose(before["head.weight"], again.head.weight, atol=1e-6)
    assert changed(snapshot(model.backbone), again.backbone) == []
    assert not any("running" in name for name in changed(before, model))
    assert [name for name, w in model.named_parameters() if w.requires_grad] == ["head.weight", "head.bias"]


def test_pairs_are_used_as_labels_would_be(make_model, task):
    "Drawn together by classes, training rows come nearer to those of their own."
    model = make_model()
    def loss(): return pair_loss(extract_features(model, task.train).inputs, task.train.labels).item()
    before = loss()
    finetune(model, task, PairsThenProbe(lr=1e-2, pair_steps=60), **QUICK)
    assert loss() < 0.7 * before


@pytest.mark.parametrize("labels", [[0], [0, 0, 0], [0, 1, 2], [0, 1, 0]], ids=str)
def test_a_batch_may_lack_pairs_of_a_kind(labels):
    "Guards against the mean over nothing."
    features = torch.randn(len(labels), 4, requires_grad=True)
    loss = pair_loss(features, torch.tensor(labels))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(features.grad).all() and (loss > 0) == (len(labels) > 1)


@pytest.mark.parametrize("name, rows, loss", [("one vector a class", [[1, 0], [1, 0], [0, 3]], 0), ("all alike", [[1, 1], [1, 1], [1, 1]], 0.5), ("all at right angles", [[1, 0, 0], [0, 1, 0], [0, 0, 1]], 0.5)])
def test_the_loss_of_pairs_at_its_ends(name, rows, loss):
    assert pair_loss(torch.tensor(rows, dtype=torch.float), torch.tensor([0, 0, 1])).item() == pytest.approx(loss, abs=1e-6)


def test_pairs_of_words_are_refused(make_model, task):
    words = Split(task.train.inputs[:2], [[0, 1], [2]])
    with pytest.raises(ValueError, match="one label each"): PairsThenProbe().objective(make_model(), words)
