"""Run every benchmark and print the table of README.md."""
from . import features, proximal, training
from .timing import table

print(table([*proximal.measure(), *features.measure(), *training.measure()]))
