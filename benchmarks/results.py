"""Every method on Rotten Tomatoes, Fashion-MNIST and WNUT-17, at several label budgets, on five draws: the numbers of the results page.

    FTLEARN_DATA=... python -m benchmarks.results [rotten_tomatoes] [fashion_mnist/full] ... [--minutes 4]

All of it takes three or four hours on two cores, estimated from a part. The learning rate of each method is chosen from three by the
validation split of a practice draw, which is not measured. Numbers go to nbs/results/ a few at a time, and what is there is not
measured again, so the work can be done in parts. SetFit takes part where it is installed (`pip install setfit`)."""
import argparse
import importlib.metadata
import importlib.util
import json
import os
import time
from itertools import islice
from pathlib import Path

from ftlearn.core import atomic_write, in_parallel

from benchmarks.methods import METHODS, STUDIES, score

RESULTS = Path(__file__).parents[1]/"nbs"/"results"
SEEDS, PRACTICE = range(5), 100


def stored(study) -> dict:
    "What has been measured of a study: method → budget → learning rates tried, and test scores of each draw."
    file = RESULTS/f"{study.task}.json"
    return json.loads(file.read_text())["scores"] if file.exists() else {}


def store(study, scores: dict) -> None:
    "Write a study with what one must know to repeat it."
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "scikit-learn", "setfit") if importlib.util.find_spec(name.replace("scikit-learn", "sklearn"))}
    about = {"command": f"python -m benchmarks.results {study.task}", "unit": f"{study.metric} in %", "backbone": study.backbone, "test rows": study.test_rows,
             "steps": study.steps, "batch size": study.batch_size, "versions": versions}
    with atomic_write(RESULTS/f"{study.task}.json") as file: file.write_text(json.dumps(about | {"scores": scores}, indent=1) + "\n")


def missing(point: dict, rates: tuple):
    "The learning rates not tried yet; when all have been, the draws not measured yet. As (learning rate, draw, split)."
    untried = [(lr, PRACTICE, "validation") for lr in rates if str(lr) not in point["tried"]]
    best = max(rates, key=lambda lr: point["tried"].get(str(lr), 0)) if rates else None
    return untried or [(best, seed, "test") for seed in SEEDS if str(seed) not in point["test"]]


def incomplete(points, found: dict):
    "All that is missing, point by point: (data set, method, budget), and its call."
    for study, method, shots in points:
        point = found[study].setdefault(method, {}).setdefault(str(shots), {"tried": {}, "test": {}})
        for call in missing(point, METHODS[method].rates(STUDIES[study])): yield point, (study, method, shots, *call)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what is missing on the results page.")
    parser.add_argument("what", nargs="*", default=list(STUDIES), help="a data set; or data set/budget/beginning of a method's name (default: all)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing new after so many minutes")
    options = parser.parse_args()
    chosen = [(what + "//").split("/")[:3] for what in options.what]
    points = [(name, method, shots) for name, budget, beginning in chosen for shots in STUDIES[name].steps for method in METHODS
              if name in METHODS[method].studies and budget in ("", str(shots)) and method.startswith(beginning)]
    found, until = {name: stored(STUDIES[name]) for name in STUDIES}, time.monotonic() + 60 * options.minutes
    while time.monotonic() < until and (calls := list(islice(incomplete(points, found), 2 * os.cpu_count()))):
        start = time.monotonic()
        for (point, (study, method, shots, lr, seed, split)), value in zip(calls, in_parallel(score, [call for _, call in calls])):
            if split == "test": point["test"][str(seed)] = value
            else: point["tried"][str(lr)] = value
            store(STUDIES[study], found[study])
            print(f"{study}, {shots} labels, {method}, {lr}, draw {seed}: {value} ({time.monotonic() - start:.0f} s)", flush=True)


if __name__ == "__main__": main()
