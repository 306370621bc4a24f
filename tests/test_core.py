"""The ground: files that are never half-written, results that are built once, and statements that fail when they are false."""
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ftlearn import core
from ftlearn.core import ClaimFailed, atomic_write, cached, check_answer, claim, generator, interval, is_sealed, unknown

SLOW_BUILD = """
import os, sys, time
from ftlearn.core import cached

def build(folder):
    with open(sys.argv[1], "a") as log: log.write("built\\n")
    time.sleep(0.5)
    (folder / "value.txt").write_text("7")

print((cached("slow", build) / "value.txt").read_text())
"""


def names(folder):
    "The files of a folder but the locks"
    return sorted(p.name for p in Path(folder).rglob("*") if p.is_file() and p.suffix != ".lock")


# --- Files -----------------------------------------------------------------------------------------------------------


def test_atomic_write_replaces_the_whole_file(tmp_path):
    "Guards against a reader that finds the old end behind the new beginning."
    file = tmp_path / "new" / "file.txt"
    for text in ("a long first version", "short"):
        with atomic_write(file) as temporary: temporary.write_text(text)
        assert file.read_text() == text
    assert names(tmp_path) == ["file.txt"]


def test_atomic_write_keeps_the_old_file_after_a_crash(tmp_path):
    "Guards against half a checkpoint where a whole one was."
    file = tmp_path / "file.txt"
    file.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(file) as temporary:
        temporary.write_text("ne")
        raise RuntimeError
    assert file.read_text() == "old" and names(tmp_path) == ["file.txt"]


# --- The cache -------------------------------------------------------------------------------------------------------


def test_cached_builds_once(cache):
    "Guards against a result that differs between two calls."
    built = []
    def build(folder):
        built.append(folder)
        (folder / "value.txt").write_text(str(len(built)))
    assert [(cached("deep/name", build) / "value.txt").read_text() for _ in range(3)] == ["1"] * 3


def test_two_processes_build_once(cache, tmp_path):
    "Guards against two processes that write into one folder."
    log = tmp_path / "log"
    command = [sys.executable, "-c", SLOW_BUILD, str(log)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in processes] == ["7", "7"]
    assert log.read_text() == "built\n"


def test_a_build_that_crashes_leaves_nothing(cache):
    "Guards against half a result that is taken for a whole one."
    def crash(folder):
        (folder / "half.txt").write_text("half")
        raise RuntimeError
    with pytest.raises(RuntimeError): cached("thing", crash)
    assert names(cache) == []
    assert is_sealed(cached("thing", lambda folder: (folder / "whole.txt").write_text("whole")))


@pytest.mark.parametrize("damage", [lambda folder: (folder / "a.txt").write_text("wrong"), lambda folder: (folder / "a.txt").unlink(),
                                    lambda folder: (folder / "seal.json").write_text("{"), lambda folder: (folder / "b.txt").touch()],
                         ids=["changed", "missing", "unsealed", "extra"])
def test_a_damaged_folder_is_built_again(cache, damage):
    "Guards against weights with a flipped bit."
    def build(folder): (folder / "a.txt").write_text("right")
    damage(cached("thing", build))
    with pytest.warns(UserWarning, match="damaged"): folder = cached("thing", build)
    assert names(folder) == ["a.txt", "seal.json"] and (folder / "a.txt").read_text() == "right"


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path, monkeypatch):
    "Guards against an error that does not name the variable to set."
    (tmp_path / "file").touch()
    monkeypatch.setenv("FTLEARN_CACHE", str(tmp_path / "file" / "cache"))     # fails for the superuser too
    with pytest.raises(OSError, match="FTLEARN_CACHE"): cached("thing", lambda folder: None)


# --- Processes -------------------------------------------------------------------------------------------------------


def test_parallel_results_are_in_the_order_of_the_arguments():
    "Guards against results that are assigned to other arguments than their own."
    def late(seconds, value): return time.sleep(seconds) or value
    assert core.in_parallel(late, [(0.2, "a"), (0.0, "b"), (0.1, "c")]) == ["a", "b", "c"]


# --- Numbers ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20).filter(lambda values: np.std(values) > 1e-6), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_is_scipys(values, confidence):
    "Guards against an interval that is too narrow (a normal quantile, or a variance divided by n)."
    found = interval(values, confidence)
    low, high = stats.t.interval(confidence, len(values) - 1, np.mean(values), stats.sem(values))
    assert np.allclose([found.low, found.high], [low, high], rtol=1e-6, atol=1e-6 * max(map(abs, values)))


def test_interval_of_too_little():
    "Guards against certainty about a single seed, and against a mean of nothing or of NaN."
    assert interval([3.0]).half_width == float("inf") and interval([3.0]).mean == 3
    with pytest.raises(ValueError, match="none"): interval([])
    with pytest.raises(ValueError, match="finite"): interval([1.0, float("nan")])
    assert interval(iter([1.0, 1.0])).half_width == 0


def test_claims_fail_when_they_are_false(capsys):
    "Guards against a sentence that its measurement contradicts."
    claim("a < b", torch.tensor(1.0) < 2, "1 < 2")
    assert capsys.readouterr().out == "✓ a < b  [measured: 1 < 2]\n"
    with pytest.raises(ClaimFailed, match="b < a.*measured: 0"): claim("b < a", np.bool_(False), 0)
    assert capsys.readouterr().out == ""


def test_an_exercise_waits_for_an_answer_and_refuses_a_wrong_one(capsys):
    def even(n): return n % 2 == 0
    check_answer(..., even)
    assert capsys.readouterr().out.startswith("Not answered yet")
    check_answer(0, even)                      # an answer that is false in an `if` is an answer
    assert capsys.readouterr().out == "Right.\n"
    with pytest.raises(ClaimFailed): check_answer(3, even)
    with pytest.raises(ClaimFailed): check_answer(None, lambda answer: answer)


def test_unknown_names_are_answered_with_a_guess():
    "Guards against a typing error that takes an hour."
    error = unknown("task", "Digit", ["glyphs", "digits"], "Or a folder.")
    assert str(error) == "unknown task 'Digit'. Did you mean 'digits'? Available: digits, glyphs. Or a folder."
    assert "mean" not in str(unknown("task", "zzz", ["digits"]))


@given(st.integers(0, 10**6), st.text(max_size=10), st.integers(0, 10**6), st.text(max_size=10))
def test_generators_depend_on_seed_and_purpose_only(seed, purpose, other_seed, other_purpose):
    "Guards against two uses that draw the same numbers, and against numbers that depend on who drew before."
    def draw(*key): return torch.rand(4, generator=generator(*key)).tolist()
    first = draw(seed, purpose)
    torch.manual_seed(other_seed)
    assert draw(seed, purpose) == first
    assert (draw(other_seed, other_purpose) == first) == ((seed, purpose) == (other_seed, other_purpose))


# --- torchvision -----------------------------------------------------------------------------------------------------


@pytest.fixture
def unmended(monkeypatch):
    "As if nothing had been declared yet; records what would be"
    declared = []
    class Library:
        def __init__(self, *names): declared.append(names)
        def define(self, schema): declared.append(schema.partition("(")[0])
    monkeypatch.setattr(core, "_declared", [])
    monkeypatch.setattr(torch.library, "Library", Library)
    return declared


def test_a_fitting_torchvision_is_left_alone(unmended, monkeypatch):
    "Guards against hiding the real operators of a torchvision that has them."
    monkeypatch.setattr(core, "torchvision_fits", lambda: True)
    assert core.mend_torchvision() is False and unmended == []


def test_an_ill_fitting_torchvision_is_mended_once(unmended, monkeypatch):
    "Guards against a second declaration, which torch refuses."
    monkeypatch.setattr(core, "torchvision_fits", lambda: False)
    assert core.mend_torchvision() and core.mend_torchvision()
    assert unmended == [("torchvision", "DEF"), "nms", "qnms"]


def test_torchvision_can_be_imported_after_ftlearn():
    "Guards against an installation in which `import torchvision` fails."
    started = time.monotonic()
    code = "import ftlearn.core, torchvision; print(torchvision.models.resnet18().fc.out_features)"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert done.stdout == "1000\n", done.stderr
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("module", ["transfer.model", "adaptation.proximal", "pretraining.images"])
def test_each_module_imports_first(module):
    "Guards against an import order in which torchvision comes before its mend."
    subprocess.run([sys.executable, "-c", f"import ftlearn.{module}"], check=True, timeout=120)
