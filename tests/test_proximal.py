"""The pull towards the source: right in closed form, present in every loop, and never towards weights that move along."""
import copy
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.optimize import minimize
from torch import nn

from ftlearn.adaptation.freezing import LinearProbe, PairsThenProbe
from ftlearn.adaptation.proximal import (AT_ONCE, EWC, L1SP, L2SP, PIECE, FunctionSP, GroupSP, ProximalPull, WithSource, bundles, fisher, l2sp_penalty,
                                         layer_movement, load_difference, prox_l1, prox_norm, prox_squared, save_difference, _with_distance)
from ftlearn.data import Task
from ftlearn.pretraining.autoencoders import Preprocess
from ftlearn.training import adamw, warmup_cosine
from ftlearn.transfer.model import Backbone, FullFineTuning, TransferModel, finetune

from conftest import changed, improving, patterns, snapshot

OPTIMIZERS = {"SGD": lambda groups: torch.optim.SGD(groups, lr=0.05), "momentum": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9),
              "Adam": lambda groups: torch.optim.Adam(groups, lr=0.05), "AdamW": lambda groups: adamw(groups, lr=0.05),
              "RMSprop": lambda groups: torch.optim.RMSprop(groups, lr=0.05)}
OPTIMIZERS |= {name: lambda groups, name=name: getattr(torch.optim, name)(groups, lr=0.05) for name in ("Adadelta", "Adagrad", "Adamax", "NAdam", "RAdam")}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
numbers = st.floats(-100, 100, width=32)
tensors = st.tuples(array_shapes(min_dims=0, max_dims=3, max_side=4), st.sampled_from([np.float32, np.float64])).flatmap(
    lambda kind: st.tuples(*[arrays(kind[1], kind[0], elements=numbers).map(torch.from_numpy)] * 3))
strengths = st.floats(0, 1e3)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def learn(model, optimizer, steps, penalty=lambda: 0.0, schedule=None):
    "A plain PyTorch loop on data of its own"
    rng = torch.Generator().manual_seed(1)
    for _ in range(steps):
        inputs, labels = torch.randn(16, 6, generator=rng), torch.randint(3, (16,), generator=rng)
        optimizer.zero_grad()
        (F.cross_entropy(model(inputs), labels) + penalty()).backward()
        optimizer.step()
        if schedule: schedule.step()


def flat(tensors): return torch.cat([t.detach().flatten() for t in tensors])


# --- The operator ----------------------------------------------------------------------------------------------------


OPERATORS = {prox_squared: lambda d: (d**2).sum() / 2, prox_norm: lambda d: math.sqrt(len(d)) * np.linalg.norm(d), prox_l1: lambda d: np.abs(d).sum()}
every_operator = pytest.mark.parametrize("prox", OPERATORS, ids=lambda prox: prox.__name__)


@every_operator
@given(pairs=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4), strength=st.floats(0, 50), other=arrays(np.float64, 4, elements=st.floats(-1, 1)))
def test_the_closed_form_is_the_minimum(prox, pairs, strength, other):
    "Guards against a wrong sign, a factor of two, or η or λ counted twice. The objective is strongly convex: what no neighbour undercuts is the minimum."
    proposal, source = np.array(pairs, dtype=np.float64).T
    def objective(p): return 0.5 * ((p - proposal)**2).sum() + strength * OPERATORS[prox](p - source)
    found = prox(torch.from_numpy(proposal), torch.from_numpy(source), strength).numpy()
    least = objective(found)
    for size in (1.0, 1e-2, 1e-4):
        for direction in (other[:len(found)], proposal - found, source - found, np.ones_like(found)):
            assert least <= objective(found + size * direction) + 1e-9 * (1 + abs(least))


def elastic(proposal, source, strength):
    "One step of a pull with an importance of 1, 2, ... for the numbers"
    w = nn.Parameter(proposal.clone())
    w.grad = torch.zeros_like(w)
    optimizer = torch.optim.SGD([w], lr=1.0)
    ProximalPull([w], strength, [source], importance=[torch.arange(1.0, len(w) + 1, dtype=w.dtype)]).attach(optimizer)
    optimizer.step()
    return w.detach()


small = st.floats(-3, 3, width=32)


@pytest.mark.parametrize("prox, penalty", [*OPERATORS.items(), (elastic, lambda d: (np.arange(1, len(d) + 1) * d**2).sum() / 2)], ids=lambda f: f.__name__)
@given(pairs=st.lists(st.tuples(small, small), min_size=1, max_size=2), strength=st.floats(0, 2))
def test_a_numerical_minimiser_finds_the_same(prox, penalty, pairs, strength):
    "Guards against a minimum that is only local to the directions tried."
    proposal, source = np.array(pairs, dtype=np.float64).T
    def objective(p): return 0.5 * ((p - proposal)**2).sum() + strength * penalty(p - source)
    best = minimize(objective, (proposal + source) / 2, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-14, "maxiter": 2000}).x
    assert np.allclose(prox(torch.from_numpy(proposal), torch.from_numpy(source), strength).numpy(), best, atol=1e-4)


@every_operator
@given(values=tensors, strength=strengths)
def test_the_operator_is_firmly_nonexpansive(prox, values, strength):
    "Guards against a step that could spread two proposals apart."
    p, q, source = (v.double() for v in values)
    moved, apart = prox(p, source, strength) - prox(q, source, strength), p - q
    assert (moved * moved).sum() <= (moved * apart).sum() * (1 + 1e-9) + 1e-9


@every_operator
@given(values=tensors, strength=strengths)
def test_the_operator_keeps_shape_dtype_and_lies_between(prox, values, strength):
    "Guards against a result beyond the source, and against a lost precision."
    p, source, _ = values
    result = prox(p, source, strength)
    assert result.shape == p.shape and result.dtype == p.dtype
    slack = 1e-4 * (1 + p.abs().max() + source.abs().max()) if p.numel() else 0
    assert ((result >= torch.minimum(p, source) - slack) & (result <= torch.maximum(p, source) + slack)).all()


@every_operator
@given(values=tensors)
def test_no_strength_is_the_proposal_and_an_infinite_one_the_source(prox, values):
    "Guards against a pull where none was asked for, and against one that never arrives."
    p, source, _ = values
    assert torch.equal(prox(p, source, 0.0), p)
    assert torch.allclose(prox(p, source, 1e12), source, atol=1e-4)


@given(tensors, st.floats(0, 10))
def test_a_result_can_be_written_over_the_proposal(values, strength):
    "Guards against an operator that reads what it has overwritten."
    p, source, _ = values
    for prox in OPERATORS:
        expected, mine = prox(p, source, strength), p.clone()
        prox(mine, source, strength, out=mine)
        assert torch.equal(mine, expected)


def many(dtype=torch.float32):
    "Proposals and sources of many shapes: larger than a bundle, tiny, empty, a single number, and not in one piece of memory."
    rng = torch.Generator().manual_seed(0)
    shapes = [(2 * PIECE + 7,), (3, 4), (), (0, 5), (300, 400), (2, 3, 4, 5)]
    source = [torch.randn(shape, generator=rng).to(dtype) for shape in shapes]
    source[-1] = source[-1].to(memory_format=torch.channels_last)
    return [(s + size * torch.randn(s.shape, generator=rng)).to(dtype) for s, size in zip(source, (0.01, 1, 1, 1, 0.1, 0.1))], source


@every_operator
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("strength", [0.001, 0.05, 2.0])
def test_all_at_once_is_one_after_the_other(prox, dtype, strength):
    "Guards against a norm of each piece, a piece of another tensor, and what lies in memory in another order."
    proposals, source = many(dtype)
    expected = [prox(p, s, strength) for p, s in zip(proposals, source)]
    AT_ONCE[prox](list(bundles(proposals, source)), strength)
    for found, e, s in zip(proposals, expected, source):
        assert torch.allclose(found, e, rtol=1e-2 if dtype.itemsize == 2 else 1e-5, atol=1e-2 if dtype.itemsize == 2 else 1e-5)
        if prox is not prox_squared: assert torch.equal(found == s, e == s)             # what is sent back is sent back bit by bit


def test_bundles_hold_every_number_once_and_no_more_than_fit():
    "Guards against a piece that is lost, doubled, or copied."
    proposals, source = many()
    made = list(bundles(proposals, source))
    assert sum(b.numbers for b in made) == sum(p.numel() for p in proposals) and max(b.numbers for b in made) <= PIECE and len(made) > 2
    for b in made:
        for w in b.weights: w.add_(1)
    assert all(torch.allclose(p, q + 1) for p, q in zip(proposals, many()[0]))


def test_weights_that_get_other_memory_are_still_pulled():
    "Guards against a pull on the memory that weights had before they were moved."
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    ProximalPull(model.parameters(), 1.0, reference=[torch.zeros_like(w) for w in model.parameters()]).attach(optimizer)
    for expected in (2, 4):
        for w in model.parameters(): w.data, w.grad = w.data.clone(), torch.zeros_like(w)
        optimizer.step()
        assert torch.allclose(flat(model.parameters()), flat(network().parameters()) / expected)


def test_an_operator_of_ones_own():
    "Guards against a pull that knows only the operators it came with."
    def halfway(proposal, source, strength, out=None): return torch.lerp(proposal, source, 0.5, out=out)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    ProximalPull(model.parameters(), 1.0, reference=[torch.zeros_like(w) for w in model.parameters()], prox=halfway).attach(optimizer)
    for w in model.parameters(): w.grad = torch.zeros_like(w)
    optimizer.step()
    assert torch.allclose(flat(model.parameters()), flat(network().parameters()) / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_near_is_sent_back_bit_by_bit(dtype):
    "Guards against a source that is only nearly reached."
    source = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    near = (source.float() + 0.05).to(dtype)
    for prox in (prox_norm, prox_l1): assert torch.equal(prox(near, source, 0.1), source)


@pytest.mark.parametrize("strength", [-0.1, math.nan, math.inf])
def test_an_impossible_strength_is_refused(strength):
    "Guards against weights that are pushed away, or become NaN."
    with pytest.raises(ValueError, match="strength"): ProximalPull(network().parameters(), strength)


@pytest.mark.parametrize("make", [torch.optim.Rprop, torch.optim.ASGD, torch.optim.LBFGS, torch.optim.Adafactor, lambda groups: torch.optim.Adagrad(groups, lr_decay=0.1)])
def test_an_optimizer_whose_steps_are_not_its_rate_is_refused(make):
    "Guards against a pull that does not keep pace with the steps."
    model = network()
    with pytest.raises(ValueError, match="another length"): ProximalPull(model.parameters(), 1.0).attach(make(model.parameters()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_two_bytes_are_refused(dtype):
    "Guards against a pull that is lost in rounding."
    with pytest.raises(ValueError, match="float32"): ProximalPull(network().to(dtype).parameters(), 1.0)


@pytest.mark.parametrize("value", [-0.1, math.nan])
def test_an_impossible_importance_is_refused(value):
    "Guards against numbers that are pushed away, or become NaN."
    model = network()
    with pytest.raises(ValueError, match="importance"): ProximalPull(model.parameters(), 1.0, importance=[torch.full_like(w, value) for w in model.parameters()])


def test_nothing_to_pull():
    "Guards against a generator that was used up before, and against a distance of nothing."
    weights = network().parameters()
    list(weights)
    with pytest.raises(ValueError, match="used up"): ProximalPull(weights, 1.0)
    assert ProximalPull(network().requires_grad_(False).parameters(), 1.0).distance() == 0


def test_weights_that_join_later_are_said():
    "Guards against a pull that leaves out what was unfrozen, or added to the optimizer, after it was made."
    model = network()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ProximalPull(model.parameters(), 1.0).attach(optimizer)
    learn(model, optimizer, 1)
    model[0].requires_grad_(True)
    with pytest.raises(ValueError, match="frozen when"): learn(model, optimizer, 1)
    model = network()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    ProximalPull(model[0].parameters(), 1.0).attach(optimizer)
    optimizer.add_param_group({"params": model[2].parameters()})
    with pytest.raises(ValueError, match="add_param_group"): learn(model, optimizer, 1)


# --- The reference ---------------------------------------------------------------------------------------------------


@every_optimizer
def test_the_reference_does_not_move_along(make):
    "Guards against a reference taken without a copy, so that the distance is always zero and nothing is pulled."
    free, pulled = network(), network()
    pull = ProximalPull(pulled.parameters(), 5.0)
    optimizer = make(pulled.parameters())
    pull.attach(optimizer)
    start = flat(free.parameters())
    learn(free, make(free.parameters()), 10)
    learn(pulled, optimizer, 10)
    assert 0 < pull.distance() < 0.9 * (flat(free.parameters()) - start).norm()
    assert pull.distance() == pytest.approx((flat(pulled.parameters()) - start).norm().item(), rel=1e-5)


def test_a_given_reference_is_copied_too():
    "Guards against a reference that somebody changes later."
    model, other = network(), network(1)
    pull = ProximalPull(model.parameters(), 1.0, reference=other.parameters())
    distance = pull.distance()
    with torch.no_grad():
        for w in other.parameters(): w.zero_()
    assert pull.distance() == distance > 0
    with pytest.raises(ValueError, match="shapes"): ProximalPull(model.parameters(), 1.0, reference=[torch.zeros(1)])


def test_a_reference_of_another_precision():
    "Guards against a source that was stored in another number format."
    model = network()
    pull = ProximalPull(model.parameters(), 1e9, reference=[w.double() + 1 for w in model.parameters()])
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    pull.attach(optimizer)
    learn(model, optimizer, 1)
    assert torch.allclose(flat(model.parameters()), flat(network().parameters()) + 1, atol=1e-4)


def test_a_resumed_run_is_pulled_to_the_same_source():
    "Guards against a resumed run that is pulled to where it was interrupted."
    def make():
        model = network()
        optimizer = OPTIMIZERS["SGD"](model.parameters())
        return model, optimizer
    whole, optimizer = make()
    pull = ProximalPull(whole.parameters(), 5.0)
    pull.attach(optimizer)
    learn(whole, optimizer, 3)
    weights, state = snapshot(whole), pull.state_dict()
    learn(whole, optimizer, 3)
    resumed, optimizer = make()
    resumed.load_state_dict(weights)
    pull = ProximalPull(resumed.parameters(), 0.0)      # made too late: of weights that have moved
    pull.attach(optimizer)
    pull.load_state_dict(state)
    learn(resumed, optimizer, 3)
    assert changed(snapshot(whole), resumed) == []


def test_a_pull_of_weights_that_have_moved_is_said():
    "Guards against a plain loop that is resumed with a pull to where it was interrupted."
    def make():
        model = network()
        optimizer = OPTIMIZERS["AdamW"](model.parameters())
        return model, optimizer
    def resumed():
        model, optimizer = make()
        model.load_state_dict(weights)
        return model, optimizer, ProximalPull(model.parameters(), 5.0)
    model, optimizer = make()
    pull = ProximalPull(model.parameters(), 5.0)
    pull.attach(optimizer)
    learn(model, optimizer, 2)
    weights, state, pulled = snapshot(model), copy.deepcopy(optimizer.state_dict()), pull.state_dict()
    model, optimizer, late = resumed()
    late.attach(optimizer)
    optimizer.load_state_dict(state)
    with pytest.raises(ValueError, match="state_dict"): learn(model, optimizer, 1)
    model, optimizer, late = resumed()
    optimizer.load_state_dict(state)
    with pytest.raises(ValueError, match="take its place"): late.attach(optimizer)
    for first in ("optimizer", "pull"):
        model, optimizer, late = resumed()
        late.attach(optimizer)
        if first == "pull": late.load_state_dict(pulled)
        optimizer.load_state_dict(state)
        if first == "optimizer": late.load_state_dict(pulled)
        learn(model, optimizer, 1)


# --- Every optimizer and every loop ----------------------------------------------------------------------------------


@every_optimizer
def test_one_step_is_the_optimizers_step_and_then_the_operator(make):
    "Guards against a pull before the step, with another rate, or of half the weights."
    plain, pulled = network(), network()
    optimizer = make(pulled.parameters())
    ProximalPull(pulled.parameters(), 4.0).attach(optimizer)
    learn(plain, make(plain.parameters()), 1)
    learn(pulled, optimizer, 1)
    for w, proposal, source in zip(pulled.parameters(), plain.parameters(), network().parameters()):
        assert torch.allclose(w, prox_squared(proposal, source, 0.05 * 4.0), atol=1e-7)


def gap(lr):
    "How far closed form and loss term are apart after two steps of SGD"
    found = []
    for closed in (True, False):
        model = network().double()
        source = [w.detach() + 0.3 for w in model.parameters()]
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        if closed: ProximalPull(model.parameters(), 2.0, source).attach(optimizer)
        data = torch.Generator().manual_seed(1)
        for _ in range(2):
            inputs, labels = torch.randn(16, 6, generator=data, dtype=torch.float64), torch.randint(3, (16,), generator=data)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), labels)
            (loss if closed else loss + l2sp_penalty(model.parameters(), source, 2.0)).backward()
            optimizer.step()
        found.append(flat(model.parameters()))
    return (found[0] - found[1]).norm().item()


def test_closed_form_and_loss_term_agree_to_first_order():
    "Guards against a closed form of another penalty: half the rate, a quarter of the difference."
    assert gap(1e-3) / gap(5e-4) == pytest.approx(4, rel=0.05) and gap(1e-3) < 1e-4


@every_optimizer
def test_no_strength_is_no_pull_and_a_huge_one_holds(make):
    "Guards against a strength that is ignored."
    for strength in (0.0, 1e9):
        model, plain = network(), network()
        optimizer = make(model.parameters())
        ProximalPull(model.parameters(), strength).attach(optimizer)
        learn(model, optimizer, 3)
        learn(plain, make(plain.parameters()), 3)
        expected = network() if strength else plain
        assert torch.allclose(flat(model.parameters()), flat(expected.parameters()), atol=1e-6)


def test_each_group_is_pulled_with_its_own_rate():
    "Guards against one learning rate for all groups."
    model = network()
    optimizer = torch.optim.SGD([{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters(), "lr": 0.5}])
    ProximalPull(model.parameters(), 2.0, reference=[w + 1 for w in model.parameters()]).attach(optimizer)
    before = snapshot(model)
    for w in model.parameters(): w.grad = torch.zeros_like(w)
    optimizer.step()
    assert changed(before, model) == ["2.weight", "2.bias"]
    assert torch.allclose(model[2].weight, before["2.weight"] + 0.5)         # ηλ / (1 + ηλ), with ηλ = 1


def test_the_pull_follows_the_schedule():
    "Guards against the rate of the first step, or of the next one."
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = warmup_cosine(optimizer, 4, warmup=0.5)
    ProximalPull(model.parameters(), 1.0, reference=[torch.zeros_like(w) for w in model.parameters()]).attach(optimizer)
    before, expected = flat(model.parameters()), 1.0
    for _ in range(4):
        expected /= 1 + optimizer.param_groups[0]["lr"]
        for w in model.parameters(): w.grad = torch.zeros_like(w)
        optimizer.step()
        schedule.step()
    assert torch.allclose(flat(model.parameters()), before * expected, atol=1e-6)


def test_frozen_weights_are_left_alone():
    "Guards against a pull on weights that must not change."
    model = network()
    model[0].requires_grad_(False)
    optimizer = OPTIMIZERS["AdamW"]([w for w in model.parameters() if w.requires_grad])
    ProximalPull(model.parameters(), 5.0, reference=[w + 1 for w in model.parameters()]).attach(optimizer)
    before = snapshot(model)
    learn(model, optimizer, 3)
    assert changed(before, model) == ["2.weight", "2.bias"]


def test_weights_that_the_optimizer_lacks_are_said():
    "Guards against a pull that never happens."
    model = network()
    with pytest.raises(ValueError, match="only 2 of the 4"): ProximalPull(model.parameters(), 1.0).attach(torch.optim.SGD(model[0].parameters(), lr=1.0))


def test_the_handle_ends_the_pull():
    "Guards against two pulls where one was replaced."
    model, plain = network(), network()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    ProximalPull(model.parameters(), 100.0).attach(optimizer).remove()
    learn(model, optimizer, 3)
    learn(plain, OPTIMIZERS["SGD"](plain.parameters()), 3)
    assert changed(snapshot(plain), model) == []


def test_accumulated_gradients_are_pulled_once():
    "Guards against a pull for each small batch in place of each step."
    from accelerate import Accelerator
    from accelerate.state import GradientState
    accelerator = Accelerator(gradient_accumulation_steps=4, cpu=True)
    try:
        model = network()
        optimizer = OPTIMIZERS["SGD"](model.parameters())
        ProximalPull(model.parameters(), 20.0, reference=[torch.zeros_like(w) for w in model.parameters()]).attach(optimizer)   # ηλ = 1
        prepared, stepper = accelerator.prepare(model, optimizer)
        before = flat(model.parameters())
        for _ in range(8):
            with accelerator.accumulate(prepared):
                accelerator.backward(0 * prepared(torch.ones(1, 6)).sum())
                stepper.step()
                stepper.zero_grad()
        assert torch.allclose(flat(model.parameters()), before / 4, atol=1e-6)
    finally: GradientState._reset_state()


def test_the_pull_acts_in_transformers_trainer(tmp_path):
    "Guards against a pull that a wrapped optimizer does not perform."
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=2)
    options = TrainingArguments(tmp_path, max_steps=5, per_device_train_batch_size=4, gradient_accumulation_steps=2, report_to=[], use_cpu=True,
                                save_strategy="no", disable_tqdm=True, logging_strategy="no", seed=0)
    rows = [{"input_ids": torch.arange(8) + i, "labels": i % 2} for i in range(16)]
    distances = {}
    for strength in (0.0, 50.0):
        torch.manual_seed(0)
        model = BertForSequenceClassification(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        pull = ProximalPull(model.bert.parameters(), strength)
        pull.attach(optimizer)
        head = snapshot(model.classifier)
        Trainer(model, options, train_dataset=rows, optimizers=(optimizer, None)).train()
        distances[strength] = pull.distance()
        assert changed(head, model.classifier) == ["weight", "bias"]
    assert 0 < distances[50.0] < 0.8 * distances[0.0]


def test_the_operator_of_a_pull_is_applied_by_every_group():
    "Guards against a pull that is always the squared one."
    for prox in OPERATORS:
        model, plain = network(), network()
        optimizer = OPTIMIZERS["AdamW"](model.parameters())
        ProximalPull(model.parameters(), 0.4, prox=prox).attach(optimizer)
        learn(model, optimizer, 1)
        learn(plain, OPTIMIZERS["AdamW"](plain.parameters()), 1)
        for w, proposal, source in zip(model.parameters(), plain.parameters(), network().parameters()):
            assert torch.allclose(w, prox(proposal.detach(), source.detach(), 0.05 * 0.4), atol=1e-7)


def test_each_number_has_its_own_strength():
    "Guards against an importance that is ignored, or averaged."
    model = network()
    importance = [torch.rand(w.shape, generator=torch.Generator().manual_seed(i)) for i, w in enumerate(model.parameters())]
    importance[0][0], importance[0][1] = 0.0, 1e30                       # what may go anywhere, and what must stay
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    zeros = [torch.zeros_like(w) for w in model.parameters()]
    ProximalPull(model.parameters(), 4.0, reference=zeros, importance=importance).attach(optimizer)
    for w in model.parameters(): w.grad = torch.zeros_like(w)
    optimizer.step()
    for w, before, f in zip(model.parameters(), network().parameters(), importance): assert torch.allclose(w, before / (1 + 0.5 * 4.0 * f))
    with pytest.raises(ValueError, match="squared"): ProximalPull(model.parameters(), 1.0, prox=prox_l1, importance=importance)
    with pytest.raises(ValueError, match="importance"): ProximalPull(model.parameters(), 1.0, importance=importance[:-1])


@every_optimizer
def test_a_source_of_zero_is_weight_decay(make):
    "Guards against a pull that is not AdamW's decay, divided instead of multiplied: p / (1 + ηλ)."
    model, plain = network(), network()
    optimizer = make(model.parameters())
    ProximalPull(model.parameters(), 3.0, reference=[torch.zeros_like(w) for w in model.parameters()]).attach(optimizer)
    learn(model, optimizer, 1)
    learn(plain, make(plain.parameters()), 1)
    assert torch.allclose(flat(model.parameters()), flat(plain.parameters()) / (1 + 0.05 * 3.0), atol=1e-7)


def test_the_optimizer_says_what_pulls_it():
    "Guards against a run that is resumed with another source, strength or operator, and nobody notices."
    def said(strength=1.0, prox=prox_squared, shift=0.0, importance=None):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ProximalPull(model.parameters(), strength, reference=[w + shift for w in model.parameters()], prox=prox,
                     importance=importance and [torch.full_like(w, importance) for w in model.parameters()]).attach(optimizer)
        return optimizer.param_groups[0]["pull"]
    assert said() == said() and len({said(), said(2.0), said(prox=prox_l1), said(shift=1e-3), said(importance=1.0), said(importance=2.0)}) == 6


def pulled_and_saved(folder):
    "What each of two processes does"
    from accelerate import Accelerator
    torch.set_num_threads(1)
    accelerator, model = Accelerator(cpu=True), network()
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    pull = ProximalPull(model.parameters(), 0.4, prox=prox_norm)
    pull.attach(optimizer)
    prepared, stepper = accelerator.prepare(model, optimizer)
    learn(prepared, stepper, 5)
    torch.save((snapshot(model), pull.distance(), accelerator.num_processes), f"{folder}/{accelerator.process_index}.pt")
    for strategy in (*STRATEGIES, PAIRS): torch.save(snapshot(fine_tuned(strategy)), f"{folder}/{strategy.name}-{accelerator.process_index}.pt")


STRATEGIES = (L2SP(5.0, lr=1e-2), FunctionSP(5.0, lr=1e-2))
PAIRS = PairsThenProbe(lr=1e-2, pair_steps=8, pair_batch=8)


def fine_tuned(strategy):
    "Of a network without batch statistics, which each process would take of its own rows"
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh())
    model = TransferModel(Backbone("plain", body, 8, Preprocess(8, [0.5], [0.3]), True, lr=1e-3), ["a", "b", "c"])
    split = patterns(24, seed=1)
    return finetune(model, Task("patterns", split, split, split, ["a", "b", "c"]), strategy, steps=8, batch_size=8).model


def test_two_processes_are_pulled_as_one(tmp_path):
    "Guards against a pull that the wrapped model or optimizer does not know, or that differs between processes."
    done = subprocess.run([sys.executable, __file__, tmp_path], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    alone = network()
    optimizer = OPTIMIZERS["AdamW"](alone.parameters())
    ProximalPull(alone.parameters(), 0.4, prox=prox_norm).attach(optimizer)
    learn(alone, optimizer, 5)
    for process in range(2):
        weights, distance, processes = torch.load(tmp_path/f"{process}.pt", weights_only=True)
        assert processes == 2 and distance > 0
        for name, value in alone.state_dict().items(): assert torch.allclose(weights[name], value, atol=1e-6)       # both saw the same rows
    plain = snapshot(fine_tuned(FullFineTuning(lr=1e-2)))
    for strategy in STRATEGIES:
        one = snapshot(fine_tuned(strategy))
        assert not torch.allclose(one["backbone.1.weight"], plain["backbone.1.weight"], atol=1e-3)                  # the pull shows
        for process in range(2):
            weights = torch.load(tmp_path/f"{strategy.name}-{process}.pt", weights_only=True)
            for name, value in one.items(): assert torch.allclose(weights[name], value, atol=1e-5), (strategy.name, name)
    first, second = (torch.load(tmp_path/f"{PAIRS.name}-{process}.pt", weights_only=True) for process in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)                # each had pairs of its own rows, and neither has drifted
    assert not torch.allclose(first["backbone.1.weight"], snapshot(fine_tuned(LinearProbe()))["backbone.1.weight"], atol=1e-3)


# --- The strategy ----------------------------------------------------------------------------------------------------


def movement(make_model, task, strategy):
    "The model after fine-tuning, and how far its backbone has moved"
    model = make_model()
    finetune(model, task, strategy, steps=20, batch_size=8)
    return model, sum(value**2 for value in layer_movement(model, make_model()).values()) ** 0.5


def test_a_stronger_pull_stays_nearer(make_model, task):
    "Guards against a strategy whose strength does nothing."
    distances = [movement(make_model, task, L2SP(strength=strength, lr=1e-2))[1] for strength in (0.0, 10.0, 1000.0)]
    assert distances[0] > 1.2 * distances[1] > distances[2] > 0


def test_the_head_is_not_pulled(make_model, task):
    "Guards against a new head that is tied to random numbers."
    held, _ = movement(make_model, task, L2SP(strength=1e9, lr=1e-2))
    free, _ = movement(make_model, task, FullFineTuning(lr=0.0, weight_decay=0.01))
    assert torch.allclose(held.head.weight, free.head.weight, atol=1e-4)
    assert (held.head.weight - make_model().head.weight).abs().max() > 1e-2


def test_the_strategy_pulls_towards_the_source_not_towards_zero(make_model, task):
    "Guards against weight decay beside the pull."
    model = make_model()
    strategy = L2SP(weight_decay=0.1)
    strategy.prepare(model)
    optimizer = strategy.optimizer(model)
    decay = {id(w): group["weight_decay"] for group in optimizer.param_groups for w in group["params"]}
    assert {decay[id(w)] for w in model.backbone.parameters()} == {0.0} and decay[id(model.head.weight)] == 0.1


def test_a_second_run_has_one_pull(make_model, task):
    "Guards against the pull of an earlier run that is still acting."
    model = make_model()
    for strategy in (L2SP(strength=1e9), LinearProbe()): finetune(model, task, strategy, steps=4, batch_size=8)
    before = snapshot(model)
    finetune(model, task, FullFineTuning(lr=1e-2), steps=4, batch_size=8)
    assert [name for name in changed(before, model) if name.startswith("backbone.")]


def test_a_resumed_fine_tuning_is_the_same(make_model, task, tmp_path):
    "Guards against a resumed run that is pulled to where it was interrupted."
    path = tmp_path / "run.pt"
    options = dict(strategy=L2SP(strength=100.0, lr=1e-2), steps=6, batch_size=8, measure_every=1)
    whole, interrupted, resumed = make_model(), make_model(), make_model()
    finetune(whole, task, measure=improving(0), **options)
    with pytest.raises(KeyboardInterrupt): finetune(interrupted, task, measure=improving(0, 3), checkpoint=path, **options)
    finetune(resumed, task, measure=improving(3), checkpoint=path, **options)
    assert changed(snapshot(whole), resumed) == []


@pytest.mark.parametrize("strategy", [GroupSP, L1SP])
def test_a_full_strength_leaves_everything_where_it_was(make_model, task, strategy):
    "Guards against a scale of the unsquared pulls that is not what the docstring says."
    model = make_model()
    finetune(model, task, strategy(1.5, lr=1e-2), steps=20, batch_size=8)
    source = make_model().backbone
    assert all(torch.equal(w, s) for w, s in zip(model.backbone.parameters(), source.parameters()))
    loose, part = make_model(), make_model()
    finetune(loose, task, strategy(0.0, lr=1e-2), steps=20, batch_size=8)
    finetune(part, task, strategy(0.5, lr=1e-2), steps=20, batch_size=8)
    def same(model): return torch.cat([(w == s).flatten() for w, s in zip(model.backbone.parameters(), source.parameters())]).double().mean()
    assert same(loose) < same(part) < 1


@pytest.mark.parametrize("strategy", [L2SP, FunctionSP])
def test_a_model_from_scratch_is_not_pulled(make_model, task, strategy):
    "Guards against a pull towards random weights."
    with pytest.raises(ValueError, match="from scratch"): finetune(make_model(pretrained=False), task, strategy(), steps=1)


@pytest.mark.parametrize("strategy", [GroupSP(0.3, lr=1e-2), FunctionSP(1.0, lr=1e-2)], ids=lambda s: s.name)
def test_a_run_is_not_resumed_with_another_source(make_model, task, tmp_path, strategy):
    "Guards against a second half that is pulled elsewhere, in weights or in function."
    options = dict(strategy=strategy, steps=4, batch_size=8, checkpoint=tmp_path/"run.pt")
    finetune(make_model(), task, **options)
    for another in (replace(strategy, strength=2.0), FullFineTuning(lr=1e-2, weight_decay=0.0 if isinstance(strategy, GroupSP) else 0.01)):
        with pytest.raises(ValueError, match="belongs to another run"): finetune(make_model(), task, **options | {"strategy": another})
    other = make_model()
    with torch.no_grad(): next(other.backbone.parameters()).add_(0.1)
    with pytest.raises(ValueError, match="belongs to another run"): finetune(other, task, **options)
    finetune(make_model(), task, **options)


# --- Function space --------------------------------------------------------------------------------------------------


def test_the_functions_distance_is_that_of_the_features(make_model, task):
    "Guards against a distance from features that move along, or of other rows."
    model = make_model()
    objective, rows = FunctionSP(6.0).objective(model, task.train)
    inputs, (labels, source) = rows.__getitems__([3, 0, 7])
    model.eval()
    assert torch.allclose(objective(model, inputs, (labels, source)), F.cross_entropy(model(inputs), labels), atol=1e-5)      # at the source: no distance
    with torch.no_grad():
        for w in model.backbone.parameters(): w.add_(0.05)
    expected = F.cross_entropy(model(inputs), labels) + 6.0 / 2 * (model.features(inputs) - make_model().eval().features(inputs)).square().mean()
    assert torch.allclose(objective(model, inputs, (labels, source)), expected, atol=1e-5)
    assert not model.head._forward_pre_hooks


def test_a_module_of_the_backbone_may_be_called_head(make_model, task):
    "Guards against the features of the wrong place: torchvision's Swin has a `head` of its own."
    model = make_model()
    model.backbone.head = nn.Identity()
    plain = model.backbone.forward
    model.backbone.forward = lambda images: plain(model.backbone.head(images))
    objective, rows = FunctionSP(6.0).objective(model.eval(), task.train)
    inputs, target = rows.__getitems__([3, 0, 7])
    assert torch.allclose(objective(model, inputs, target), F.cross_entropy(model(inputs), target[0]), atol=1e-5)


def test_no_strength_in_function_space_is_full_fine_tuning(make_model, task):
    "Guards against a loss that differs by more than the distance."
    plain, pulled, held = make_model(), make_model(), make_model()
    for model, strategy in ((plain, FullFineTuning(lr=1e-2)), (pulled, FunctionSP(0.0, lr=1e-2)), (held, FunctionSP(1e3, lr=1e-2))):
        finetune(model, task, strategy, steps=20, batch_size=8)
    assert changed(snapshot(plain), pulled) == []
    def away(model): return (model.eval().features(task.train.inputs) - make_model().eval().features(task.train.inputs)).norm()
    assert away(held) < 0.5 * away(plain)


def test_words_are_pulled_one_by_one():
    "Guards against features of padding, or of words without a label, in the distance."
    class Rows:
        def __init__(self, rows): self.rows = rows
        def __len__(self): return len(self.rows)
        def __getitem__(self, rows): return torch.nn.utils.rnn.pad_sequence([self.rows[r] for r in rows], batch_first=True, padding_value=-100)
    labels = Rows([torch.tensor([0, -100, 1]), torch.tensor([1])])
    words = torch.randn(2, 3, 4)
    rows = WithSource(words, labels, [words[0, [0, 2]] + 1, words[1, [0]]])
    class Model(nn.Module):
        def __init__(self): super().__init__(); self.head = nn.Linear(4, 2)
        def forward(self, inputs): return self.head(inputs)
    model = Model()
    inputs, target = rows.__getitems__([0, 1])
    loss = _with_distance(model, inputs, target, model.head, 2.0)
    known = words[[0, 0, 1], [0, 2, 0]]
    expected = F.cross_entropy(model.head(known), torch.tensor([0, 1, 1])) + 2.0 / 2 * (2 * 4) / (3 * 4)      # two of three words are one away in all four numbers
    assert torch.allclose(loss, expected, atol=1e-6)


# --- Importance, and files -------------------------------------------------------------------------------------------


def test_the_fisher_information_is_that_of_the_models_own_labels():
    "Guards against gradients of a batch, and against the data's labels in place of the model's."
    torch.manual_seed(0)
    model, inputs = nn.Linear(3, 4), torch.randn(5, 3)
    exact = [torch.zeros_like(w) for w in model.parameters()]
    for x in inputs:
        for label, p in enumerate(model(x).softmax(0).tolist()):
            grads = torch.autograd.grad(F.cross_entropy(model(x)[None], torch.tensor([label])), list(model.parameters()))
            for f, g in zip(exact, grads): f += p * g.square()
    mean = torch.cat([f.flatten() for f in exact]).mean()
    found = fisher(model, model.parameters(), inputs.repeat(400, 1))
    for f, e in zip(found, exact): assert torch.allclose(f, e / mean, rtol=0.2, atol=0.05)
    assert torch.cat([f.flatten() for f in found]).mean() == pytest.approx(1, rel=1e-4)


def test_an_impossible_fisher_information_is_refused():
    "Guards against NaN for no rows or no gradients, and against a model that is left in another mode."
    model, inputs = nn.Sequential(nn.Linear(3, 4), nn.Dropout()).train(), torch.randn(2, 3)
    with pytest.raises(ValueError, match="rows"): fisher(model, model.parameters(), inputs[:0])
    with pytest.raises(ValueError, match="frozen"): fisher(model, nn.Linear(3, 4).requires_grad_(False).parameters(), inputs)
    with pytest.raises(ValueError, match="mean square"): fisher(model, [model[0].weight], 0 * inputs)
    with pytest.raises(RuntimeError): fisher(model, model.parameters(), inputs[:, :2])
    assert model.training and model[1].training


def test_elastic_weights_hold_what_matters(make_model, task):
    "Guards against an importance that never reaches the pull."
    with pytest.raises(ValueError, match="importance"): finetune(make_model(), task, EWC(1.0), steps=2)
    model = make_model()
    importance = [torch.full_like(w, 1e9 if i % 2 else 0.0) for i, w in enumerate(model.backbone.parameters())]
    finetune(model, task, EWC(1.0, importance, lr=1e-2), steps=5, batch_size=8)
    moved = [(w - s).abs().max().item() for w, s in zip(model.backbone.parameters(), make_model().backbone.parameters())]
    assert max(moved[1::2]) < 1e-6 < min(moved[::2])


def test_a_difference_gives_the_model_back(make_model, task, tmp_path):
    "Guards against numbers or statistics that are left out, and against another source or other labels."
    model = make_model()
    finetune(model, task, L1SP(0.5, lr=1e-2), steps=10, batch_size=8)
    file = save_difference(model, make_model(), tmp_path/"difference.safetensors")
    rebuilt = make_model()
    with torch.no_grad(): rebuilt.head.weight.zero_()
    assert changed(snapshot(model), load_difference(rebuilt, file)) == []
    full = make_model()
    finetune(full, task, FullFineTuning(lr=1e-2), steps=10, batch_size=8)
    assert changed(snapshot(full), load_difference(make_model(), save_difference(full, make_model(), tmp_path/"full.safetensors"))) == []
    other = make_model()
    with torch.no_grad(): next(other.backbone.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match="source weights"): load_difference(other, file)
    other = make_model()
    other.label_names = ["x", "y", "z"]
    with pytest.raises(ValueError, match="labels"): load_difference(other, file)
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match="cannot be read"): load_difference(make_model(), file)


if __name__ == "__main__":
    from accelerate import debug_launcher
    debug_launcher(pulled_and_saved, args=(sys.argv[1],), num_processes=2)
