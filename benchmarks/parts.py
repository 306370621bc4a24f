"""Studies that are measured in parts: settings are tried on a practice draw, the best is measured on others, and what has been measured is not measured again.

A point of a study, such as one method at one budget, is `{"tried": {setting: value}, "setting": the best, "test": {draw: value}}`."""
import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from ftlearn.core import atomic_write, in_parallel

SEEDS, PRACTICE = range(5), 100          # the draws that are measured, and the one that settings are chosen on


def missing(point: dict, candidates: Sequence, draws: Iterable[int] = SEEDS, quality: Callable = lambda value: value) -> list[tuple]:
    "The settings not tried yet; when all have been, the draws not measured yet with the best: (setting, draw, split). What is no candidate any more is forgotten, and so are draws of another setting."
    point["tried"] = {str(setting): point["tried"][str(setting)] for setting in candidates if str(setting) in point["tried"]}
    untried = [(setting, PRACTICE, "validation") for setting in candidates if str(setting) not in point["tried"]]
    if untried: return untried
    best = max(candidates, key=lambda setting: quality(point["tried"][str(setting)]), default=None)
    if point.get("setting") != str(best): point["setting"], point["test"] = str(best), {}
    return [(best, seed, "test") for seed in draws if str(seed) not in point["test"]]


def incomplete(points: Iterable[tuple], found: dict, quality: Callable) -> Iterator[tuple[dict, tuple]]:
    "All that is missing at points (path, candidates, draws), each with the place in `found` where it belongs."
    for path, candidates, draws in points:
        point = found
        for key in path: point = point.setdefault(str(key), {})
        point.setdefault("tried", {}), point.setdefault("test", {})
        for call in missing(point, candidates, draws, quality): yield point, (*path, *call)


def measure(run: Callable,              # (*path, setting, draw, split) → what is stored
            points: Iterable[tuple],    # (path, candidates, draws)
            found: dict,                # what there is; path by path
            store: Callable[[set], None],       # called after each batch, with the first parts of the paths that it changed
            minutes: float,             # after which nothing new is begun
            quality: Callable = lambda value: value) -> None:
    "Measure what is missing, a few runs at a time."
    points, until = list(points), time.monotonic() + 60 * minutes
    while time.monotonic() < until and (todo := list(islice(incomplete(points, found, quality), 2 * os.cpu_count()))):
        start = time.monotonic()
        for (point, call), value in zip(todo, in_parallel(run, [call for _, call in todo])):
            setting, seed, split = call[-3:]
            if split == "test": point["test"][str(seed)] = value
            else: point["tried"][str(setting)] = value
            print(*call, value, f"({time.monotonic() - start:.0f} s)", sep=", ", flush=True)
        store({call[0] for _, call in todo})


def draws_from(seed: int, split: str, practice: int) -> range:
    "The draws that a run stands for: one to report, `practice` to choose by."
    return range(seed, seed + (1 if split == "test" else practice))


def write_table(file: Path, table: dict) -> None:
    "A study's numbers, whole or not at all."
    with atomic_write(file) as new: new.write_text(json.dumps(table, indent=1) + "\n")


def wanted(description: str, names: Iterable[str]) -> tuple[list[tuple[str, str, str]], float]:
    "From the command line: (study, budget or nothing, beginning of a method's name) for each thing asked for, and the minutes."
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("what", nargs="*", default=list(names), help="a study; or study/budget/beginning of a method's name (default: all)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing new after so many minutes")
    options = parser.parse_args()
    return [tuple((what + "//").split("/")[:3]) for what in options.what], options.minutes
