"""What staying near the source costs: each proximal step, a term in the loss, and a distance in function space, against a plain step."""
from collections.abc import Callable

import torch
import torch.nn.functional as F

from ftlearn.adaptation.proximal import ProximalPull, l2sp_penalty, prox_l1, prox_norm, prox_squared
from ftlearn.training import adamw

from .models import Step, minilm, on_digits, resnet18
from .timing import Row, interleaved, table

DEAREST, DEAREST_FUNCTION = 1.05, 1.15     # times a plain step
STRENGTH = 0.1
PULLS = {"squared": prox_squared, "by tensor": prox_norm, "by number": prox_l1}


def stepper(make: Callable[[], Step], kind: str) -> Callable[[], None]:
    "A function that makes one step of training."
    batch = make()
    with torch.no_grad(): computed = batch.features()
    source = [w.detach().clone() for w in batch.weights] if kind == "a term in the loss" else []
    optimizer = adamw(batch.weights, lr=1e-4)
    if kind in PULLS: ProximalPull(batch.weights, STRENGTH, prox=PULLS[kind]).attach(optimizer)
    if kind == "squared, each number its own": ProximalPull(batch.weights, STRENGTH, importance=[torch.rand_like(w) for w in batch.weights]).attach(optimizer)

    def step() -> None:
        optimizer.zero_grad()
        features = batch.features()
        loss = batch.loss(features)
        if kind == "a term in the loss": loss = loss + l2sp_penalty(batch.weights, source, STRENGTH)
        if kind == "function space": loss = loss + STRENGTH / 2 * F.mse_loss(features, computed)
        loss.backward()
        optimizer.step()
    return step


def measure() -> list[Row]:
    kinds, rows = [*PULLS, "squared, each number its own", "function space", "a term in the loss"], []
    for name, make, rounds in (("glyph CNN", on_digits, 200), ("ResNet-18", resnet18, 30), ("BERT, 22.7 M", minilm, 12)):
        seconds = interleaved({kind: stepper(make, kind) for kind in ("plain", *kinds)}, rounds)
        for kind in kinds:
            promise = {"a term in the loss": None, "function space": DEAREST_FUNCTION}.get(kind, DEAREST)
            share = seconds[kind] / seconds["plain"]
            rows.append(Row(f"{name}: {kind}", f"{share:.2f} × a plain step", f"≤ {promise}" if promise else "", promise is None or share <= promise))
    return rows


if __name__ == "__main__": print(table(measure()))
