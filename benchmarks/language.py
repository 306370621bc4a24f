"""Language models: tokens per second of `pretrain`'s loop beside transformers' `Trainer`, and the validation loss for the same tokens seen.

Both train the same architecture from the same weights on the same corpus, with the same batch, number of steps, learning
rate, schedule, clipping and threads. `Trainer` has its defaults otherwise, and its `DataCollatorForLanguageModeling`. Ours is
measured with its layers as they are and compiled, how long the compiling took, and what autocast alone would give.

    python -m benchmarks.language [--objective MaskedLM] [--part quality]"""
import argparse
import copy
import os
import statistics
import tempfile
import time
from functools import partial

import torch

from ftlearn.core import in_parallel, set_seed
from ftlearn.data import load_corpus
from ftlearn.pretraining.causal_lm import CausalLM, compiled_layers, use_plain_attention
from ftlearn.pretraining.masked_lm import MaskedLM
from ftlearn.training import fit

from .timing import Row, interleaved

STEPS, ROUNDS, FASTER = 25, 7, 4          # steps a round; rounds of each, in turn; times, at least
IN_TURN, TURNS = 3, 40                    # steps of two ways in turn; turns
LONG = {"MaskedLM": 1000, "CausalLM": 400}       # steps after which the losses are compared: the masked model leaves the unigram plateau at about 400, sooner or later by luck
SEEDS = (0, 1)
NO_WORSE = 0.03                           # nats


def with_fit(objective, model, train, steps: int, seed: int = 0, loss=None) -> None:
    fit(model, train, steps=steps, lr=objective.lr, batch_size=objective.batch_size, objective=loss or objective, seed=seed)


def with_autocast(objective, model, train, steps: int, seed: int = 0) -> None:
    "As `with_fit`, but in float32 wherever autocast asks for it."
    with_fit(objective, model, train, steps, seed, loss=lambda model, tokens, _: objective.loss(model, tokens))


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
    faster = {name: sorted(theirs / own for own, theirs in zip(found[1:], seconds["Trainer"][1:])) for name, found in seconds.items()}      # round by round
    compiling, saved = seconds["compiled"][0] - a_round["compiled"], (a_round["ours"] - a_round["compiled"]) / STEPS
    def row(what, name):
        ratio, rounds = statistics.median(faster[name]), faster[name]
        return Row(what, f"{tokens / a_round[name]:,.0f} tokens/s, {ratio:.1f} × transformers' Trainer ({rounds[0]:.1f} to {rounds[-1]:.1f})", f"≥ {FASTER} ×", ratio >= FASTER)
    return [row(f"{objective.name}, 64 × 64 tokens a step, layers compiled", "compiled"), row("its layers as they are", "ours"),
            Row("by autocast alone, three steps of each in turn", f"{of_autocast(objective, fresh, train):.2f} × the time"),
            Row("compiling", f"{compiling:.0f} s, worth it from {compiling / saved:,.0f} steps" if saved > 0 else "saves nothing")]


def of_autocast(objective, fresh, train) -> float:
    "How long a step takes by autocast alone, times one in bfloat16 throughout."
    seconds = interleaved({way: partial(way, objective, use_plain_attention(copy.deepcopy(fresh)), train, IN_TURN) for way in (with_fit, with_autocast)}, TURNS)
    return seconds[with_autocast] / seconds[with_fit]


def loss_after(objective, way: str, seed: int) -> float:
    "The validation loss, in nats."
    _, train, validation = objective.prepare(load_corpus("docs"))
    set_seed(seed)
    model = objective.fresh()
    train_it = {"ours": with_compiled, "autocast": with_autocast, "Trainer": with_trainer}[way]
    train_it(objective, model if way == "Trainer" else use_plain_attention(model), train, LONG[objective.name], seed)
    return objective.measure(model, validation)["loss"]


def quality(objective) -> Row:
    "The loss after as many tokens, from the same weights."
    losses = {way: in_parallel(loss_after, [(objective, way, seed) for seed in SEEDS]) for way in ("ours", "autocast", "Trainer")}
    shown = {way: ", ".join(f"{loss:.2f}" for loss in found) for way, found in losses.items()}
    return Row(f"validation loss after {LONG[objective.name]:,} steps", f"{shown['ours']}, by autocast alone {shown['autocast']}, and Trainer {shown['Trainer']}", f"on average no worse by {NO_WORSE}",
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
