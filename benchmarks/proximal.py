"""What staying near the source costs: each proximal step, a term in the loss, and a distance in function space, against a plain step."""
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
import torch.nn.functional as F

from ftlearn.adaptation.proximal import ProximalPull, l2sp_penalty, prox_l1, prox_norm, prox_squared
from ftlearn.training import adamw

from .models import Step, minilm, on_digits, resnet18
from .timing import Row, interleaved, table

DEAREST, DEAREST_FUNCTION = 1.05, 1.15     # times a plain step
STRENGTH = 0.1


def one_after_the_other(*args, **options):
    "As `prox_norm`, of which `ProximalPull` knows a way to take all tensors at once; of this it does not."
    return prox_norm(*args, **options)


PULLS = {"squared": prox_squared, "by tensor": prox_norm, "by tensor, one after the other": one_after_the_other, "by number": prox_l1}
EACH = "squared, each number its own"
PROMISED = dict.fromkeys(("squared", "by tensor", "by number", EACH), DEAREST) | {"function space": DEAREST_FUNCTION}


def training(batch: Step, optimizer: torch.optim.Optimizer, extra: Callable[[torch.Tensor], torch.Tensor | float] = lambda features: 0.0) -> Callable[[], None]:
    "A function that makes one step of training; `extra` adds to the loss."
    def step() -> None:
        optimizer.zero_grad()
        features = batch.features()
        (batch.loss(features) + extra(features)).backward()
        optimizer.step()
    return step


def stepper(make: Callable[[], Step], kind: str) -> Callable[[], None]:
    "A plain step, or one with a term in its loss."
    batch = make()
    with torch.no_grad(): computed = batch.features()
    source = [w.detach().clone() for w in batch.weights]
    extra = {"plain": lambda features: 0.0, "a term in the loss": lambda features: l2sp_penalty(batch.weights, source, STRENGTH),
             "function space": lambda features: STRENGTH / 2 * F.mse_loss(features, computed)}
    return training(batch, adamw(batch.weights, lr=1e-4), extra[kind])


def with_pull(make: Callable[[], Step], kind: str, rounds: int, warmup: int = 2) -> float:
    "A step with a proximal pull, times the same step without what the pull took: other work on the machine touches both alike."
    batch = make()
    optimizer = adamw(batch.weights, lr=1e-4)
    importance = [torch.rand_like(w) for w in batch.weights] if kind == EACH else None
    marks, shares = [], []
    optimizer.register_step_post_hook(lambda *_: marks.append(perf_counter()))
    ProximalPull(batch.weights, STRENGTH, prox=PULLS.get(kind, prox_squared), importance=importance).attach(optimizer)
    optimizer.register_step_post_hook(lambda *_: marks.append(perf_counter()))
    step = training(batch, optimizer)
    for _ in range(warmup + rounds):
        start = perf_counter()
        step()
        pull, whole = marks[-1] - marks[-2], perf_counter() - start
        shares.append(whole / (whole - pull))
    return median(shares[warmup:])


def measure() -> list[Row]:
    rows = []
    for name, make, rounds in (("glyph CNN", on_digits, 200), ("ResNet-18", resnet18, 12), ("BERT, 22.7 M", minilm, 12)):
        seconds = interleaved({kind: stepper(make, kind) for kind in ("plain", "function space", "a term in the loss")}, rounds)
        shares = {kind: with_pull(make, kind, rounds) for kind in (*PULLS, EACH)} | {kind: seconds[kind] / seconds["plain"] for kind in ("function space", "a term in the loss")}
        for kind, share in shares.items():
            promise = PROMISED.get(kind)
            rows.append(Row(f"{name}: {kind}", f"{share:.2f} × a plain step", f"≤ {promise}" if promise else "", promise is None or share <= promise))
    return rows


if __name__ == "__main__": print(table(measure()))
