"""Rank against accuracy and trained weights, and what each way of fine-tuning does to the matrices: how far they go, and in how many directions.

    python -m benchmarks.low_rank

About twenty minutes on two cores; what is in the table already is not run again. MiniLM on the course's reviews with 64 labels a
class, and the course's encoder on docs-entities with 200 sentences. Five draws. Learning rates and the strength of the pull are
chosen among four candidates, on the validation split of one draw that is not measured; one learning rate serves all ranks, since
the factor α/r carries it over. The table goes to nbs/results/low_rank.json. Needs `pip install ftlearn[models]`."""
import itertools
import json
from dataclasses import replace
from pathlib import Path

import torch

from ftlearn.adaptation.low_rank import LoRA, weight_updates
from ftlearn.adaptation.proximal import L2SP
from ftlearn.core import in_parallel, interval
from ftlearn.data import load_task
from ftlearn.transfer.model import FullFineTuning, LinearProbe, Strategy, TransferModel, finetune

from .parts import write_table

TABLE = Path(__file__).parents[1]/"nbs"/"results"/"low_rank.json"
SMALL = "docs-encoder on docs-entities"
SETTINGS = {SMALL: ("docs-encoder", "docs-entities", 200, dict(steps=200, batch_size=32, measure_every=25)),
            "MiniLM on reviews": ("all-MiniLM-L6-v2", "reviews", 64, dict(steps=48, batch_size=16, measure_every=24))}
RANKS = {SMALL: (1, 4, 16, 64), "MiniLM on reviews": (1, 4, 8, 32)}
SEEDS, PRACTICE = range(5), 100
CANDIDATES = {"linear probe": [LinearProbe(head_lr=lr) for lr in (1e-3, 3e-3, 1e-2, 3e-2)],
              "LoRA": [LoRA(rank=4, lr=lr, head_lr=3e-3) for lr in (3e-4, 1e-3, 3e-3, 1e-2)],
              "full fine-tuning": [FullFineTuning(lr=lr, head_lr=3e-3) for lr in (1e-4, 3e-4, 1e-3, 3e-3)],
              "L2-SP": [L2SP(strength, head_lr=3e-3) for strength in (10.0, 30.0, 100.0, 300.0)]}
SLOWER = LoRA(rank=16, lr=3e-3, head_lr=3e-3)       # how far it goes depends on the rate, too
SHARES = (1, 2, 4, 8, 16, 32, 64, 128)       # how many singular values


def run(setting: str, strategy: Strategy, seed: int, tuning: bool = False) -> dict:
    "One draw: scores in %, and the update of the matrices."
    backbone, name, shots, options = SETTINGS[setting]
    task = load_task(name).few_shot(shots, seed)
    source = TransferModel.from_pretrained(backbone, task, seed=seed)
    result = finetune(TransferModel.from_pretrained(backbone, task, seed=seed), task, strategy, seed=seed, **options)
    score = lambda measured: round(100 * measured.get("f1", measured.get("accuracy")), 2)
    found = {"validation": score(result.validation), "loss": round(result.validation["loss"], 4)}
    if tuning: return found
    return found | {"test": score(result.test), "trained weights": result.trained_weights, "seconds": round(result.seconds, 1)} | spectrum(weight_updates(result.model, source))


def spectrum(updates: dict[str, torch.Tensor]) -> dict:
    "‖W − Wˢ‖ over all matrices, and the share of its square, in %, that the largest singular values hold: the mean over the matrices."
    squares = [torch.linalg.svdvals(update.double()).square() for update in updates.values() if update.any()]
    if not squares: return {"distance": 0.0}
    shares = [100 * torch.stack([s[:k].sum() / s.sum() for s in squares]).mean().item() for k in SHARES]
    return {"distance": round(sum(s.sum() for s in squares).sqrt().item(), 3), "shares": dict(zip(SHARES, (round(share, 1) for share in shares)))}


def label(strategy: Strategy, seed: int, tuning: bool) -> dict:
    "What tells a run from the others of its method."
    return {"strategy": {key: value for key, value in vars(strategy).items() if key in ("lr", "head_lr", "strength", "rank")}, "seed": seed, "tuning": tuning}


def measured(found: dict, setting: str, name: str, calls: list[tuple]) -> list[dict]:
    "The results of some runs, from the table or else now, two at a time."
    rows = found.setdefault(setting, {}).setdefault(name, [])
    def known(call): return next((row for row in rows if label(*call).items() <= row.items()), None)
    todo = [call for call in calls if not known(call)]
    for pair in (todo[i:i + 2] for i in range(0, len(todo), 2)):
        rows += [label(*call) | result for call, result in zip(pair, in_parallel(run, [(setting, *call) for call in pair]))]
        write_table(TABLE, {"command": "python -m benchmarks.low_rank", "unit": "accuracy, or F1, in %", "runs": found})
    return [known(call) for call in calls]


def main() -> None:
    found = json.loads(TABLE.read_text())["runs"] if TABLE.exists() else {}
    best: dict[tuple, Strategy] = {}
    for name, setting in itertools.product(CANDIDATES, SETTINGS):
        if name == "L2-SP" and setting != SMALL: continue          # where distances are compared
        candidates = CANDIDATES[name]
        if name == "L2-SP": candidates = [replace(candidate, lr=best[setting, "full fine-tuning"].lr) for candidate in candidates]
        tried = measured(found, setting, name, [(candidate, PRACTICE, True) for candidate in candidates])
        best[setting, name] = candidates[max(range(len(tried)), key=lambda i: (tried[i]["validation"], -tried[i]["loss"]))]
        for strategy in [replace(best[setting, name], rank=rank) for rank in RANKS[setting]] if name == "LoRA" else [best[setting, name]]:
            results = measured(found, setting, name, [(strategy, seed, False) for seed in SEEDS])
            print(setting, strategy, interval(r["test"] for r in results), flush=True)
    measured(found, SMALL, "LoRA, slower", [(SLOWER, seed, False) for seed in SEEDS])


if __name__ == "__main__": main()
