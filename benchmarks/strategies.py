"""Every strategy of the course on its own data: digits, names of code in docstrings, reviews; few labels, many draws, tuned alike.

    python -m benchmarks.strategies [digits/5] [reviews] ... [--minutes 4]

An hour and three quarters on two cores. Each strategy has as many settings to choose from as every other, and they are compared on the
validation split of a practice draw, which is not measured; with the fewest labels of each task on three, since there a single one let luck
choose. On digits it is also measured how well letters are still read. Every number goes to nbs/results/strategies.json as soon as it is
there, and what is there is not measured again, so the work can be done in parts."""
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from torch import nn

from ftlearn.adaptation.freezing import BiasesAndNorms, DiscriminativeRates, GradualUnfreezing, PairsThenProbe, PartialFreezing
from ftlearn.adaptation.low_rank import LoRA
from ftlearn.adaptation.proximal import EWC, FunctionSP, GroupSP, L1SP, L2SP, fisher
from ftlearn.data import load_corpus, load_task
from ftlearn.pretraining.images import glyph_cnn
from ftlearn.pretraining.masked_lm import MaskedLM, docs_encoder, look_up
from ftlearn.training import evaluate, read_weights
from ftlearn.transfer.images import pixel_baseline
from ftlearn.transfer.model import FullFineTuning, LinearProbe, Strategy, TextEncoder, TransferModel, finetune
from ftlearn.transfer.text import bag_of_words

from .parts import draws_from, measure, wanted, write_table

TABLE = Path(__file__).parents[1]/"nbs"/"results"/"strategies.json"


@dataclass(frozen=True)
class Data:
    "A task with its backbone, and how long it is trained."
    backbone: str
    shots: tuple[int, ...]           # labels a class; sentences, where each word has a label
    lrs: tuple[float, float]         # of the backbone
    steps: int
    draws: int = 5
    batch_size: int = 32
    baseline: Callable = bag_of_words
    adapters: float = 5              # how many times as large the rates of adapters are
    strengths: tuple[float, float] = (0.1, 0.3)      # of unsquared pulls
    practice: Mapping[int, int] = field(default_factory=dict)      # by shots: draws that settings are chosen on, where it is more than one


DATA = {"digits": Data("glyph-cnn", (2, 5, 10), (1e-4, 3e-4), 100, 10, baseline=pixel_baseline, adapters=10, practice={2: 3}),
        "docs-entities": Data("docs-encoder", (50, 200), (1e-3, 3e-3), 150, 10, 16, lambda task: look_up(task) / 100, practice={50: 3, 200: 3}, strengths=(0.03, 0.1)),
        "reviews": Data("all-MiniLM-L6-v2", (16, 64), (1e-4, 3e-4), 40, 5, 16, practice={16: 3})}


def grid(strategy, data: Data, name: str, values) -> list[Strategy]:
    "Both learning rates, with two values of another setting."
    return [strategy(lr=lr, **{name: value}) for lr in data.lrs for value in values]


def rates(strategy, data: Data, factor: float = 1) -> list[Strategy]:
    "Four learning rates."
    low, high = data.lrs
    return [strategy(lr=round(factor * lr, 6)) for lr in (low / 3, low, high, 3 * high)]


def summing(strategy, data: Data) -> list[Strategy]:
    "Both learning rates, with a pull that sums to half over the run and with one that sums to five."
    return [strategy(round(share / (lr * data.steps), 2), lr=lr) for lr in data.lrs for share in (0.5, 5)]


METHODS: dict[str, Callable[[Data], list[Strategy]]] = {
    "linear probe": lambda data: [LinearProbe(head_lr=lr) for lr in (1e-3, 3e-3, 1e-2, 3e-2)],
    "last block": lambda data: rates(lambda lr: PartialFreezing(1, lr=lr), data),
    "full fine-tuning": lambda data: rates(FullFineTuning, data),
    "probe, then fine-tuning": lambda data: rates(FullFineTuning, data),
    "discriminative rates": lambda data: rates(DiscriminativeRates, data, 3),
    "gradual unfreezing": lambda data: rates(lambda lr: GradualUnfreezing(lr=lr, every=data.steps // 10), data),
    "pairs, then a probe": lambda data: rates(lambda lr: PairsThenProbe(lr=lr, pair_steps=data.steps * data.batch_size // 32), data),       # as many rows as the others see
    "biases and norms": lambda data: rates(BiasesAndNorms, data, 3),
    "L2-SP": lambda data: summing(L2SP, data),
    "group norm": lambda data: grid(GroupSP, data, "strength", data.strengths),
    "L1-SP": lambda data: grid(L1SP, data, "strength", data.strengths),
    "function space": lambda data: grid(FunctionSP, data, "strength", (1.0, 10.0)),
    "EWC": lambda data: summing(partial(ElasticWeights, backbone=data.backbone), data),
    "LoRA": lambda data: [LoRA(lr=round(data.adapters * lr, 6), rank=rank) for lr in data.lrs for rank in (4, 16)]}
ONLY = {"EWC": ("digits", "docs-entities"),                 # it needs rows of the source task
        "pairs, then a probe": ("digits", "reviews")}       # it compares whole rows


@dataclass
class ElasticWeights(EWC):
    "EWC with the importance that the weights of a backbone have for what it was pretrained on."
    backbone: str = ""

    def importance_of(self, weights): return IMPORTANCE[self.backbone]()


@cache
def letters(): return load_task("glyphs", n=20)


def reader(backbone: nn.Module, prepare: nn.Module) -> nn.Module:
    "A backbone with the head that pretraining on letters left."
    head = read_weights(glyph_cnn()/"head.safetensors")
    model = nn.Sequential(prepare, backbone, nn.Linear(*head["weight"].shape[::-1]))
    model[2].load_state_dict(head)
    return model.eval()


@cache
def for_letters() -> list:
    model = TransferModel.from_pretrained("glyph-cnn", load_task("digits"))
    return fisher(reader(model.backbone, model.prepare), model.backbone.parameters(), letters().validation.inputs[:300])


class Guess(nn.Module):
    "Scores of all tokens for the one that is masked."

    def __init__(self, backbone: TextEncoder, objective: MaskedLM, bias: nn.Parameter):
        super().__init__()
        self.backbone, self.mask, self.bias = backbone, objective.tokenizer.mask_token_id, bias

    def forward(self, tokens):
        hidden = self.backbone({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
        return F.linear(hidden[tokens == self.mask], self.backbone.native.get_input_embeddings().weight, self.bias)


@cache
def for_guesses() -> list:
    "One token is masked in each block of text."
    objective = MaskedLM()
    pretrained, blocks, _ = objective.prepare(load_corpus("docs"), docs_encoder())
    rng = torch.Generator().manual_seed(0)
    tokens = blocks[torch.randperm(len(blocks), generator=rng)[:500].tolist()]
    tokens[range(len(tokens)), torch.randint(tokens.shape[1], (len(tokens),), generator=rng)] = objective.tokenizer.mask_token_id
    model = TransferModel.from_pretrained("docs-encoder", load_task("docs-entities"))
    return fisher(Guess(model.backbone, objective, pretrained.get_output_embeddings().bias), model.pretrained_weights(), tokens)


IMPORTANCE = {"glyph-cnn": for_letters, "docs-encoder": for_guesses}


def run(task: str, shots: int, method: str, strategy: Strategy | None, seed: int, split: str) -> dict[str, float]:
    "One strategy on one draw: accuracy or F1 in %, and for digits the accuracy on letters afterwards."
    data, few = DATA[task], load_task(task).few_shot(shots, seed)
    if strategy is None: return {"score": round(100 * float(data.baseline(few)), 2)}
    model = TransferModel.from_pretrained(data.backbone, few, seed=seed)
    options = {"batch_size": data.batch_size, "seed": seed}
    if method == "probe, then fine-tuning": finetune(model, few, LinearProbe(), steps=100, **options)
    result = finetune(model, few, strategy, steps=(5 if isinstance(strategy, LinearProbe) else 1) * data.steps, measure_every=max(1, data.steps // 5), **options)
    measured = result.test if split == "test" else result.validation
    found = {"score": round(100 * measured.get("f1", measured.get("accuracy")), 2), "loss": round(measured["loss"], 4)}
    if task == "digits": found["letters"] = round(100 * evaluate(reader(model.backbone, model.prepare), letters().test)["accuracy"], 2)
    return found


def score(task: str, shots: int, method: str, strategy: Strategy | None, seed: int, split: str) -> dict[str, float]:
    "What `run` measures, to choose by (the mean of the practice draws) or to report."
    found = [run(task, shots, method, strategy, draw, split) for draw in draws_from(seed, split, DATA[task].practice.get(shots, 1))]
    return {name: round(mean(values[name] for values in found), 4) for name in found[0]}


def main() -> None:
    chosen, minutes = wanted("Measure what is missing in the table of strategies.", DATA)
    found = json.loads(TABLE.read_text())["scores"] if TABLE.exists() else {}
    points = [((task, shots, method), METHODS[method](DATA[task]) if method in METHODS else [], range(DATA[task].draws)) for task, budget, beginning in chosen for shots in DATA[task].shots
              if budget in ("", str(shots)) for method in ("baseline", *METHODS) if method.startswith(beginning) and task in ONLY.get(method, DATA)]
    about = {"command": "python -m benchmarks.strategies", "unit": "accuracy, or F1 of names, in %"}
    def save(tasks):
        write_table(TABLE, about | {"scores": found})
    measure(score, points, found, save, minutes, quality=lambda value: (value["score"], -value["loss"]))


if __name__ == "__main__":
    from benchmarks import strategies         # under its own name, so that other processes find what it holds
    strategies.main()
