"""What the objectives for word vectors hold in memory is what their docstrings say."""
import numpy as np

from ftlearn.pretraining.word_vectors import Contexts, Counts, cooccurrence


def bytes_in(*tensors): return sum(t.element_size() * t.numel() for t in tensors)


def test_memory_is_what_the_docstrings_say():
    text = np.random.default_rng(0).integers(0, 50, 2000).astype(np.int32)
    contexts, counts = Contexts(text, window=5), Counts(cooccurrence(text, 50))
    assert bytes_in(contexts.text, contexts.document, contexts.positions) == 24 * len(contexts)
    assert bytes_in(counts.pairs, counts.counts) == 20 * len(counts)
