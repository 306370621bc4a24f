"""word2vec: words per second and quality beside gensim, with the same threads, text and settings, five seeds each. Needs `pip install gensim`.

    python -m benchmarks.words

Numbers go to nbs/results/word_vectors.json, which lesson 3 reads; those of WordSim-353 where it is in $FTLEARN_DATA."""
import os
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from ftlearn.core import interval
from ftlearn.data import load_corpus
from ftlearn.pretraining.word_vectors import SkipGram, Vocabulary, WordVectors, analogies, word_similarity, words_of
from ftlearn.training import pretrain

from .parts import SEEDS, write_table
from .timing import Row, table

TABLE = Path(__file__).parents[1]/"nbs"/"results"/"word_vectors.json"
EPOCHS = 3


def solved(vectors: WordVectors) -> float:
    "The share of the analogies of lesson 3 that are solved, in %."
    return 100 * np.mean(sum(analogies(vectors).values(), []))


def rated(vectors: WordVectors) -> float:
    "The rank correlation with WordSim-353, if it is in $FTLEARN_DATA."
    files = sorted(Path(os.environ.get("FTLEARN_DATA", "nowhere"), "word_similarity").glob("*353*"))
    return word_similarity(vectors, files[0])[0] if files else float("nan")


def by_gensim(sentences: list[list[str]], vocabulary: Vocabulary, seed: int) -> tuple[WordVectors, float]:
    "The reference's vectors for the words of our vocabulary, and the seconds they took."
    from gensim.models import Word2Vec
    start = time.perf_counter()
    made = Word2Vec(sentences, vector_size=100, window=5, negative=5, sample=1e-3, min_count=5, sg=1, epochs=EPOCHS, workers=torch.get_num_threads(), seed=seed).wv
    seconds = time.perf_counter() - start
    vectors = WordVectors(vocabulary, 100)
    with torch.no_grad(): vectors.centre.copy_(torch.tensor(np.stack([made[word] for word in vocabulary.words])))
    return vectors, seconds


def measured(vectors: WordVectors, words_a_second: float) -> dict[str, float]:
    return {"words a second": round(words_a_second), "analogies": round(float(solved(vectors)), 1), "WordSim-353": round(rated(vectors), 3)}


def study() -> dict[str, dict[int, dict[str, float]]]:
    "For ours and gensim's, in turn: what was measured, by seed."
    corpus, found = load_corpus("docs"), {"ours": {}, "gensim": {}}
    sentences = [words_of(text) for text in corpus.train]
    words = EPOCHS * sum(map(len, sentences))
    for seed in SEEDS:
        objective = SkipGram(seed=seed)
        _, train, _ = objective.prepare(corpus)
        start = time.perf_counter()
        ours = pretrain(objective, corpus, steps=EPOCHS * len(train) // objective.batch_size, seed=seed).model
        found["ours"][seed] = measured(ours, words / (time.perf_counter() - start))
        theirs, seconds = by_gensim(sentences, ours.vocabulary, seed)
        found["gensim"][seed] = measured(theirs, words / seconds)
        print(seed, *found["ours"][seed].items(), *found["gensim"][seed].items(), flush=True)
    return found


def rows(found: dict) -> list[Row]:
    def of(name, what): return [values[what] for values in found[name].values()]
    def beside(what, unit=1): return ", and gensim ".join(str(interval(unit * value for value in of(name, what))) for name in found)
    speed = median(of("ours", "words a second")), median(of("gensim", "words a second"))
    return [Row("word2vec on the docstrings", f"{speed[0]:,.0f} words/s, {speed[0] / speed[1]:.2f} × gensim (which is written in C)"),
            Row("analogies solved, in %", beside("analogies")), Row("WordSim-353, rank correlation in hundredths", beside("WordSim-353", 100))]


if __name__ == "__main__":
    scores = study()
    write_table(TABLE, {"command": "python -m benchmarks.words", "unit": "analogies in %, WordSim-353 as Spearman's rank correlation", "scores": scores})
    print(table(rows(scores)))
