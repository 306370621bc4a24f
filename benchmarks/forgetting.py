"""Two tasks on two axes: digits learned, letters forgotten, for each way to stay near the source and each of its strengths.

    python -m benchmarks.forgetting [--minutes 4]

About six minutes on two cores; it goes on where it was stopped. The table goes to nbs/results/forgetting.json, and lesson 13 draws it."""
import argparse
import json
import time
from pathlib import Path

from ftlearn.adaptation.freezing import interpolate
from ftlearn.adaptation.proximal import FunctionSP, GroupSP, L1SP, L2SP
from ftlearn.core import in_parallel
from ftlearn.data import load_task
from ftlearn.training import evaluate
from ftlearn.transfer.model import FullFineTuning, LinearProbe, TransferModel, finetune

from .parts import write_table
from .strategies import ElasticWeights, letters, reader

TABLE = Path(__file__).parents[1]/"nbs"/"results"/"forgetting.json"
SHOTS, STEPS, LR, SEEDS = 5, 200, 1e-3, range(5)
LINES = {"L2-SP": [L2SP(k, lr=LR) for k in (10.0, 50.0, 250.0, 1000.0)], "group norm": [GroupSP(k, lr=LR) for k in (0.05, 0.15, 0.3, 0.6)],
         "L1-SP": [L1SP(k, lr=LR) for k in (0.05, 0.15, 0.3, 0.6)], "function space": [FunctionSP(k, lr=LR) for k in (1.0, 5.0, 25.0, 100.0)],
         "EWC": [ElasticWeights(k, lr=LR) for k in (10.0, 50.0, 250.0, 1000.0)],
         "smaller learning rate": [FullFineTuning(lr=lr) for lr in (1e-3, 3e-4, 1e-4, 3e-5)],
         "fewer steps": [15, 40, 80, 200], "weights averaged": [0.25, 0.5, 0.75, 1.0], "head only": [LinearProbe()]}


def run(line: str, setting, seed: int) -> tuple[float, float]:
    "Accuracy on digits and on letters, in %. The weights are the last ones, not the best: what is measured here is the pull."
    few = load_task("digits").few_shot(SHOTS, seed)
    model, steps = TransferModel.from_pretrained("glyph-cnn", few, seed=seed), setting if line == "fewer steps" else STEPS
    strategy = FullFineTuning(lr=LR) if line in ("fewer steps", "weights averaged") else setting
    finetune(model, few, strategy, steps=steps, measure_every=steps, seed=seed)
    if line == "weights averaged": model = interpolate(TransferModel.from_pretrained("glyph-cnn", few, seed=seed), model, setting)
    return tuple(round(100 * evaluate(m, split)["accuracy"], 2) for m, split in ((model, few.test), (reader(model.backbone, model.prepare), letters().test)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what is missing in the table of forgetting.")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing new after so many minutes")
    until = time.monotonic() + 60 * parser.parse_args().minutes
    found = json.loads(TABLE.read_text())["lines"] if TABLE.exists() else {}
    few = load_task("digits").few_shot(SHOTS, 0)
    source = TransferModel.from_pretrained("glyph-cnn", few)
    about = {"command": "python -m benchmarks.forgetting", "unit": "accuracy in % on digits and on letters, five draws", "letters before": round(100 * evaluate(reader(source.backbone, source.prepare), letters().test)["accuracy"], 2)}
    for line, settings in LINES.items():
        for setting in settings:
            if time.monotonic() > until or str(setting) in found.setdefault(line, {}): continue
            found[line][str(setting)] = in_parallel(run, [(line, setting, seed) for seed in SEEDS])
            print(line, setting, found[line][str(setting)], flush=True)
            write_table(TABLE, about | {"lines": found})


if __name__ == "__main__":
    from benchmarks import forgetting         # under its own name, so that other processes find what it holds
    forgetting.main()
