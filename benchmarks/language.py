"""Language models: tokens per second of `pretrain`'s loop beside transformers' `Trainer`, and the validation loss for the same tokens seen.

Both train the same architecture from the same weights on the same corpus, with the same batch, number of steps, learning
rate, schedule, clipping and threads. `Trainer` has its defaults otherwise, and its `DataCollatorForLanguageModeling`. Ours is
measured with its layers as they are and compiled, and how long the compiling took.

    python -m benchmarks.language [--objective MaskedLM] [--part quality]"""
import argparse
import copy
import os
import statistics
import tempfile
import time

import torch

from ftlearn.core import in_parallel, set_seed
from ftlearn.data import load_corpus
from ftlearn.pretraining.causal_lm import CausalLM, compiled_layers, use_plain_attention
from ftlearn.pretraining.masked_lm import MaskedLM
from ftlearn.training import fit

from .timing import Row

STEPS, ROUNDS, FASTER = 25, 4, 4          # steps a round; rounds of each, in turn; times, at least
LONG = {"MaskedLM": 1000, "CausalLM": 400}       # steps after which the losses are compared: the masked model leaves the unigram plateau at about 400, sooner or later by luck
SEEDS = (0, 1)
NO_WORSE = 0.03                           # nats


def with_fit(objective, model, train, steps: int, seed: int = 0) -> None:
    fit(model, train, steps=steps, lr=objective.lr, batch_size=objective.batch_size, objective=objective, seed=seed)


def with_compiled(objective, model, train, steps: int, seed: int = 0) -> None:
    with compiled_layers(model): with_fit(objective, model, train, steps, seed)


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


def speed(objective) -> list[Row]:
    "All ways in turn, a few steps at a time; the first round, in which layers are compiled, tells what that costs."
    set_seed(0)
    _, train, _ = objective.prepare(load_corpus("docs"))
    fresh = objective.fresh()
    ways = {"compiled": (with_compiled, use_plain_attention(copy.deepcopy(fresh))), "ours": (with_fit, use_plain_attention(copy.deepcopy(fresh))), "Trainer": (with_trainer, copy.deepcopy(fresh))}
    seconds, tokens = {name: [] for name in ways}, STEPS * objective.batch_size * objective.length
    for _ in range(1 + ROUNDS):
        for name, (way, learner) in ways.items():
            start = time.perf_counter()
            way(objective, learner, train, STEPS)
            seconds[name].append(time.perf_counter() - start)
    a_round = {name: statistics.median(found[1:]) for name, found in seconds.items()}
    compiling, saved = seconds["compiled"][0] - a_round["compiled"], (a_round["ours"] - a_round["compiled"]) / STEPS
    def row(what, name): return Row(what, f"{tokens / a_round[name]:,.0f} tokens/s, {a_round['Trainer'] / a_round[name]:.1f} × transformers' Trainer", f"≥ {FASTER} ×", a_round["Trainer"] >= FASTER * a_round[name])
    return [row(f"{objective.name}, 64 × 64 tokens a step, layers compiled", "compiled"), row("its layers as they are", "ours"),
            Row("compiling", f"{compiling:.0f} s, worth it from {compiling / saved:,.0f} steps" if saved > 0 else "saves nothing")]


def loss_after(objective, way: str, seed: int) -> float:
    "The validation loss, in nats."
    _, train, validation = objective.prepare(load_corpus("docs"))
    set_seed(seed)
    model = objective.fresh()
    if way == "Trainer": with_trainer(objective, model, train, LONG[objective.name], seed)
    else: with_compiled(objective, use_plain_attention(model), train, LONG[objective.name], seed)
    return objective.measure(model, validation)["loss"]


def quality(objective) -> Row:
    "The loss after as many tokens, from the same weights."
    losses = {way: in_parallel(loss_after, [(objective, way, seed) for seed in SEEDS]) for way in ("ours", "Trainer")}
    shown = {way: ", ".join(f"{loss:.2f}" for loss in found) for way, found in losses.items()}
    return Row(f"validation loss after {LONG[objective.name]:,} steps", f"{shown['ours']}, and Trainer {shown['Trainer']}", f"on average no worse by {NO_WORSE}",
               statistics.mean(losses["ours"]) <= statistics.mean(losses["Trainer"]) + NO_WORSE)


OBJECTIVES = {objective.name: objective for objective in (MaskedLM(), CausalLM())}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Pretraining beside transformers' Trainer.")
    parser.add_argument("--objective", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--part", nargs="+", choices=("speed", "quality"), default=("speed", "quality"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as empty:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty         # nothing compiled before
        for objective in map(OBJECTIVES.get, options.objective):
            if "speed" in options.part: print(*speed(objective), sep="\n", flush=True)
            if "quality" in options.part: print(quality(objective), flush=True)
