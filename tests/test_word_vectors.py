"""Word vectors: what their objectives hold in memory, and how they are examined."""
import numpy as np
import pytest
import torch

from ftlearn.pretraining.word_vectors import Contexts, Counts, Vocabulary, WordVectors, analogies, cooccurrence, word_similarity


def bytes_in(*tensors): return sum(t.element_size() * t.numel() for t in tensors)


def test_memory_is_what_the_docstrings_say():
    text = np.random.default_rng(0).integers(0, 50, 2000).astype(np.int32)
    contexts, counts = Contexts(text, window=5), Counts(cooccurrence(text, 50))
    assert bytes_in(contexts.text, contexts.document, contexts.positions) == 24 * len(contexts)
    assert bytes_in(counts.pairs, counts.counts) == 20 * len(counts)


def vectors(**places):
    "Words at given places."
    made = WordVectors(Vocabulary(list(places), np.ones(len(places))), 2)
    with torch.no_grad(): made.centre.copy_(torch.tensor(list(places.values())))
    return made


def test_an_analogy_is_solved_by_the_same_way_from_word_to_word():
    up = vectors(row=(1.0, 0.0), rows=(1.0, 1.0), axis=(-1.0, 0.2), axes=(-1.0, 1.2), wheel=(0.0, -1.0))
    assert analogies(up, {"plurals": "row rows axis axes"}) == {"plurals": [True, True]}
    assert analogies(up, {"wrong": "row rows axis wheel"})["wrong"][0] is False


def test_similarity_is_compared_by_rank_and_for_known_words_only(tmp_path):
    (tmp_path/"pairs.csv").write_text("Word 1,Word 2,Human (mean)\nrow,rows,9.5\nrow,axis,4.0\nrow,wheel,1.0\nrow,zebra,10\n")
    known = vectors(row=(1.0, 0.0), rows=(1.0, 0.1), axis=(0.5, 1.0), wheel=(-1.0, 0.0))
    assert word_similarity(known, tmp_path/"pairs.csv") == (pytest.approx(1.0), 3)
