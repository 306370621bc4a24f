"""Data: splits that share nothing, folders as people really have them, and errors that say what is wrong."""
import gzip
import math
import socket
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ftlearn import data
from ftlearn.data import (HELD_OUT_FONTS, Affine, ImageFiles, Split, complete_splits, content_groups, few_shot_rows, fonts, image_folder,
                          letters, load_task, split_rows)


def keys(split):
    "What the inputs of a split hold"
    return set(content_groups(split.inputs[range(len(split))] if isinstance(split.inputs, ImageFiles) else split.inputs))


def share_nothing(task):
    "Whether no input is in two splits"
    splits = [keys(split) for split in task.splits.values()]
    return len(set.union(*splits)) == sum(map(len, splits))


# --- Splits ----------------------------------------------------------------------------------------------------------


@st.composite
def labelled_groups(draw):
    "Labels, and groups of rows with the same label, in any order"
    classes = draw(st.integers(1, 4))
    sizes = [draw(st.lists(st.integers(1, 3), min_size=3, max_size=12)) for _ in range(classes)]
    rows = [(label, (label, group)) for label, groups in enumerate(sizes) for group, size in enumerate(groups) for _ in range(size)]
    rows = draw(st.permutations(rows))
    return torch.tensor([label for label, _ in rows]), [group for _, group in rows]


@given(labelled_groups(), st.integers(0, 100), st.sampled_from([(0.6, 0.2, 0.2), (0.5, 0.2, 0.3), (0.8, 0.2), (0.1, 0.8, 0.1)]))
def test_splits_share_nothing_and_lose_nothing(rows, seed, fractions):
    "Guards against a test row in the training split, a copy of one, a class that a split lacks, and rows that vanish."
    labels, groups = rows
    parts = split_rows(labels, groups, fractions, seed)
    assert sorted(torch.cat(parts).tolist()) == list(range(len(labels)))
    owners = [{groups[row] for row in part.tolist()} for part in parts]
    assert len(set.union(*owners)) == sum(map(len, owners))
    for part in parts: assert set(labels[part].tolist()) == set(labels.tolist())
    again = split_rows(labels, groups, fractions, seed)
    assert all(torch.equal(a, b) for a, b in zip(parts, again))


@given(st.integers(10, 60), st.integers(0, 100))
def test_splits_have_their_proportions_in_each_class(n, seed):
    "Guards against a validation split that has another mixture of classes than the training split."
    labels = torch.arange(2 * n) % 2
    parts = split_rows(labels, range(2 * n), (0.5, 0.2, 0.3), seed)
    for part, fraction in zip(parts, (0.5, 0.2, 0.3)):
        for count in labels[part].bincount().tolist(): assert abs(count - fraction * n) <= 2


def test_a_class_that_is_too_small_is_named():
    "Guards against an empty class in the test split."
    with pytest.raises(ValueError, match="class 'cat' has 2 different rows"): split_rows(torch.zeros(4, dtype=torch.long), [0, 0, 1, 1], names=["cat"])


@pytest.fixture(scope="module")
def glyphs():
    "Few letters to learn from; validation and test are as they always are"
    return load_task("glyphs", n=64)


def test_digits_share_nothing():
    "Guards against choosing, or learning, by test rows."
    task = load_task("digits")
    assert share_nothing(task) and sum(map(len, task.splits.values())) == 1797
    for split in task.splits.values(): assert set(split.labels.tolist()) == set(range(10))
    assert not torch.equal(task.test.inputs, load_task("digits", seed=1).test.inputs)


def test_letters_share_nothing(glyphs):
    "Guards against a score on letters that were learnt by heart."
    splits = [keys(split) for split in glyphs.splits.values()]
    assert not any(a & b for a, b in zip(splits, splits[1:] + splits[:1]))


def test_a_copied_row_stays_with_its_copies():
    "Guards against a test image that was also trained on."
    images = torch.randint(256, (30, 1, 4, 4), dtype=torch.uint8).repeat(3, 1, 1, 1)
    task = data._task("copies", images, torch.arange(30).repeat(3) % 2, ["a", "b"], {})
    assert share_nothing(task) and sum(map(len, task.splits.values())) == 90


def test_inputs_and_labels_must_be_as_many():
    "Guards against labels that belong to other rows."
    with pytest.raises(ValueError, match="3 inputs, but 2 labels"): Split(torch.zeros(3, 1), torch.zeros(2))


# --- Few labels ------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2), min_size=3, max_size=60).filter(lambda labels: len(set(labels)) == 3), st.integers(0, 1000), st.data())
def test_few_shot_draws_as_many_of_each_class(labels, seed, draw):
    "Guards against a rare class that is drawn less often, and against a row that is drawn twice."
    labels = torch.tensor(labels)
    most = int(labels.bincount().min())
    shots = draw.draw(st.integers(1, most))
    rows = few_shot_rows(labels, shots, seed, "abc")
    assert len(set(rows.tolist())) == 3 * shots and labels[rows].bincount().tolist() == [shots] * 3
    assert set(few_shot_rows(labels, 1, seed, "abc").tolist()) <= set(rows.tolist())
    with pytest.raises(ValueError, match=rf"has {most} training rows.*few_shot\({most}\)"): few_shot_rows(labels, most + 1, seed, "abc")


def test_few_shot_leaves_validation_and_test_whole(task):
    "Guards against a measurement on a handful of rows."
    few = task.few_shot(2, seed=5)
    assert len(few.train) == 6 and few.validation is task.validation and few.test is task.test
    assert keys(few.train) <= keys(task.train) and few.card["shots"] == 2
    assert keys(few.train) != keys(task.few_shot(2, seed=6).train) and keys(few.train) == keys(task.few_shot(2, seed=5).train)
    with pytest.raises(ValueError, match="at least one"): task.few_shot(0)


# --- Folders of images -----------------------------------------------------------------------------------------------


def write_images(folder, n=8, mode="RGB", suffix="png", seed=0):
    "`n` images of noise"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(n): Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).convert(mode).save(folder / f"{i}.{suffix}")


@pytest.fixture
def folder(tmp_path):
    "Two classes with eight images each"
    for seed, name in enumerate(("cat", "dog")): write_images(tmp_path / "pets" / name, seed=seed)
    return tmp_path / "pets"


def test_a_folder_of_images_is_a_task(folder):
    "Guards against labels that are not the folders' names."
    task = load_task(str(folder), size=6)
    assert task.label_names == ["cat", "dog"] and task.train.inputs.shape[1:] == (3, 6, 6) and share_nothing(task)
    assert sum(len(split) for split in task.splits.values()) == 16
    cats = {key for path in (folder / "cat").iterdir() for key in content_groups(ImageFiles([path], 6)[[0]])}
    for split in task.splits.values():
        assert [key in cats for key in content_groups(split.inputs)] == (split.labels == 0).tolist()


def test_images_on_the_disk_are_the_same_task(folder, monkeypatch):
    "Guards against a large folder that is split or labelled differently from a small one, or decoded all at once."
    in_memory = image_folder(folder, size=6)
    monkeypatch.setattr(data, "MEMORY_FOR_IMAGES", 0)
    on_disk = image_folder(folder, size=6)
    assert share_nothing(on_disk)
    for part, split in on_disk.splits.items():
        assert isinstance(split.inputs, ImageFiles) and len(split) == len(in_memory.splits[part])
        images, labels = split.__getitems__(list(range(len(split))))
        for row, path in enumerate(split.inputs.paths): assert path.parent.name == on_disk.label_names[labels[row]]
        assert images.shape == (len(split), 3, 6, 6) and images.dtype == torch.uint8
        assert torch.equal(images[0], split[0][0])
    assert len(on_disk.few_shot(1).train.inputs.paths) == 2


def test_copies_on_the_disk_stay_together(tmp_path, monkeypatch):
    "Guards against the same photograph, under two names, in training and test."
    for name in ("cat", "dog"):
        write_images(tmp_path / name, n=6, seed=len(name) + ord(name[0]))
        for path in list((tmp_path / name).iterdir()): (path.parent / f"copy of {path.name}").write_bytes(path.read_bytes())
    for memory in (1 << 30, 0):
        monkeypatch.setattr(data, "MEMORY_FOR_IMAGES", memory)
        assert share_nothing(image_folder(tmp_path, size=12))


@pytest.mark.parametrize("given", [("train", "test"), ("Training", "val"), ("train", "valid", "test"), ("train", "dev")])
def test_split_folders_are_respected(tmp_path, given):
    "Guards against a given test split that is trained on, or a class named 'train'."
    for seed, part in enumerate(given):
        for name in ("cat", "dog"): write_images(tmp_path / part / name, n=10, seed=10 * seed + ord(name[0]))
    task = image_folder(tmp_path, size=12)
    assert task.label_names == ["cat", "dog"] and share_nothing(task)
    if "test" in given: assert len(task.test) == 20
    if len(given) == 3: assert [len(s) for s in task.splits.values()] == [20, 20, 20]


def test_a_class_that_training_lacks_is_named(tmp_path):
    "Guards against labels that mean something else in the test split."
    for part, classes in {"train": "ab", "test": "bc"}.items():
        for name in classes: write_images(tmp_path / part / name)
    with pytest.raises(ValueError, match="lacks: c"): image_folder(tmp_path)


@pytest.mark.parametrize("spoil, error, words", [
    (lambda f: (f / "cat" / "0.png").write_bytes(b"not an image"), ValueError, r"0\.png cannot be read as an image"),
    (lambda f: (f / "cat" / "0.png").write_bytes((f / "cat" / "1.png").read_bytes()[:60]), ValueError, r"0\.png cannot be read"),
    (lambda f: (f / "dog").rename(f.parent / "elsewhere"), ValueError, "one class only, 'cat'"),
    (lambda f: f.rename(f.parent / "elsewhere"), FileNotFoundError, "no folder .*pets"),
    (lambda f: (f / "empty").mkdir(), ValueError, "no images in .*empty"),
    (lambda f: [(f / name).rename(f.parent / name) for name in ("cat", "dog")], ValueError, "no class folders"),
], ids=["unreadable", "truncated", "one class", "missing", "empty class", "empty"])
def test_what_is_wrong_with_a_folder_is_said(folder, spoil, error, words):
    "Guards against rows that are skipped without a word."
    spoil(folder)
    with pytest.raises(error, match=words): load_task(folder)


def test_other_files_are_ignored(folder):
    "Guards against notes, hidden folders and documents that are taken for images or for classes."
    for name in ("notes.txt", "cat/labels.json", "cat/.DS_Store", "dog/Thumbs.db", "dog/paper.pdf", "dog/features.h5"): (folder / name).write_bytes(b"x")
    for name in (".git", "__MACOSX"): write_images(folder / name)
    task = image_folder(folder, size=4)
    assert task.label_names == ["cat", "dog"] and sum(len(s) for s in task.splits.values()) == 16


@pytest.mark.parametrize("modes, channels", [(("L", "L"), 1), (("1", "LA"), 1), (("RGB", "RGB"), 3), (("L", "RGB"), 3), (("P", "RGBA"), 3)])
def test_colour_is_kept_and_grey_stays_grey(tmp_path, modes, channels):
    "Guards against coloured images that lose their colour."
    for name, mode in zip("ab", modes): write_images(tmp_path / name, mode=mode, seed=ord(name))
    assert image_folder(tmp_path, size=4).train.inputs.shape[1:] == (channels, 4, 4)


def decode(image, path, channels=1):
    "What the task sees of an image with 8 × 8 pixels"
    image.save(path)
    return ImageFiles([path], 8, channels)[0].float()


def test_sixteen_bits_are_scaled(tmp_path):
    "Guards against a medical image that turns white because its values are cut off at 255."
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    pixels = decode(Image.fromarray(values), tmp_path / "deep.png")[0]
    assert (pixels - torch.from_numpy(values / 257)).abs().max() <= 1
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / "classes" / name).mkdir(parents=True)
        rng = np.random.default_rng(seed)
        for i in range(5): Image.fromarray(rng.integers(0, 65536, (8, 8), dtype=np.uint16)).save(tmp_path / "classes" / name / f"{i}.png")
    assert image_folder(tmp_path / "classes", size=8).train.inputs.shape[1] == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_is_white(tmp_path, channels):
    "Guards against a logo whose transparent surroundings hide its black strokes."
    strokes = np.zeros((8, 8, 4), dtype=np.uint8)
    strokes[2:6, 3:5, 3] = 255                       # black strokes on transparent black
    pixels = decode(Image.fromarray(strokes), tmp_path / "logo.png", channels)
    assert (pixels == 255 - torch.from_numpy(strokes[..., 3])).all()


def test_a_palette_is_looked_up(tmp_path):
    "Guards against palette indices that are taken for brightness."
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 2).convert("P")
    image.putpalette([250, 0, 0, 0, 0, 250])
    assert set(map(tuple, decode(image, tmp_path / "palette.png", 3).flatten(1).T.tolist())) == {(250, 0, 0), (0, 0, 250)}


def test_photographs_are_turned_upright(tmp_path):
    "Guards against training on images that lie on their side."
    pixels = np.zeros((8, 8), dtype=np.uint8)
    pixels[:, :4] = 255                              # bright on the left; the camera was turned by a quarter
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=exif, quality=100)
    upright = ImageFiles([tmp_path / "photo.jpg"], 8, 1)[0][0].float()
    assert upright[:4].mean() > 200 and upright[4:].mean() < 50


def test_names_in_any_script(tmp_path):
    "Guards against classes that vanish because their names are not ASCII."
    for seed, name in enumerate(("猫", "Hündin mit Leine")): write_images(tmp_path / "日本 é" / name, seed=seed, suffix="WEBP")
    task = load_task(tmp_path / "日本 é", size=4)
    assert sorted(task.label_names) == ["Hündin mit Leine", "猫"] and task.name == "日本 é"


# --- Files in MNIST's format -----------------------------------------------------------------------------------------


def write_idx(path, values):
    "An array of bytes as a gzipped IDX file"
    head = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}i", *values.shape)
    path.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes()))


@pytest.fixture
def idx(tmp_path, monkeypatch):
    "A copy of a data set under $FTLEARN_DATA; returns its arrays"
    monkeypatch.setenv("FTLEARN_DATA", str(tmp_path))
    (tmp_path / "fashion_mnist").mkdir()
    rng, arrays = np.random.default_rng(0), {}
    for prefix, n in (("train", 60), ("t10k", 20)):
        arrays[prefix] = rng.integers(0, 256, (n, 5, 7)), np.arange(n) % 10
        write_idx(tmp_path / "fashion_mnist" / f"{prefix}-images-idx3-ubyte.gz", arrays[prefix][0])
        write_idx(tmp_path / "fashion_mnist" / f"{prefix}-labels-idx1-ubyte.gz", arrays[prefix][1])
    return arrays


def test_idx_files_are_read_right(idx):
    "Guards against turned images and shifted labels."
    task = load_task("fashion_mnist")
    images, labels = idx["t10k"]
    assert torch.equal(task.test.inputs, torch.from_numpy(images).to(torch.uint8)[:, None]) and task.test.labels.tolist() == labels.tolist()
    assert len(task.train) + len(task.validation) == 60 and share_nothing(task) and task.label_names[9] == "ankle boot"


def test_idx_files_that_are_missing_are_named(idx, tmp_path):
    "Guards against a task without a test split."
    (tmp_path / "fashion_mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels"): load_task("fashion_mnist")


# --- Data sets of the Hub --------------------------------------------------------------------------------------------


def hub_rows(n, mode="RGB", seed=0):
    "A `datasets.Dataset` of `n` images of noise"
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature
    rng = np.random.default_rng(seed)
    images = [Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)).convert(mode) for _ in range(n)]
    return Dataset.from_dict({"photo": images, "breed": [i % 2 for i in range(n)]},
                             features=Features({"photo": ImageFeature(), "breed": ClassLabel(names=["pug", "collie"])}))


@pytest.mark.parametrize("mode, channels", [("RGB", 3), ("L", 1)])
def test_a_dataset_is_a_task(mode, channels):
    "Guards against transposed images and labels out of step."
    rows = hub_rows(20, mode)
    task = load_task(rows)
    assert task.label_names == ["pug", "collie"] and share_nothing(task) and sum(len(s) for s in task.splits.values()) == 20
    assert task.train.inputs.shape[1:] == (channels, 6, 5)
    label = {np.asarray(row["photo"]).tobytes(): row["breed"] for row in rows}
    for split in task.splits.values():
        for image, y in zip(split.inputs, split.labels): assert label[image.permute(1, 2, 0).numpy().tobytes()] == y


def test_a_dataset_keeps_its_test_split():
    "Guards against test rows that are trained on."
    from datasets import DatasetDict
    parts = DatasetDict({"train": hub_rows(20, seed=0), "test": hub_rows(8, seed=1)})
    task = load_task(parts, size=4)
    assert len(task.test) == 8 and len(task.train) + len(task.validation) == 20 and task.test.inputs.shape == (8, 3, 4, 4) and share_nothing(task)


def test_rows_without_a_label_are_left_out():
    "Guards against −1, datasets' mark for 'not labelled', as a class of its own."
    from datasets import ClassLabel
    rows = hub_rows(21)
    rows = rows.remove_columns("breed").add_column("breed", [-1] + [i % 2 for i in range(20)]).cast_column("breed", ClassLabel(names=["pug", "collie"]))
    assert sum(len(s) for s in load_task(rows).splits.values()) == 20


def test_a_dataset_without_images_or_texts_is_refused():
    "Guards against an error from deep inside."
    from datasets import Dataset
    with pytest.raises(ValueError, match="say which holds the text"): load_task(Dataset.from_dict({"age": [3.0], "height": [1.0], "label": [0]}))


def test_a_hub_that_does_not_answer_costs_seconds():
    "Guards against minutes of waiting, and an error that does not say what else there is."
    code = "from ftlearn.data import load_task\ntry: load_task('someone/pictures')\nexcept ConnectionError as error: print(error)"
    with socket.create_server(("127.0.0.1", 0)) as silent:      # accepts, and never answers
        environment = {"HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}", "HF_HUB_OFFLINE": "0", "no_proxy": "*"}
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], env=data.os.environ | environment, text=True, capture_output=True, timeout=40)
    assert "digits" in done.stdout and "$FTLEARN_DATA" in done.stdout and "someone/pictures" in done.stdout, done.stderr
    assert time.monotonic() - started < 20       # three seconds, and the imports on a busy machine


def hub(monkeypatch, found, online=True):
    "A Hub that gives `found`, or fails with it; returns what it is asked for"
    import datasets
    asked = []
    def load_dataset(path, name=None, **options):
        asked.append((path, name, options))
        if isinstance(found, Exception): raise found
        return found
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(data, "hub_answers", lambda: online)
    return asked


def test_a_configuration_of_a_hub_data_set_can_be_named(monkeypatch):
    "Guards against options that are swallowed on the way to the Hub, or mistaken for an argument of ours."
    asked = hub(monkeypatch, hub_rows(20))
    task = load_task("someone/pictures", name="small", revision="v2", size=4, seed=1)
    assert asked == [("someone/pictures", "small", {"revision": "v2"})] and task.train.inputs.shape[2:] == (4, 4) and task.name == "someone/pictures/small"
    load_task("wnut17")
    assert asked[1] == ("leondz/wnut_17", None, {"revision": "refs/convert/parquet"})


def test_only_a_missing_network_is_blamed_on_the_network(monkeypatch):
    "Guards against hours spent on a connection that is fine."
    hub(monkeypatch, ValueError("Config name is missing.\nPick one of ['cola', 'mrpc']"))
    with pytest.raises(ValueError, match="nyu-mll/glue.*'mrpc'"): load_task("nyu-mll/glue")
    hub(monkeypatch, ValueError("no"), online=False)
    with pytest.raises(ConnectionError, match="tasks digits"): load_task("nyu-mll/glue")
    with pytest.raises(ConnectionError, match="corpus 'docs', a file or folder of text"): data.load_corpus("someone/prose")


def test_show_images_keeps_their_brightness():
    "Guards against a grey image that is shown as white, because each was stretched to its own maximum."
    for images, white in ((torch.full((2, 1, 4, 4), 0.3), 1), (torch.full((2, 3, 4, 4), 80, dtype=torch.uint8), 255)):
        figure = data.show_images(images, columns=2)
        assert all(axis.images[0].get_clim() == (0, white) for axis in figure.axes)


def test_names_that_do_not_exist_are_answered_with_a_guess():
    "Guards against a network request for a typing error."
    with pytest.raises(ValueError, match="Did you mean 'digits'"): load_task("digit")


# --- Letters ---------------------------------------------------------------------------------------------------------


def test_no_digit_is_a_letter(glyphs):
    "Guards against a source task that already holds the target."
    assert not [c for c in letters() if c.isdigit() or c.isnumeric()] and len(letters()) == len(set(letters()))
    assert not [c for c in glyphs.label_names if c.isdigit()]


def test_validation_and_test_letters_use_unseen_fonts(monkeypatch):
    "Guards against a font that is both learnt and tested."
    held_out = [set(names) for names in HELD_OUT_FONTS.values()]
    assert set.union(*held_out) < set(fonts()) and not set.intersection(*held_out)
    drawn = []
    monkeypatch.setattr(data, "_write", lambda classes, faces, n, rng: drawn.append({face.stem for face in faces}) or Split(torch.zeros(1), torch.zeros(1)))
    data.glyphs(n=2)
    assert len(drawn) == 3 and sum(map(len, drawn)) == len(set.union(*drawn)) and drawn[1:] == held_out


def test_the_same_seed_is_the_same_data():
    "Guards against results that nobody can repeat."
    def write(seed): return data._write(list("ABC"), [fonts()["DejaVuSans"]], 16, data.generator(seed, "letters"))
    first, again, other = map(write, (0, 0, 1))
    assert torch.equal(first.inputs, again.inputs) and torch.equal(first.labels, again.labels)
    assert not torch.equal(first.inputs, other.inputs)


@given(st.integers(1, 5), st.sampled_from([1, 3]), st.integers(4, 9), st.integers(0, 50))
def test_augmentation_keeps_shape_and_range(n, channels, size, seed):
    "Guards against augmented images of another scale, and against moves that depend on the global generator."
    images = torch.rand(n, channels, size, size)
    move = Affine(elastic=0.1)
    moved = move(images, torch.Generator().manual_seed(seed))
    torch.rand(3)
    assert torch.equal(moved, move(images, torch.Generator().manual_seed(seed)))
    assert moved.shape == images.shape and moved.min() >= 0 and moved.max() <= images.max() + 1e-6
    assert torch.allclose(Affine(0, 0, 0, 0)(images), images, atol=1e-5)


def test_augmentation_moves_each_image_differently():
    "Guards against one random map for a whole batch."
    images = torch.rand(1, 1, 8, 8).expand(4, -1, -1, -1)
    moved = Affine()(images, torch.Generator().manual_seed(0))
    assert len({math.floor(1e4 * m.sum().item()) for m in moved}) == 4


def test_missing_splits_are_made_of_training_rows_only():
    "Guards against a validation split that is the test split."
    inputs = torch.arange(60, dtype=torch.uint8).view(60, 1, 1, 1)
    splits = complete_splits({"train": Split(inputs[:40], torch.arange(40) % 2), "test": Split(inputs[40:], torch.arange(20) % 2)})
    values = {part: set(split.inputs.flatten().tolist()) for part, split in splits.items()}
    assert values["test"] == set(range(40, 60)) and values["train"] | values["validation"] == set(range(40)) and not values["train"] & values["validation"]
