"""Language models: tokens per second of `pretrain`'s loop beside transformers' `Trainer`, and the validation loss for the same tokens seen.

Both train the same architecture from the same weights on the same corpus, with the same batch, number of steps, learning
rate, schedule, clipping and threads. `Trainer` has its defaults otherwise, and its `DataCollatorForLanguageModeling`."""
import copy
import statistics
import tempfile
import time

import torch

from ftlearn.core import set_seed
from ftlearn.data import load_corpus
from ftlearn.pretraining.causal_lm import CausalLM, use_plain_attention
from ftlearn.pretraining.masked_lm import MaskedLM
from ftlearn.training import fit

from .timing import Row, table

STEPS, ROUNDS, FASTER = 25, 4, 4          # steps a round; rounds of each, in turn; times, at least
LONG, SEEDS = 400, (0, 1)                 # steps after which the losses are compared, and the runs of each: the masked model leaves its plateau sooner or later by luck
NO_WORSE = 0.03                           # nats


def with_fit(objective, model, train, steps: int, seed: int = 0) -> None:
    fit(model, train, steps=steps, lr=objective.lr, batch_size=objective.batch_size, objective=objective, seed=seed)


def with_trainer(objective, model, train, steps: int, seed: int = 0) -> None:
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments
    masked = isinstance(objective, MaskedLM)
    if objective.tokenizer.pad_token is None: objective.tokenizer.pad_token = objective.tokenizer.eos_token     # the collator wants one; nothing is padded
    collator = DataCollatorForLanguageModeling(objective.tokenizer, mlm=masked, mlm_probability=objective.rate if masked else None)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:steps * objective.batch_size]
    rows = [{"input_ids": row} for row in train[order.tolist()]]
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(folder, max_steps=steps, per_device_train_batch_size=objective.batch_size, learning_rate=objective.lr, weight_decay=0.01,
                                    warmup_steps=round(0.1 * steps), lr_scheduler_type="cosine", report_to=[], use_cpu=True, save_strategy="no",
                                    logging_strategy="no", disable_tqdm=True, seed=seed)
        Trainer(model, options, train_dataset=rows, data_collator=collator).train()


def measure(objectives=(MaskedLM(), CausalLM())) -> list[Row]:
    rows = []
    for objective in objectives:
        set_seed(0)
        _, train, validation = objective.prepare(load_corpus("docs"))
        ways = {"ours": (with_fit, lambda: use_plain_attention(copy.deepcopy(fresh))), "Trainer": (with_trainer, lambda: copy.deepcopy(fresh))}
        fresh = objective.fresh()
        seconds, tokens = {name: [] for name in ways}, STEPS * objective.batch_size * objective.length
        for _ in range(1 + ROUNDS):                                     # the first round is not counted
            for name, (way, model) in ways.items():
                learner, start = model(), time.perf_counter()
                way(objective, learner, train, STEPS)
                seconds[name].append(time.perf_counter() - start)
        faster = statistics.median(seconds["Trainer"][1:]) / statistics.median(seconds["ours"][1:])
        losses = {name: [] for name in ways}
        for seed in SEEDS:
            set_seed(seed)
            fresh = objective.fresh()
            for name, (way, model) in ways.items():
                learner = model()
                way(objective, learner, train, LONG, seed)
                losses[name].append(objective.measure(learner, validation)["loss"])
        shown = {name: ", ".join(f"{loss:.2f}" for loss in found) for name, found in losses.items()}
        what = f"{objective.name}, 64 × 64 tokens a step"
        rows += [Row(what, f"{tokens / statistics.median(seconds['ours'][1:]):,.0f} tokens/s, {faster:.1f} × transformers' Trainer", f"≥ {FASTER} ×", faster >= FASTER),
                 Row(f"validation loss after {LONG} steps", f"{shown['ours']}, and Trainer {shown['Trainer']}", f"on average no worse by {NO_WORSE}",
                     statistics.mean(losses["ours"]) <= statistics.mean(losses["Trainer"]) + NO_WORSE)]
    return rows


if __name__ == "__main__": print(table(measure()))
