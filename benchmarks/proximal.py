"""What staying near the source costs: a step with the closed-form pull, or with a term in the loss, against a plain one."""
from collections.abc import Callable

from torch import Tensor, nn

from ftlearn.adaptation.proximal import ProximalPull, l2sp_penalty
from ftlearn.training import adamw

from .models import minilm, on_digits, resnet18
from .timing import Row, interleaved, table

DEAREST = 1.05     # times a plain step
STRENGTH = 0.1


def stepper(make: Callable[[], tuple[nn.Module, Callable[[], Tensor]]], kind: str) -> Callable[[], None]:
    "A function that makes one step of training"
    model, loss = make()
    weights = [w for w in model.parameters() if w.requires_grad]
    source = [w.detach().clone() for w in weights]
    optimizer = adamw(weights, lr=1e-4)
    if kind == "closed form": ProximalPull(weights, STRENGTH).attach(optimizer)

    def step() -> None:
        optimizer.zero_grad()
        value = loss()
        if kind == "loss term": value = value + l2sp_penalty(weights, source, STRENGTH)
        value.backward()
        optimizer.step()
    return step


def measure() -> list[Row]:
    rows = []
    for name, make, rounds in (("glyph CNN", on_digits, 200), ("ResNet-18", resnet18, 30), ("BERT, 22.7 M", minilm, 25)):
        seconds = interleaved({kind: stepper(make, kind) for kind in ("plain", "closed form", "loss term")}, rounds)
        closed, term = (seconds[kind] / seconds["plain"] for kind in ("closed form", "loss term"))
        rows.append(Row(f"{name}: a step with the closed-form pull", f"{closed:.2f} × a plain step", f"≤ {DEAREST}", closed <= DEAREST))
        rows.append(Row(f"{name}: a step with the penalty in the loss", f"{term:.2f} × a plain step"))
    return rows


if __name__ == "__main__": print(table(measure()))
