"""The study behind the results page: what is chosen before what is measured, and on which rows."""
import pytest

from benchmarks.methods import METHODS, STUDIES, Study, score
from benchmarks.parts import PRACTICE, SEEDS, missing
from benchmarks.results import stored


def test_the_rate_is_chosen_before_any_draw_is_measured():
    point = {"tried": {"0.1": 60.0}, "test": {}}
    assert list(missing(point, (0.1, 0.2))) == [(0.2, PRACTICE, "validation")]
    point["tried"]["0.2"] = 70.0
    assert missing(point, (0.1, 0.2)) == [(0.2, seed, "test") for seed in SEEDS]
    point["test"] |= {"0": 71.0, "1": 72.0, "2": 73.0, "3": 74.0}
    assert missing(point, (0.1, 0.2)) == [(0.2, 4, "test")]
    assert PRACTICE not in SEEDS


def test_draws_are_measured_anew_when_a_better_setting_was_found():
    point = {"tried": {"0.1": 60.0}, "setting": "0.1", "test": {"0": 71.0}}
    assert missing(point, (0.1,), range(2)) == [(0.1, 1, "test")]
    assert missing(point, (0.1, 0.2), range(2)) == [(0.2, PRACTICE, "validation")]
    point["tried"]["0.2"] = 70.0
    assert missing(point, (0.1, 0.2), range(2)) == [(0.2, 0, "test"), (0.2, 1, "test")]


def test_what_is_no_candidate_any_more_is_forgotten():
    point = {"tried": {"0.1": 60.0, "0.9": 99.0}, "setting": "0.9", "test": {"0": 99.0}}
    assert missing(point, (0.1,), range(2)) == [(0.1, 0, "test"), (0.1, 1, "test")]
    assert point == {"tried": {"0.1": 60.0}, "setting": "0.1", "test": {}}


@pytest.mark.parametrize("task, shots", [("reviews", 8), ("entities", 20)])
def test_draws_share_their_test_rows_and_nothing_else(task, shots):
    study = Study(task, "docs-encoder", "accuracy", {shots: 1}, 4, 40, (1e-4,), 1e-3)
    one, other = study.draw(shots, 0), study.draw(shots, 1)
    assert list(one.test.inputs) == list(other.test.inputs) and len(one.test) == 40
    assert list(one.train.inputs) != list(other.train.inputs)
    assert len(one.validation) <= len(one.train)
    texts = [set(map(str, split.inputs)) for split in one.splits.values()]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_the_page_has_every_method_at_every_budget(study):
    "Guards against points that a study was stopped before, and against draws of a setting that is no candidate any more."
    scores = stored(study)
    for name, method in METHODS.items():
        if study.task not in method.studies or name == "SetFit": continue          # SetFit takes part only where it is installed
        for shots in study.steps:
            if shots > method.most: continue
            assert not missing(scores[name][str(shots)], method.rates(study)), (name, shots)


def test_every_method_has_as_many_rates_to_choose_from():
    counts = {len(method.rates(study)) for method in METHODS.values() for study in STUDIES.values()}
    assert counts == {0, 3}


def test_a_score_is_that_of_the_split_that_was_asked_for(monkeypatch):
    monkeypatch.setitem(STUDIES, "digits", Study("digits", "glyph-cnn", "accuracy", {2: 5}, 8, 100, (1e-4,), 1e-2))
    test, validation = (score("digits", "linear probe", 2, 1e-2, 0, split) for split in ("test", "validation"))
    assert 0 < test < 100 and round(test) == test          # of a hundred rows
    assert validation % 5 == 0                             # of twenty
