"""word2vec: words per second and quality beside gensim, with the same threads, text and settings. Needs `pip install gensim`."""
import os
import time
from pathlib import Path

import numpy as np
import torch

from ftlearn.data import load_corpus
from ftlearn.pretraining.word_vectors import SkipGram, WordVectors, words_of
from ftlearn.training import pretrain

from .timing import Row, table

EPOCHS = 3
RELATIONS = ("row rows column columns value values array arrays function functions element elements parameter parameters edge edges node nodes axis axes",
             "return returns compute computes create creates add adds convert converts apply applies use uses call calls represent represents",
             "minimum maximum lower upper left right first last input output true false start end smallest largest before after")


def solved(vectors: WordVectors) -> float:
    "The share of the analogies of lesson 3 that are solved, in %."
    pairs = [list(zip(words.split()[::2], words.split()[1::2])) for words in RELATIONS]
    return 100 * np.mean([vectors.analogy(a, b, c) == [d] for relation in pairs for a, b in relation for c, d in relation if a != c])


def rated(vectors: WordVectors) -> float:
    "The rank correlation with WordSim-353, if it is in $FTLEARN_DATA."
    from scipy.stats import spearmanr
    files = sorted(Path(os.environ.get("FTLEARN_DATA", "nowhere"), "word_similarity").glob("*353*"))
    if not files: return float("nan")
    rows = [line.replace(",", "\t").split("\t") for line in files[0].read_text().lower().splitlines()]
    rows = [(r[0], r[1], float(r[2])) for r in rows if len(r) > 2 and r[2].replace(".", "").isdigit()]
    rows = [(a, b, s) for a, b, s in rows if a in vectors.vocabulary.index and b in vectors.vocabulary.index]
    return float(spearmanr([float(vectors[a] @ vectors[b]) for a, b, _ in rows], [s for *_, s in rows])[0])


def measure() -> list[Row]:
    from gensim.models import Word2Vec
    corpus, objective = load_corpus("docs"), SkipGram()
    sentences = [words_of(text) for text in corpus.train]
    words = EPOCHS * sum(map(len, sentences))
    _, train, _ = objective.prepare(corpus)
    start = time.perf_counter()
    ours = pretrain(objective, corpus, steps=EPOCHS * len(train) // objective.batch_size).model
    our_seconds = time.perf_counter() - start
    start = time.perf_counter()
    reference = Word2Vec(sentences, vector_size=100, window=5, negative=5, sample=1e-3, min_count=5, sg=1, epochs=EPOCHS, workers=torch.get_num_threads(), seed=0)
    their_seconds = time.perf_counter() - start
    theirs = WordVectors(ours.vocabulary, 100)
    with torch.no_grad(): theirs.centre.copy_(torch.tensor(np.stack([reference.wv[w] for w in ours.vocabulary.words])))
    return [Row("word2vec on the docstrings", f"{words / our_seconds:,.0f} words/s, {their_seconds / our_seconds:.2f} × gensim (which is written in C)"),
            Row("analogies solved", f"{solved(ours):.0f} %, and gensim {solved(theirs):.0f} %"),
            Row("WordSim-353, rank correlation", f"{rated(ours):.2f}, and gensim {rated(theirs):.2f}")]


if __name__ == "__main__": print(table(measure()))
