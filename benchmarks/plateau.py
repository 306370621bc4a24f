"""The unigram plateau: a small BERT of 2018 and the encoder of the course, the same objective, 2.4 million tokens each.

    python -m benchmarks.plateau

About ten minutes on two cores. Each architecture gets the better of two learning rates, then three seeds. The table goes to
nbs/results/plateau.json, and lesson 6 draws it."""
from pathlib import Path

from ftlearn.core import in_parallel
from ftlearn.pretraining.masked_lm import MaskedLM
from ftlearn.training import pretrain

from .parts import write_table

TABLE = Path(__file__).parents[1]/"nbs"/"results"/"plateau.json"
STEPS, LRS, SEEDS = 600, (1e-3, 3e-3), (0, 1, 2)


class PostNormLM(MaskedLM):
    "The same objective for BERT's architecture of 2018: normalisation after each block, learned positions."

    def fresh(self):
        from transformers import BertConfig, BertForMaskedLM
        return BertForMaskedLM(BertConfig(vocab_size=len(self.tokenizer), hidden_size=self.width, num_hidden_layers=self.layers, num_attention_heads=self.width // 32,
                                          intermediate_size=2 * self.width, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))


KINDS = {"post-norm, learned positions (2018)": PostNormLM, "pre-norm, rotary positions (2024)": MaskedLM}


def run(name: str, lr: float, seed: int) -> list[dict]:
    "What was measured on the way."
    found = pretrain(KINDS[name](), "docs", steps=STEPS, lr=lr, seed=seed, measure_every=STEPS // 20).history.measurements
    return [{"step": m["step"], "loss": round(m["loss"], 3), "first guess": round(m["first guess"], 4)} for m in found]


def main() -> None:
    tried = iter(in_parallel(run, [(name, lr, SEEDS[0]) for name in KINDS for lr in LRS]))
    tried = {name: {lr: next(tried) for lr in LRS} for name in KINDS}
    best = {name: min(LRS, key=lambda lr: tried[name][lr][-1]["loss"]) for name in KINDS}
    others = iter(in_parallel(run, [(name, best[name], seed) for name in KINDS for seed in SEEDS[1:]]))
    runs = {name: {"lr": best[name], "seeds": [tried[name][best[name]], *(next(others) for _ in SEEDS[1:])]} for name in KINDS}
    TABLE.parent.mkdir(exist_ok=True)
    write_table(TABLE, {"command": "python -m benchmarks.plateau", "batch": "64 rows of 64 tokens", "runs": runs})
    for name, found in runs.items(): print(name, found["lr"], [seed[-1] for seed in found["seeds"]])


if __name__ == "__main__": main()
