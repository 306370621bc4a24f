"""Where the time of a step of pretraining goes, and how much of it no program could save on this machine.

    python -m benchmarks.profile

Operations are grouped by what they do. Beside the time of the matrix products stands the time that they would take at the speed of a
single large product in the same number format: the limit of the hardware."""
import time
from collections import Counter

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ftlearn.core import autocast_dtype, set_seed
from ftlearn.data import load_corpus
from ftlearn.pretraining.causal_lm import CausalLM, use_plain_attention
from ftlearn.pretraining.masked_lm import MaskedLM

from .language import with_fit
from .timing import interleaved

STEPS, LARGE = 10, 2048
KINDS = {"matrix products": ("mm",), "softmax": ("softmax",), "activation": ("gelu", "silu"), "normalisation": ("norm",), "optimizer": ("adam",),
         "copies and changes of format": ("copy", "cat", "fill", "zero", "clone", "index", "add")}      # by what is in an operation's name, in this order


def kind_of(operation: str) -> str:
    return next((kind for kind, words in KINDS.items() if operation.startswith("aten::") and any(word in operation for word in words)), "everything else")


def speed_of_products(dtype: torch.dtype) -> float:
    "Operations per second of a large product."
    a, b = torch.randn(2, LARGE, LARGE).to(dtype)
    return 2 * LARGE**3 / interleaved({"product": lambda: a @ b})["product"]


def shares(objective) -> str:
    "A table for one objective, in milliseconds a step."
    set_seed(0)
    _, train, _ = objective.prepare(load_corpus("docs"))
    model = use_plain_attention(objective.fresh())
    with_fit(objective, model, train, STEPS)
    with FlopCounterMode(display=False) as counter: with_fit(objective, model, train, 1)
    start = time.perf_counter()
    with_fit(objective, model, train, STEPS)
    step = (time.perf_counter() - start) / STEPS
    with profile(activities=[ProfilerActivity.CPU]) as profiled: with_fit(objective, model, train, STEPS)
    found = Counter()
    for operation in profiled.key_averages(): found[kind_of(operation.key)] += operation.self_cpu_time_total
    total = sum(found.values())
    limit = counter.get_total_flops() / speed_of_products(autocast_dtype() or torch.float32)
    lines = [f"| {kind} | {1e3 * step * part / total:.0f} ms | {part / total:.0%} |" for kind, part in found.most_common()]
    return "\n".join([f"{objective.name}, a step of {1e3 * step:.0f} ms:", "", "| | a step | share |", "|---|---|---|", *lines, "",
                      f"Its matrix products, {counter.get_total_flops() / 1e9:.0f} GFLOP, would take {1e3 * limit:.0f} ms at the speed of one large product."])


if __name__ == "__main__": print(*map(shares, (MaskedLM(), CausalLM())), sep="\n\n")
