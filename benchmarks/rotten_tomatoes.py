"""Rotten Tomatoes with 32 and 256 labels a class: a bag of words, MiniLM probed and fine-tuned, `Trainer` with its defaults, and SetFit.

    FTLEARN_DATA=... python -m benchmarks.rotten_tomatoes

About an hour on two cores; SetFit takes part where it is installed (`pip install setfit`). Five draws; our learning rates are
chosen on a draw that is not measured. The table goes to nbs/results/rotten_tomatoes.json."""
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from ftlearn.core import interval, set_seed
from ftlearn.data import few_shot_rows, load_task
from ftlearn.transfer.model import FullFineTuning, LinearProbe, TransferModel, finetune, minilm
from ftlearn.transfer.text import bag_of_words

from .text import with_trainer

TABLE = Path(__file__).parents[1]/"nbs"/"results"/"rotten_tomatoes.json"
SHOTS, SEEDS, PRACTICE = (32, 256), range(5), 100
LRS = (5e-5, 1e-4, 2e-4)
MEASURED = 1000                      # test rows


def drawn(task, shots: int, seed: int):
    "A draw whose validation split is no larger than its training split: nobody with 64 labels has a thousand to choose by."
    few = task.few_shot(shots, seed)
    def balanced(split, n): return split.select(few_shot_rows(split.labels, n // 2, 0, task.label_names))       # the rows are sorted by class
    few.validation, few.test = balanced(task.validation, 2 * shots), balanced(task.test, MEASURED)
    return few


def ours(strategy, epochs: int, few, seed: int, split: str = "test") -> float:
    result = finetune(TransferModel.from_pretrained("all-MiniLM-L6-v2", few, seed=seed), few, strategy, epochs=epochs, batch_size=16, seed=seed)
    return 100 * (result.test if split == "test" else result.validation)["accuracy"]


def trainer(few, seed: int) -> float:
    "transformers' `Trainer` with its defaults: three epochs, batches of eight, 5e-5."
    learner, rows = with_trainer(few.train, seed=seed, per_device_eval_batch_size=32)
    return 100 * float((learner.predict(rows(few.test)).predictions.argmax(1) == few.test.labels.numpy()).mean())


def setfit(few, seed: int) -> float:
    "SetFit (Tunstall et al. 2022) with its defaults, but for the number of pairs at 256 labels a class."
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments
    set_seed(seed)
    model = SetFitModel.from_pretrained(str(minilm()))
    rows = Dataset.from_dict({"text": list(few.train.inputs), "label": few.train.labels.tolist()})
    with tempfile.TemporaryDirectory() as folder:
        Trainer(model, TrainingArguments(output_dir=folder, num_epochs=1, max_steps=250, seed=seed, report_to="none"), train_dataset=rows).train()
    return 100 * float((np.array(model.predict(list(few.test.inputs))) == few.test.labels.numpy()).mean())


def main(methods) -> None:
    task = load_task("rotten_tomatoes")
    found = json.loads(TABLE.read_text())["scores"] if TABLE.exists() else {}
    for shots in SHOTS:
        epochs = 12 if shots < 100 else 4
        few = [drawn(task, shots, seed) for seed in SEEDS]
        practice = drawn(task, shots, PRACTICE)
        ways = {"bag of words": lambda f, s: 100 * bag_of_words(f), "linear probe": lambda f, s: ours(LinearProbe(head_lr=3e-3), 5 * epochs, f, s),
                "Trainer, defaults": trainer} | ({"SetFit": setfit} if importlib.util.find_spec("setfit") else {})
        if "fine-tuned" in methods or not methods:
            lr = max(LRS, key=lambda lr: ours(FullFineTuning(lr=lr, head_lr=1e-3), epochs, practice, 0, "validation"))
            ways["fine-tuned"] = lambda f, s: ours(FullFineTuning(lr=lr, head_lr=1e-3), epochs, f, s)
        for name, way in ways.items():
            if methods and name not in methods: continue
            found.setdefault(name, {})[str(shots)] = [round(way(f, seed), 1) for seed, f in zip(SEEDS, few)]
            print(shots, name, interval(found[name][str(shots)]), flush=True)
            TABLE.write_text(json.dumps({"command": "python -m benchmarks.rotten_tomatoes", "unit": f"accuracy in % on {MEASURED} test sentences, five draws", "scores": found}, indent=1) + "\n")


if __name__ == "__main__": main(sys.argv[1:])
