"""Corpora, tokenizers, tasks from docstrings: what is read, what is refused, and what must not leak."""
import re
import subprocess
import sys
import tracemalloc
import warnings

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from ftlearn import data as ftdata
from ftlearn.data import (IGNORED, Ragged, Rows, Split, TokenBlocks, any_rows, docs_paragraphs, docs_corpus, docs_versions, docstrings, document_split, encode_words, load_corpus, load_task,
                          prose, runs, tokenize, train_tokenizer, unmarked, without_overlap)
from ftlearn.training import f1

TEXT = "the quick brown fox jumps over the lazy dog and the cat watches it from the wall\n"


@pytest.fixture(autouse=True)
def own_cache(request, monkeypatch, tmp_path):
    "Each test its own cache, but for those that read the docstrings."
    if "docs" not in request.node.name: monkeypatch.setenv("FTLEARN_CACHE", str(tmp_path/"cache"))


# --- Files of the user -----------------------------------------------------------------------------------------------

GUESS = pytest.mark.filterwarnings("ignore:.*which is a guess")


@GUESS
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252"])
def test_files_of_any_common_encoding_are_read(tmp_path, encoding):
    text = "Le café était fermé, mais l'hôtel servait déjà le dîner près de la forêt.\n" * 60
    (tmp_path/"text.txt").write_bytes(text.encode(encoding))
    corpus = load_corpus(tmp_path/"text.txt")
    assert "café" in next(iter(corpus.train)) and "forêt" in next(iter(corpus.train))


def test_binary_files_are_named(tmp_path):
    (tmp_path/"good.txt").write_text(TEXT * 100)
    (tmp_path/"weights.bin").write_bytes(bytes(range(256)) * 10)
    with pytest.raises(ValueError, match="weights.bin is a binary file"): list(load_corpus(tmp_path).train)


ENGLISH = "It was a bright cold day in April, and the clocks were striking thirteen.\n" * 30


@pytest.mark.parametrize("encoding, text", [
    ("cp1250", "Lech Wałęsa spoke in Gdańsk; źródło is a source, miłość is love, and można powiedzieć, że był.\n"), ("cp1251", "The word дом means house, and книга is a book; мир и война.\n"),
    ("cp1254", "The word değil means not; İstanbul, şehir, ışık, çok güzel, dağ and Ağrı.\n"), ("iso8859_2", "Dvořák; žluťoučký kůň, příběh; Lech Wałęsa.\n"),
    ("cp1253", "The word λόγος is Greek, and ψυχή means soul.\n"), ("cp1252", "A naïve café in Århus, “for £5”, with crème brûlée, Señor Müller, at 20 m² – and größer.\n"), ("utf-32-le", "été")])
def test_an_older_encoding_is_guessed_aloud_or_refused(tmp_path, encoding, text):
    "Guards against Polish, Russian or Turkish words that are read as a salad of accents without a word."
    marked = "utf-32" if encoding == "utf-32-le" else encoding
    (tmp_path/"t.txt").write_bytes(ENGLISH.encode(marked) + text.encode(encoding))
    read = lambda **options: "".join(part for texts in (lambda c: (c.train, c.validation))(load_corpus(tmp_path/"t.txt", **options)) for part in texts)
    if marked == "utf-32": assert text in read(); return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try: assert text in read()
        except ValueError as error: assert "cannot be recognised (line 31)" in str(error) and encoding in ("iso8859_2", "cp1253")
        else: assert "t.txt is not UTF-8 (line 31)" in str(said[0].message)
    assert text in read(encoding=encoding)


def test_an_option_without_a_use_is_refused(tmp_path):
    (tmp_path/"t.txt").write_text(TEXT)
    for source, options in ((tmp_path/"t.txt", {"column": "text"}), ("docs", {"encoding": "cp1252"}), (tmp_path/"t.txt", {"name": "raw"}), ([{"text": TEXT}], {"name": "raw"})):
        with pytest.raises(TypeError, match=next(iter(options))): load_corpus(source, **options)


@GUESS
def test_an_accent_after_much_plain_text_is_read(tmp_path):
    (tmp_path/"late.txt").write_bytes(("plain text\n" * 20_000).encode() + "café\n".encode("latin-1") * 20_000)
    assert any("café" in text for text in load_corpus(tmp_path/"late.txt").train)


@GUESS
def test_cyrillic_is_recognised(tmp_path):
    text = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n"
    (tmp_path/"text.txt").write_bytes((text * 100).encode("cp1251"))
    assert text in next(iter(load_corpus(tmp_path/"text.txt").train))


def test_a_file_that_changes_its_encoding_is_named(tmp_path):
    (tmp_path/"mixed.txt").write_bytes(("le café\n" * 20_000).encode() + "un thé\n".encode("latin-1") * 2_000)
    with pytest.raises(ValueError, match="mixed.txt is UTF-8 up to byte"): list(load_corpus(tmp_path/"mixed.txt").train)


def test_missing_and_empty_sources_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder"): load_corpus(tmp_path/"nowhere")
    with pytest.raises(FileNotFoundError, match="no file or folder 'docz'.*'docs'.*owner/name"): load_corpus("docz")
    (tmp_path/"empty").mkdir()
    with pytest.raises(ValueError, match="holds no text"): load_corpus(tmp_path/"empty")
    (tmp_path/"blank.txt").write_text("")
    with pytest.raises(ValueError, match="holds no text"): load_corpus(tmp_path/"blank.txt")


def test_no_text_is_lost_or_in_both_parts(tmp_path):
    lines = [f"line number {i} of the text\n" for i in range(3000)]
    (tmp_path/"text.txt").write_text("".join(lines))
    corpus = load_corpus(tmp_path/"text.txt")
    train, validation = ("".join(part).splitlines(keepends=True) for part in (corpus.train, corpus.validation))
    assert sorted(train + validation) == sorted(lines) and validation and not set(train) & set(validation)


def test_with_many_files_whole_files_are_held_out(tmp_path):
    for i in range(40): (tmp_path/f"{i:02}.txt").write_text(f"text of file {i}\n" * 50)
    corpus = load_corpus(tmp_path)
    assert {t.splitlines()[0] for t in corpus.train}.isdisjoint({t.splitlines()[0] for t in corpus.validation})
    assert len(list(corpus.validation)) == 2


def test_another_text_has_another_key(tmp_path):
    (tmp_path/"a.txt").write_text(TEXT * 10)
    before = load_corpus(tmp_path).key
    (tmp_path/"a.txt").write_text(TEXT * 11)
    assert load_corpus(tmp_path).key != before


def test_datasets_are_read_whole_and_streamed():
    data = datasets.Dataset.from_dict({"body": [f"row {i} of the data set" for i in range(100)], "n": list(range(100))})
    for rows in (data, data.to_iterable_dataset()):
        corpus = load_corpus(rows, column="body")
        assert len(list(corpus.train)) == 95 and len(list(corpus.validation)) == 5
        assert len(list(corpus.train)) == 95                      # and once more
    with pytest.raises(ValueError, match="no text column 'text'.*body"): load_corpus(data, column="text")
    with pytest.raises(ValueError, match="split named 'train'"): load_corpus({"test": data})


def test_each_stream_has_a_key_of_its_own():
    "Guards against the tokens of one stream that are served for another."
    def key(words, validation=None):
        stream = lambda word: datasets.Dataset.from_dict({"text": [f"{word} {i}" for i in range(40)]}).to_iterable_dataset()
        return load_corpus({"train": stream(words)} | ({"validation": stream(validation)} if validation else {})).key
    keys = [key("one"), key("two"), key("one", "two"), key("one", "three")]
    assert len(set(keys)) == 4 and keys == [key("one"), key("two"), key("one", "two"), key("one", "three")]


def test_a_corpus_of_the_hub_is_read_with_its_configuration(monkeypatch):
    asked = []
    def load_dataset(path, name=None, **options):
        asked.append((path, name, options))
        return datasets.Dataset.from_dict({"text": ["", *(f"row {i}" for i in range(40))]}).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(ftdata, "hub_answers", lambda: True)
    one, two = (load_corpus("Salesforce/wikitext", name=name, streaming=True) for name in ("wikitext-2-v1", "wikitext-103-v1"))
    assert asked[0] == ("Salesforce/wikitext", "wikitext-2-v1", {"streaming": True}) and len(list(one.train)) == 38
    assert one.key != two.key


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_a_corpus_larger_than_the_memory_is_read(tmp_path):
    "Guards against a file that is loaded whole: the process may take 80 MB more than after its imports, and the text has 160."
    with open(tmp_path/"long.txt", "w") as file:
        for _ in range(160): file.write(TEXT * 12_500)
    code = """import re, resource, sys
from ftlearn.data import load_corpus
used = 1024 * int(re.search(r"VmData:\\s+(\\d+)", open("/proc/self/status").read())[1])
resource.setrlimit(resource.RLIMIT_DATA, (used + 80_000_000,) * 2)
print(sum(len(text) for part in (lambda c: (c.train, c.validation))(load_corpus(sys.argv[1])) for text in part))"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path/"long.txt")], text=True, capture_output=True, timeout=100)
    assert done.stdout.strip() == str(160 * 12_500 * len(TEXT)), done.stderr[-500:]


def test_reading_and_tokenizing_need_no_more_memory_for_more_text(tmp_path):
    tokenizer = train_tokenizer([TEXT * 50], 60)
    def peak(repeats):
        (tmp_path/"long.txt").write_text(TEXT * repeats)
        tracemalloc.start()
        tokenize(load_corpus(tmp_path/"long.txt"), tokenizer)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most
    peak(100)
    assert peak(100_000) < 1.6 * peak(50_000)


# --- Tokenizers and blocks -------------------------------------------------------------------------------------------

def test_a_vocabulary_that_the_text_does_not_support_is_refused():
    with pytest.raises(ValueError, match="supports a vocabulary of"): train_tokenizer([TEXT], 5000)
    with pytest.raises(ValueError, match="holds no text for training"): train_tokenizer([], 100)
    with pytest.raises(ValueError, match="wordpiece"): train_tokenizer([TEXT], 100, kind="wordpeace")


def test_tokenizers_are_saved_in_the_form_of_the_ecosystem(tmp_path):
    from transformers import AutoTokenizer
    for kind in ("wordpiece", "bpe"):
        tokenizer = train_tokenizer([TEXT * 20], 300 if kind == "bpe" else 80, kind)
        tokenizer.save_pretrained(tmp_path/kind)
        assert AutoTokenizer.from_pretrained(tmp_path/kind)(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]


@given(st.text(max_size=200))
@settings(max_examples=50, deadline=None)
def test_byte_pairs_lose_nothing(text):
    tokenizer = test_byte_pairs_lose_nothing.tokenizer
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


test_byte_pairs_lose_nothing.tokenizer = train_tokenizer([TEXT * 20], 300, "bpe")


def test_blocks_are_the_tokens_in_order(tmp_path):
    (tmp_path/"text.txt").write_text(TEXT * 400)
    corpus, tokenizer = load_corpus(tmp_path/"text.txt"), train_tokenizer([TEXT * 20], 80)
    blocks = TokenBlocks(tokenize(corpus, tokenizer)["train"], 16)
    whole = [token for text in corpus.train for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.sep_token_id]]
    assert blocks[list(range(len(blocks)))].flatten().tolist() == whole[:len(blocks) * 16]


def test_a_text_shorter_than_a_block_is_refused(tmp_path):
    np.array([1, 2, 3], np.uint16).tofile(tmp_path/"few.u2")
    with pytest.raises(ValueError, match="3 tokens, fewer than one row of 8"): TokenBlocks(tmp_path/"few.u2", 8)


def test_labels_go_to_one_piece_of_each_word():
    tokenizer = train_tokenizer([TEXT * 20], 40)                          # so small that words fall into pieces
    split = Split(Rows([["jumps", "over", "fox"], ["dog"]]), Rows([[1, 0, 2], [1]]))
    for piece in (0, -1):
        tokens, labels = encode_words(split, tokenizer, piece).__getitems__([0, 1])
        assert labels[0][labels[0] != IGNORED].tolist() == [1, 0, 2] and labels[1][labels[1] != IGNORED].tolist() == [1]
        assert tokens.shape == labels.shape and tokens.shape[1] > 5


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=6))
def test_ragged_rows_are_padded_to_the_longest_of_their_batch(rows):
    batch = Ragged(rows, -1)[list(range(len(rows)))]
    assert batch.shape == (len(rows), max(map(len, rows)))
    assert [[x for x in row if x >= 0] for row in batch.tolist()] == rows


# --- Docstrings ------------------------------------------------------------------------------------------------------

def test_prose_keeps_sentences_and_drops_the_rest():
    docstring = "Solve the equation for the given matrix.\n\nParameters\n----------\nx : array of numbers that is long enough\n    The matrix of the system to solve.\n\n>>> solve(x) for all of the given rows\n\n.. math::\n\n    a + b is equal to c in all of the cases"
    assert prose(docstring) == ["Solve the equation for the given matrix.", "The matrix of the system to solve."]


def test_roles_become_marks():
    text, = prose("Returns a :class:`~torch.Tensor` like :py:func:`numpy.ones()` and :math:`x` for all of them.")
    assert text == "Returns a \ue000Tensor\ue001 like \ue000ones\ue001 and x for all of them."


def test_docs_hold_no_text_of_the_held_out_documents():
    held_out = set()
    for split in ("validation", "test"):
        for paragraphs in docs_paragraphs(split).values():
            for text in paragraphs: held_out |= runs(unmarked(text))
    assert not [text for document in docs_corpus().train for text in document.split("\n") if runs(text) & held_out]


def test_docs_hold_no_markup_and_no_sentence_of_the_task():
    entities, corpus = load_task("docs-entities"), docs_corpus()
    whole = [text for document in corpus.train for text in document.split("\n")]
    assert not any(re.search(r":\w+:`", text) or "\ue000" in text or "\ue001" in text for text in whole)
    known = {" ".join(re.findall(r"\w+", text.lower())) for text in whole}
    long = [" ".join(re.findall(r"\w+", " ".join(words))) for split in (entities.validation, entities.test) for words in split.inputs if len(words) > 12]
    everything = "\n".join(known)
    assert not [sentence for sentence in long if sentence in everything]


def test_the_card_of_the_docs_says_what_they_are_made_of():
    card = docs_corpus().card
    assert all(f"{name} {version}" in card["origin"] for name, version in docs_versions().items()) and re.match(r"\d\.\d million words", card["size"])


def test_reading_docstrings_executes_nothing(tmp_path):
    (tmp_path/"module.py").write_text('"""What it is."""\nraise SystemExit\n')
    assert docstrings(tmp_path/"module.py") == ["What it is."]


def test_overlap_is_found_wherever_it_stands():
    names = {split: next(f"p/{i}.py" for i in range(999) if document_split(f"p/{i}.py") == split) for split in ("train", "validation", "test")}
    shared = "one two three four five six seven eight"
    splits = without_overlap({names["train"]: [f"x {shared} y", "something else of its own"], names["validation"]: ["not this one at all"], names["test"]: [f"a b {shared}"]})
    assert splits["train"] == {names["train"]: ["something else of its own"]} and splits["test"]


def test_docs_tasks_have_disjoint_splits_and_sound_labels():
    for name in ("docs-entities", "docs-order", "docs-package", "docs-pairs"):
        task = load_task(name)
        texts = [{str(x) for x in split.inputs} for split in task.splits.values()]
        assert not texts[0] & texts[2] and not texts[0] & texts[1]
        labels = [y for split in task.splits.values() for y in split.labels]
        flat = [tag for y in labels for tag in (y if isinstance(y, list) else [int(y)])]
        assert set(flat) <= set(range(task.num_labels)) and len(set(flat)) > 1


def test_docs_sentences_are_drawn_by_seed():
    task = load_task("docs-entities")
    a, b, more = task.few_shot(20, 1), task.few_shot(20, 1), task.few_shot(40, 1)
    assert a.train.inputs.items == b.train.inputs.items == more.train.inputs.items[:20]
    with pytest.raises(ValueError, match="can draw from 1 to"): task.few_shot(10**6)
    assert len(any_rows(5, 5, 0).unique()) == 5


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=50))
def test_f1_is_that_of_scikit_learn(pairs):
    from sklearn.metrics import f1_score
    predicted, true = (torch.tensor(x) for x in zip(*pairs))
    assert f1(predicted, true) == pytest.approx(f1_score(true, predicted, labels=[1, 2], average="micro", zero_division=0))
