"""The loop: a run that was interrupted is the same run, and what is frozen does not move."""
import contextlib
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ftlearn.data import Affine
from ftlearn.training import (adamw, batches, check_optimizer, evaluate, evaluating, fit, freeze_statistics, is_frozen, load_checkpoint,
                              number_of_steps, predict, rng_state, set_modes, set_rng_state, warmup_cosine)

from conftest import changed, patterns, snapshot

TRAIN, VALIDATION = patterns(26, seed=1), patterns(12, seed=2)


class Scale(nn.Module):
    "Bytes to numbers between 0 and 1"
    def forward(self, images): return images.float() / 255 if images.dtype == torch.uint8 else images


def network(seed=0, p=0.3):
    "Everything that makes a run hard to repeat: batch normalisation and dropout"
    torch.manual_seed(seed)
    return nn.Sequential(Scale(), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(p), nn.Linear(144, 3))


# --- Batches ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 100), st.integers(1, 3))
def test_an_epoch_is_every_row_once_in_batches_of_equal_size(n, batch_size, seed, epochs):
    "Guards against rows that are never seen, and against a last batch of one row, which ruins batch statistics."
    per_epoch = math.ceil(n / batch_size)
    drawn = list(batches(n, batch_size, range(epochs * per_epoch), seed))
    for epoch in range(epochs):
        mine = drawn[epoch * per_epoch:(epoch + 1) * per_epoch]
        assert sorted(row for rows in mine for row in rows) == list(range(n))
        sizes = list(map(len, mine))
        assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 100), st.integers(0, 40), st.integers(1, 4))
def test_batches_depend_on_the_step_only(n, batch_size, seed, start, processes):
    "Guards against a resumed run that sees other rows, and against processes that see the same rows."
    whole = list(batches(n, batch_size, range(start + 20), seed))
    assert list(batches(n, batch_size, range(start, start + 20), seed)) == whole[start:]
    parts = zip(*(batches(n, batch_size, range(20), seed, (i, processes)) for i in range(processes)))
    for rows, parts_of_rows in zip(whole, parts): assert sorted(sum(parts_of_rows, [])) == sorted(rows)


def test_every_epoch_and_seed_has_its_own_order():
    "Guards against the same order over and over."
    orders = [sum(batches(50, 10, range(5 * e, 5 * e + 5), seed), []) for e in range(3) for seed in range(3)]
    assert len(set(map(tuple, orders))) == 9


def test_steps_or_epochs():
    "Guards against a run of no steps, and against an argument that is ignored."
    assert number_of_steps(None, 2, 26, 8) == 8 and number_of_steps(3, None, 26, 8) == 3 and number_of_steps(None, 0.5, 26, 8) == 2
    for steps, epochs, rows in ((1, 1, 26), (None, None, 26), (0, None, 26), (None, 0.01, 26), (5, None, 0)):
        with pytest.raises(ValueError): number_of_steps(steps, epochs, rows, 8)


# --- Resuming --------------------------------------------------------------------------------------------------------


class Interrupted(Exception): pass


def run(path=None, model=None, stop_at=None, **options):
    "A run of eight steps in which everything is random, interrupted before the update of step `stop_at`"
    model = model or network()
    def objective(model, inputs, labels):
        nonlocal stop_at
        if stop_at == 0: raise Interrupted
        if stop_at is not None: stop_at -= 1
        return F.cross_entropy(model(inputs), labels)
    settings = dict(steps=8, batch_size=8, augment=Affine(), checkpoint=path, measure_every=1, seed=3, objective=objective)
    history = fit(model, TRAIN, VALIDATION, **(settings | options))
    return model, history


@pytest.mark.parametrize("every", [1, 3])
def test_a_run_interrupted_at_any_step_is_the_same_run(tmp_path, every):
    "Guards against a resumed run with another order, other dropout, other moments, another rate or other statistics."
    whole, history = run(measure_every=every)
    for step in range(8):
        path = tmp_path / f"{step}.pt"
        with pytest.raises(Interrupted): run(path, stop_at=step, measure_every=every)
        torch.manual_seed(step)                     # whatever happened in between
        resumed, resumed_history = run(path, network(seed=50 + step), measure_every=every) if step >= every else run(path, measure_every=every)
        assert changed(snapshot(whole), resumed) == []
        assert (resumed_history.losses, resumed_history.measurements, resumed_history.best_step) == (history.losses, history.measurements, history.best_step)


def test_a_finished_run_is_not_trained_again(tmp_path):
    "Guards against a second run on top of the first."
    model, history = run(tmp_path / "run.pt")
    again, again_history = run(tmp_path / "run.pt", network(seed=9), stop_at=0)
    assert changed(snapshot(model), again) == [] and again_history.losses == history.losses


@pytest.mark.parametrize("options, words", [(dict(steps=9), "steps was 8 and is 9"), (dict(seed=4), "seed was 3"), (dict(batch_size=5), "batch_size"),
                                            (dict(lr=1e-2), "lr|optimizer")])
def test_the_checkpoint_of_another_run_is_refused(tmp_path, options, words):
    "Guards against a setting that is ignored because an old checkpoint has another."
    run(tmp_path / "run.pt", steps=8)
    with pytest.raises(ValueError, match=f"another run.*({words})"): run(tmp_path / "run.pt", **options)


def test_the_checkpoint_of_another_model_is_refused(tmp_path):
    "Guards against weights that are loaded where others were frozen."
    run(tmp_path / "run.pt")
    model = network()
    model[1].requires_grad_(False)
    with pytest.raises(ValueError, match="another run.*model"): run(tmp_path / "run.pt", model)


@pytest.mark.parametrize("spoil", [lambda p: p.write_bytes(b"rubbish"), lambda p: p.write_bytes(p.read_bytes()[:500]), lambda p: p.write_bytes(b""),
                                   lambda p: torch.save(network().state_dict(), p), lambda p: torch.save(torch.zeros(2), p)],
                         ids=["rubbish", "truncated", "empty", "weights only", "tensor"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, spoil):
    "Guards against a fresh start that nobody asked for, and against an error that does not name the file."
    path = tmp_path / "run.pt"
    run(path)
    spoil(path)
    with pytest.raises(ValueError, match=r"checkpoint .*run\.pt"): run(path)


def test_a_checkpoint_runs_no_code(tmp_path):
    "Guards against a downloaded checkpoint that executes what its author likes."
    torch.save({"run": {}, "evil": Malicious(str(tmp_path / "ran"))}, tmp_path / "run.pt")
    with pytest.raises(ValueError, match="cannot be read"): load_checkpoint(tmp_path / "run.pt", {})
    assert not (tmp_path / "ran").exists()


class Malicious:
    "Creates a file when it is unpickled"
    def __init__(self, path): self.path = path
    def __reduce__(self): return (open, (self.path, "w"))


def test_the_state_of_the_generators_comes_back():
    "Guards against random numbers that are drawn twice."
    import random
    import numpy as np
    def draw(): return random.gauss(0, 1), np.random.normal(), torch.randn(1).item()
    draw()
    state = rng_state()
    first = draw()
    set_rng_state(state)
    assert draw() == first


# --- What learns and what does not -----------------------------------------------------------------------------------


def test_a_weight_that_the_optimizer_does_not_know_is_named():
    "Guards against a head that was replaced after the optimizer was made, and never learns."
    model = network()
    optimizer = adamw(model.parameters())
    model[6] = nn.Linear(144, 3)
    with pytest.raises(ValueError, match=r"does not know 6\.weight, 6\.bias"): fit(model, TRAIN, steps=1, optimizer=optimizer)
    with pytest.raises(ValueError, match="nothing to train"): check_optimizer(model.requires_grad_(False), optimizer)


def test_a_frozen_network_does_not_move():
    "Guards against a frozen batch normalisation whose running mean and variance go on moving."
    model = network()
    model[:3].requires_grad_(False)
    before = snapshot(model)
    fit(model, TRAIN, steps=5, batch_size=8)
    assert changed(before, model) == ["6.weight", "6.bias"]


def test_frozen_statistics_keep_still_while_their_scale_learns():
    "Guards against the statistics of eight images in place of those of a million."
    model = freeze_statistics(network())
    before = snapshot(model)
    fit(model, TRAIN, steps=5, batch_size=8)
    assert {"2.weight", "2.bias"} <= set(changed(before, model)) and not [name for name in changed(before, model) if "running" in name]
    fit(freeze_statistics(model, False), TRAIN, steps=2, batch_size=8)
    assert "2.running_mean" in changed(before, model)


def test_what_is_frozen_stays_in_evaluation_mode():
    "Guards against dropout in frozen layers, which makes their features noise."
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2)), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)))
    model[0].requires_grad_(False)
    set_modes(model)
    assert [m.training for m in model[0].modules()] == [False] * 4 and all(m.training for m in model[1].modules())
    assert not any(m.training for m in set_modes(model, False).modules())
    assert is_frozen(model[0]) and not is_frozen(model) and not is_frozen(nn.Dropout())


def test_predictions_have_no_dropout_and_leave_no_trace():
    "Guards against random predictions, and against a measurement that moves statistics or switches dropout off for good."
    model = set_modes(network())
    model[2].eval()
    modes, before = [m.training for m in model.modules()], snapshot(model)
    first, again = predict(model, VALIDATION, batch_size=5), predict(model, VALIDATION, batch_size=12)
    assert torch.allclose(first, again, atol=1e-6) and first.shape == (12, 3) and not first.requires_grad
    assert [m.training for m in model.modules()] == modes and changed(before, model) == []
    with pytest.raises(RuntimeError), evaluating(model): raise RuntimeError
    assert [m.training for m in model.modules()] == modes and torch.is_grad_enabled()


def test_evaluation_agrees_with_its_definition():
    "Guards against a mean of batch means, which weighs the rows of a short last batch more."
    model = network().eval()
    logits = model(VALIDATION.inputs)
    found = evaluate(model, VALIDATION)
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, VALIDATION.labels).item(), rel=1e-5)
    assert found["accuracy"] == (logits.argmax(1) == VALIDATION.labels).float().mean().item()


# --- The run ---------------------------------------------------------------------------------------------------------


def scripted(qualities):
    "A measurement that gives the accuracies of a list"
    qualities = iter(qualities)
    return lambda model, split: {"loss": 1.0, "accuracy": next(qualities)}


def test_the_best_weights_are_kept():
    "Guards against the last weights, and against a reference to weights that went on changing."
    seen = []
    accuracies = iter([0.1, 0.9, 0.3, 0.9, 0.2])
    def measure(model, split):
        seen.append(snapshot(model))
        return {"loss": 1.0, "accuracy": next(accuracies)}
    model = network()
    history = fit(model, TRAIN, VALIDATION, steps=5, batch_size=8, measure_every=1, measure=measure)
    assert history.best_step == 2 and changed(seen[1], model) == [] and changed(seen[4], model)


def test_of_equal_accuracies_the_lower_loss_wins():
    "Guards against the first of many equal accuracies, where few rows are measured."
    found = iter([(0.5, 3.0), (0.5, 2.0), (0.5, 2.5)])
    history = fit(network(), TRAIN, VALIDATION, steps=3, batch_size=8, measure_every=1, measure=lambda m, s: dict(zip(("accuracy", "loss"), next(found))))
    assert history.best_step == 2


def test_a_run_without_improvement_stops_early(tmp_path):
    "Guards against patience that counts from the start, and against a resumed run that has forgotten that it had stopped."
    options = dict(steps=10, batch_size=8, measure_every=1, patience=3, checkpoint=tmp_path / "run.pt")
    history = fit(network(), TRAIN, VALIDATION, measure=scripted([0.1, 0.2, 0.3, 0.2, 0.3, 0.1]), **options)
    assert history.stopped_early and history.best_step == 3 and len(history.losses) == 6
    assert fit(network(), TRAIN, VALIDATION, measure=scripted([]), **options).losses == history.losses


def test_a_loss_that_is_not_a_number_stops_the_run():
    "Guards against weights that have become NaN without a word."
    model = network(p=0.0)
    def objective(model, inputs, labels): return model(inputs).mean() * float("nan")
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    with pytest.raises(FloatingPointError, match="nan at step 0"): fit(model, TRAIN, steps=3, objective=objective)
    assert all(torch.equal(before[name], w) for name, w in model.named_parameters())


def test_a_learning_rate_is_not_ignored():
    "Guards against `lr=` beside an optimizer that has a rate of its own."
    model = network()
    with pytest.raises(ValueError, match="lr"): fit(model, TRAIN, steps=1, lr=1e-5, optimizer=adamw(model.parameters()))


def test_the_same_seed_is_the_same_run():
    "Guards against a result that depends on what ran before."
    (first, a), (again, b), (other, c) = run(), run(), run(seed=4)
    assert changed(snapshot(first), again) == [] and a.losses == b.losses and a.losses != c.losses


def test_the_rate_rises_and_falls():
    "Guards against a first step of rate 0, and against a rate that never comes down."
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [weight], "lr": 2.0}])
    schedule, rates = warmup_cosine(optimizer, 20, 0.25), []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0]) and rates[5] == 2.0 and rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < 0.05


def test_a_step_is_the_step_of_plain_pytorch():
    "Guards against a loop that does something else than it says."
    model, plain = plain_network(), plain_network()
    fit(model, TRAIN, steps=4, batch_size=8, lr=1e-2, warmup=0.5, clip=0.1)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.01)
    schedule = warmup_cosine(optimizer, 4, 0.5)
    for rows in batches(len(TRAIN), 8, range(4)):
        optimizer.zero_grad()
        F.cross_entropy(plain(TRAIN.inputs[rows]), TRAIN.labels[rows]).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        optimizer.step()
        schedule.step()
    for w, v in zip(model.parameters(), plain.parameters()): assert torch.allclose(w, v, atol=1e-6)


def test_images_are_augmented_in_training_only(monkeypatch):
    "Guards against a validation accuracy on distorted images."
    augmented = []
    def augment(images, rng):
        augmented.append(images)
        return images
    run(augment=augment)
    assert len(augmented) == 8 and all(images.is_floating_point() and images.max() <= 1 for images in augmented)


def test_training_within_the_callers_autocast_sees_its_own_steps():
    "Guards against copies of the weights in bfloat16 that outlive the step that made them."
    def learned(context):
        model = plain_network()
        before = [w.detach().clone() for w in model.parameters()]
        with context: fit(model, patterns(24, seed=1), steps=20, batch_size=8, lr=1e-2)
        return torch.cat([(w - w0).detach().flatten() for w, w0 in zip(model.parameters(), before)])
    outside, inside = learned(contextlib.nullcontext()), learned(torch.autocast("cpu", torch.bfloat16))
    assert (inside - outside).norm() < 0.1 * outside.norm()


# --- Several processes -----------------------------------------------------------------------------------------------


def plain_network():
    torch.manual_seed(0)
    return nn.Sequential(Scale(), nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3))


def train_and_save(folder):
    "What each process does"
    from accelerate import PartialState
    torch.set_num_threads(1)
    model = plain_network()
    fit(model, patterns(24, seed=1), steps=6, batch_size=8, lr=1e-2)
    process = PartialState()
    torch.save((model.state_dict(), process.num_processes), f"{folder}/{process.process_index}.pt")


def test_two_processes_train_as_one(tmp_path):
    "Guards against processes that see the same rows, or drift apart."
    # In a fresh Python: Accelerate decides once in the life of a process how many there are.
    done = subprocess.run([sys.executable, __file__, tmp_path], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    alone = plain_network()
    fit(alone, patterns(24, seed=1), steps=6, batch_size=8, lr=1e-2)
    for process in (0, 1):
        weights, processes = torch.load(tmp_path / f"{process}.pt")
        assert processes == 2
        for name, value in alone.state_dict().items(): assert torch.allclose(weights[name], value, atol=1e-5)


if __name__ == "__main__":
    from accelerate import debug_launcher
    debug_launcher(train_and_save, args=(sys.argv[1],), num_processes=2)


# --- Names -----------------------------------------------------------------------------------------------------------


def test_f1_of_names_is_seqevals():
    "On sequences good and bad, as seqeval 1.2.2 scored them"
    import json
    from pathlib import Path
    from ftlearn.training import entity_f1
    for case in json.loads((Path(__file__).parent / "data" / "seqeval.json").read_text())["cases"]:
        predicted, true = ([tags.split() for tags in case[key]] for key in ("predicted", "true"))
        assert entity_f1(predicted, true) == pytest.approx(case["f1"], abs=1e-5), case
