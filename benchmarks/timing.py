"""Fair comparisons on a machine that does other things too."""
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


def interleaved(candidates: Mapping[str, Callable[[], object]],   # what is compared; each call does the same amount of work
                rounds: int = 15,
                warmup: int = 2,                                  # rounds that are not counted
               ) -> dict[str, float]:                             # median seconds of a call
    "Time candidates in turn, so that whatever else the machine does slows down all of them alike."
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(warmup + rounds):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[warmup:]) for name, values in seconds.items()}


class Row(NamedTuple):
    "One line of the table."
    what: str
    measured: str
    promise: str = ""          # what must hold, if anything
    kept: bool = True

    def __str__(self) -> str: return f"| {self.what} | {self.measured} | {self.promise}{'' if self.kept else ' **not kept**'} |"


def table(rows: list[Row]) -> str:
    "The rows in Markdown."
    return "\n".join(["| | measured | promised |", "|---|---|---|", *map(str, rows)])
