"""When does a pull help on digits, and does it matter whether the statistics of batch normalisation follow the new data?

    python -m benchmarks.statistics [--minutes 4]

Plain fine-tuning, L2-SP and the group norm, each with frozen and with moving statistics; few labels, twenty draws. Settings are chosen on
the validation split of a practice draw, which is not measured. Then, with two labels a class, each pull at each learning rate, nothing
chosen; a quarter of an hour on two cores. It goes on where it was stopped: what was tried and measured is under "runs" in
nbs/results/statistics.json, and "chosen" and "rates" are what it comes to."""
import argparse
import json
from pathlib import Path

from ftlearn.adaptation.freezing import MovingStatistics
from ftlearn.adaptation.proximal import GroupSP, L2SP
from ftlearn.data import load_task
from ftlearn.transfer.model import FullFineTuning, Strategy, TransferModel, finetune

from .parts import measure, write_table

TABLE = Path(__file__).parents[1]/"nbs"/"results"/"statistics.json"
SHOTS, STEPS, DRAWS, LRS = (2, 5, 10), 100, 20, (3e-5, 1e-4, 3e-4, 1e-3)
SWEPT = (*LRS, 3e-3)       # learning rates at which each pull is measured, whether or not it is good


class MovingL2SP(MovingStatistics, L2SP):
    "L2-SP with statistics that move."


class MovingGroupSP(MovingStatistics, GroupSP):
    "The group norm with statistics that move."


def plain(strategy) -> list[Strategy]: return [strategy(lr=lr) for lr in LRS]
def summing_to(share: float, lr: float) -> float: return round(share / (lr * STEPS), 2)           # the strength with which the pull sums to so much over the run
def squared(strategy) -> list[Strategy]: return [strategy(summing_to(share, lr), lr=lr) for lr in LRS for share in (0.5, 5)]
def grouped(strategy) -> list[Strategy]: return [strategy(strength, lr=lr) for lr in LRS for strength in (0.1, 0.3)]


METHODS = {"plain, frozen": plain(FullFineTuning), "plain, moving": plain(MovingStatistics),
           "L2-SP, frozen": squared(L2SP), "L2-SP, moving": squared(MovingL2SP),
           "group norm, frozen": grouped(GroupSP), "group norm, moving": grouped(MovingGroupSP)}
AT_A_RATE = {"plain": lambda lr: FullFineTuning(lr=lr), "L2-SP": lambda lr: L2SP(summing_to(5, lr), lr=lr), "group norm": lambda lr: GroupSP(0.3, lr=lr)}


def run(part: str, where: float, method: str, strategy: Strategy, seed: int, split: str) -> dict[str, float]:
    "Accuracy in %, and loss, of one strategy on one draw."
    few = load_task("digits").few_shot(where if part == "chosen" else SHOTS[0], seed)
    result = finetune(TransferModel.from_pretrained("glyph-cnn", few, seed=seed), few, strategy, steps=STEPS, measure_every=STEPS // 5, seed=seed)
    measured = result.test if split == "test" else result.validation
    return {"score": round(100 * measured["accuracy"], 2), "loss": round(measured["loss"], 4)}


def scores(points: dict) -> dict:
    "Labels a class, or learning rate → method → accuracies, in the order of the draws."
    def of(point): return [point["test"][draw]["score"] for draw in sorted(point["test"], key=int)]
    return {where: {method: of(point) for method, point in methods.items() if point["test"]} for where, methods in points.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing new after so many minutes")
    parser.add_argument("--draws", type=int, default=DRAWS)
    options = parser.parse_args()
    runs = json.loads(TABLE.read_text())["runs"] if TABLE.exists() else {}
    def save(changed):
        table = {"command": "python -m benchmarks.statistics", "unit": "accuracy in %", **{part: scores(points) for part, points in runs.items()}, "runs": runs}
        write_table(TABLE, table)
    points = [(("chosen", shots, method), METHODS[method], range(options.draws)) for shots in SHOTS for method in METHODS]
    points += [(("rates", lr, method), [AT_A_RATE[method](lr)], range(options.draws // 2)) for lr in SWEPT for method in AT_A_RATE]
    measure(run, points, runs, save, options.minutes, quality=lambda value: (value["score"], -value["loss"]))


if __name__ == "__main__":
    from benchmarks import statistics         # under its own name, so that other processes find what it holds
    statistics.main()
