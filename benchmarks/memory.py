"""Peak memory of pretraining on corpora of 10, 100 and 1,000 MB, made by repeating one text: it should be flat.

Each runs in a process of its own, with a cache of its own; the largest takes several minutes and 0.5 GB of disk."""
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ftlearn.data import load_corpus

from .timing import Row, table

SIZES = (10, 100, 1000)        # MB
FLAT = 1.15                    # times the memory for the smallest, at most

RUN = """
import resource, sys
from ftlearn.pretraining.masked_lm import MaskedLM
from ftlearn.training import pretrain
pretrain(MaskedLM(), sys.argv[1], steps=20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)
"""


def peak(megabytes: int) -> float:
    "In MB."
    text = "\n".join(load_corpus("docs").train)
    with tempfile.TemporaryDirectory() as folder:
        with open(Path(folder)/"text.txt", "w", encoding="utf8") as file:
            written = 0
            while written < megabytes * 1e6: written += file.write(text[:int(megabytes * 1e6 - written)])
        result = subprocess.run([sys.executable, "-c", RUN, f"{folder}/text.txt"], env=os.environ | {"FTLEARN_CACHE": f"{folder}/cache"},
                                capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


def measure(sizes=SIZES) -> list[Row]:
    peaks = [peak(size) for size in sizes]
    return [Row(f"peak memory of pretraining on {size} MB of text", f"{found:.0f} MB", f"≤ {FLAT} × the first", found <= FLAT * peaks[0]) for size, found in zip(sizes, peaks)]


if __name__ == "__main__": print(table(measure()))
