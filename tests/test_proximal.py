"""The pull towards the source: right in closed form, present in every loop, and never towards weights that move along."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.optimize import minimize
from torch import nn

from ftlearn.adaptation.freezing import LinearProbe
from ftlearn.adaptation.proximal import L2SP, ProximalPull, l2sp_penalty, layer_movement, prox_squared
from ftlearn.training import adamw, warmup_cosine
from ftlearn.transfer.model import FullFineTuning, finetune

from conftest import changed, snapshot

OPTIMIZERS = {"SGD": lambda groups: torch.optim.SGD(groups, lr=0.05), "momentum": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9),
              "Adam": lambda groups: torch.optim.Adam(groups, lr=0.05), "AdamW": lambda groups: adamw(groups, lr=0.05),
              "RMSprop": lambda groups: torch.optim.RMSprop(groups, lr=0.05)}
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


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4), st.floats(0, 50))
def test_the_closed_form_is_the_minimum(pairs, strength):
    "Guards against a wrong sign, a factor of two, or η or λ counted twice."
    proposal, source = np.array(pairs, dtype=np.float64).T
    def objective(p): return 0.5 * ((p - proposal)**2).sum() + strength / 2 * ((p - source)**2).sum()
    def slope(p): return (p - proposal) + strength * (p - source)
    best = minimize(objective, proposal, jac=slope, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9}).x
    found = prox_squared(torch.from_numpy(proposal), torch.from_numpy(source), strength)
    assert np.allclose(found, best, atol=1e-4)


@given(tensors, strengths)
def test_the_operator_is_firmly_nonexpansive(values, strength):
    "Guards against a pull that overshoots and makes training unstable."
    a, b, source = values
    difference = (prox_squared(a, source, strength) - prox_squared(b, source, strength)).double().flatten()
    inner = difference @ (a - b).double().flatten()
    assert difference @ difference <= inner + 1e-3 * (1 + abs(inner))


@given(tensors, strengths)
def test_the_operator_keeps_shape_dtype_and_lies_between(values, strength):
    "Guards against broadcasting, and against results beyond the source."
    proposal, source, _ = values
    found = prox_squared(proposal, source, strength)
    assert found.shape == proposal.shape and found.dtype == proposal.dtype
    low, high, slack = torch.minimum(proposal, source), torch.maximum(proposal, source), 1e-4
    assert ((found >= low - slack) & (found <= high + slack)).all()
    assert torch.equal(prox_squared(proposal, source, 0.0), proposal)
    assert torch.allclose(prox_squared(proposal, source, 1e12), source, atol=1e-4)


@pytest.mark.parametrize("strength", [-0.1, math.nan, math.inf])
def test_an_impossible_strength_is_refused(strength):
    "Guards against weights that are pushed away, or become NaN."
    with pytest.raises(ValueError, match="strength"): ProximalPull(network().parameters(), strength)


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
    def improving(start, stop=math.inf):
        "A measurement that is better every time, so that the last weights are kept, until the run is interrupted"
        looks = iter(range(start, 1000))
        def measure(model, split):
            look = next(looks)
            if look == stop: raise KeyboardInterrupt
            return {"loss": 1 / (1 + look)}
        return measure
    options = dict(strategy=L2SP(strength=100.0, lr=1e-2), steps=6, batch_size=8, measure_every=1)
    whole, interrupted, resumed = make_model(), make_model(), make_model()
    finetune(whole, task, measure=improving(0), **options)
    with pytest.raises(KeyboardInterrupt): finetune(interrupted, task, measure=improving(0, 3), checkpoint=path, **options)
    finetune(resumed, task, measure=improving(3), checkpoint=path, **options)
    assert changed(snapshot(whole), resumed) == []
