"""Tags of words: decoding under the grammar, and what is shown of the errors."""
import itertools

import pytest
import torch
from hypothesis import given, strategies as st

from ftlearn.transfer.tokens import allowed, best_path, show_names, tag_words, verdicts

NAMES = ["O", "B-a", "I-a", "B-b", "I-b"]
tags = st.lists(st.sampled_from(NAMES), min_size=1, max_size=8)


def obeys(path):
    return all(tag[0] != "I" or before[1:] == tag[1:] for before, tag in zip(["O", *path], path))


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_the_best_path_is_the_best_of_all_paths(seed, words):
    scores = torch.randn(words, 5, generator=torch.Generator().manual_seed(seed))
    total = lambda path: sum(scores[t, k].item() for t, k in enumerate(path))
    best = max((p for p in itertools.product(range(5), repeat=words) if obeys([NAMES[k] for k in p])), key=total)
    found = best_path(scores, NAMES)
    assert obeys([NAMES[k] for k in found]) and total(found) == pytest.approx(total(best), abs=1e-5)


def test_what_obeys_already_is_left_alone():
    wanted = [1, 2, 0, 3, 4, 4]
    scores = torch.full((6, 5), -5.0).scatter(1, torch.tensor(wanted)[:, None], 0.0)
    assert best_path(scores, NAMES) == wanted and best_path(torch.empty(0, 5), NAMES) == []


def test_who_may_follow_whom():
    assert allowed(NAMES)[NAMES.index("B-a"), NAMES.index("I-a")] and not allowed(NAMES)[0, NAMES.index("I-a")] and not allowed(NAMES)[NAMES.index("B-a"), NAMES.index("I-b")]


@given(tags, tags)
def test_every_name_has_exactly_one_verdict(true, predicted):
    from ftlearn.training import spans
    n = min(len(true), len(predicted))
    true, predicted = true[:n], predicted[:n]
    found = verdicts(true, predicted)
    judged = [(a, b) for a, b, verdict, _ in found if verdict != "invented"]
    assert sorted(judged) == sorted((a, b) for a, b, _ in spans(true))
    assert all(verdict == "found" for *_, verdict, _ in verdicts(true, true))


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=6))
def test_whatever_a_user_writes_is_escaped(words):
    true = ["B-<b>" if i % 2 else "O" for i in range(len(words))]
    shown = show_names(words, true, ["O"] * len(words))
    for tag in ("p>", "/p>", "mark ", "/mark>", "small>", "/small>"): shown = shown.replace(f"<{tag}", "")
    assert "<" not in shown


def test_words_that_nobody_sees_shift_no_tags(tmp_path):
    "A zero-width joiner has no token; the words behind it must keep their own tags."
    from test_language import ARCHITECTURES, SMALL, tokenizer
    from transformers import AutoConfig, AutoModel
    from ftlearn.data import Rows, Split, Task
    from ftlearn.transfer.model import TransferModel
    AutoModel.from_config(AutoConfig.for_model("bert", **SMALL | ARCHITECTURES["bert"])).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    split = Split(Rows([["ada", "met"]]), Rows([[1, 0]]))
    model = TransferModel.from_pretrained(tmp_path, Task("t", split, split, split, NAMES, "token-classification"))
    plain, = tag_words(model, [["ada", "met", "bob"]])
    joined, = tag_words(model, [["ada", "\u200d", "met", "bob"]])
    assert joined == [plain[0], "O", *plain[1:]] and tag_words(model, []) == []
