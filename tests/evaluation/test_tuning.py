"""The search for knobs: what is tried, what is kept, and that no test row is near."""

from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

from ensemble.build import BuildConfig
from ensemble.plan import CascadeConfig, Slot
from evaluation import tuning
from evaluation.command import load_tables
from evaluation.protocols import benchmarks
from evaluation.tasks import Labelled
from evaluation.tuning import SPACE, judge, tune, value_of, with_knobs
from pasar.settings import load_build, render_changed


@pytest.fixture
def validation(small_world_dataset):
    return benchmarks(load_tables("dataset", small_world_dataset.path), stage="valid")[0]


class Wide:
    """A cascade that is the better the nearer its temperature is to 0.2."""

    def __init__(self, released):
        self.config = released.config

    def fit(self, task, *, seed):
        self.value = -abs(np.log(self.config.two_tower.temperature / 0.2))


@pytest.fixture
def near(monkeypatch):
    monkeypatch.setattr(tuning, "FullCascade", Wide)
    monkeypatch.setattr(tuning, "judge", lambda benchmark, cascade: cascade.value)


@pytest.fixture
def three_trials(monkeypatch):
    """A search ends after three trials, however long they take."""
    clock = iter(np.arange(1000) * 20.0)
    monkeypatch.setattr(tuning, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    return {"minutes": 70 / 60, "sections": ["two_tower"]}


def test_the_configuration_itself_is_tried_first_and_the_best_comes_first(
    validation, tmp_path, near, three_trials
):
    build, told = BuildConfig(), []
    found = tune(validation, build, tmp_path / "deep" / "journal", **three_trials, told=told.append)
    assert len(found) == len(told) == 3
    assert told[0].knobs == {name: value_of(build, name) for name in SPACE if name.startswith("two_tower.")}
    assert found[0].value == max(trial.value for trial in told)


def test_a_search_goes_on_with_the_trials_of_its_journal(validation, tmp_path, near, three_trials):
    first = tune(validation, BuildConfig(), tmp_path / "journal", **three_trials)
    both = tune(validation, BuildConfig(), tmp_path / "journal", **three_trials)
    assert len(both) == 6
    assert {trial.value for trial in first} < {trial.value for trial in both}


def test_what_is_switched_off_by_0_stays_off(validation, tmp_path, near, three_trials):
    off = with_knobs(BuildConfig(), {"item_graph.vectors": 0.0, "two_tower.logq": 0.0})
    three_trials |= {"sections": ["item_graph", "two_tower"]}
    found = tune(validation, off, tmp_path / "journal", **three_trials)
    assert len(found) == 3
    assert all("item_graph.vectors" not in trial.knobs for trial in found)
    assert {"item_graph.neighbours", "two_tower.logq"} <= found[0].knobs.keys()


@pytest.fixture
def search(validation, near, monkeypatch):
    """What a search of so many trials tries, knob by knob."""

    def run(journal, trials):
        clock, tried = iter(np.arange(1000) * 60.0), []
        monkeypatch.setattr(tuning, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        tune(validation, BuildConfig(), journal, minutes=trials + 0.5, told=tried.append)
        return [trial.knobs for trial in tried]

    return run


def test_a_search_in_parts_tries_what_one_tries_that_was_never_stopped(search, tmp_path):
    whole = search(tmp_path / "whole", 9)
    assert len({tuple(knobs.values()) for knobs in whole}) == 9
    assert [knobs for _ in range(3) for knobs in search(tmp_path / "parts", 3)] == whole


@pytest.mark.parametrize("before", [0, 2])
def test_a_trial_in_which_a_search_was_killed_is_tried_again(search, tmp_path, monkeypatch, before):
    whole = search(tmp_path / "whole", 4)
    assert search(tmp_path / "killed", before) == whole[:before]
    with monkeypatch.context() as patch:
        patch.setattr(Wide, "fit", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path / "killed", 1)
    assert search(tmp_path / "killed", 4 - before) == whole[before:]


@pytest.fixture
def diverging(monkeypatch):
    """Trainings whose learning rate is too high diverge, as `models.training` has it."""
    fit = Wide.fit

    def diverge(cascade, task, *, seed):
        fit(cascade, task, seed=seed)
        if cascade.config.two_tower.learning_rate > 2e-3:
            raise ValueError("the two-tower diverged")

    monkeypatch.setattr(Wide, "fit", diverge)


def test_knobs_whose_training_diverges_are_told_and_the_search_goes_on_with_others(
    validation, near, diverging, search, tmp_path, monkeypatch
):
    clock, told = iter(np.arange(1000) * 60.0), []
    monkeypatch.setattr(tuning, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    found = tune(validation, BuildConfig(), tmp_path / "whole", minutes=8.5, told=told.append)
    failed = [trial for trial in told if trial.fault]
    assert {trial.fault for trial in failed} == {"the two-tower diverged"}
    assert len(told) == 8
    assert len({tuple(trial.knobs.values()) for trial in told}) == 8
    assert sorted(found, key=str) == sorted((trial for trial in told if not trial.fault), key=str)
    assert [knobs for _ in range(4) for knobs in search(tmp_path / "parts", 2)] == [t.knobs for t in told]


def test_a_configuration_that_diverges_itself_is_an_error(validation, tmp_path, near, diverging):
    hot = with_knobs(BuildConfig(), {"two_tower.learning_rate": 4e-3})
    for _ in range(2):
        with pytest.raises(ValueError, match="the two-tower diverged"):
            tune(validation, hot, tmp_path / "journal", minutes=1)


def test_a_journal_whose_last_line_is_half_written_goes_on_without_it(search, tmp_path):
    whole, journal = search(tmp_path / "whole", 4), tmp_path / "journal"
    search(journal, 2)
    journal.write_bytes(journal.read_bytes()[:-7])  # of the second trial's end
    assert search(journal, 1) + search(journal, 2) == whole[1:]


def test_a_file_that_is_no_journal_is_left_as_it_is(validation, tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("a line\nand one without an end")
    with pytest.raises(ValueError, match=r"notes.txt is no journal of trials; choose another --journal"):
        tune(validation, BuildConfig(), notes, minutes=0)
    assert notes.read_text() == "a line\nand one without an end"


def test_a_section_without_searched_knobs_is_refused(validation, tmp_path):
    with pytest.raises(ValueError, match=r"no knob of 'serve' is searched; there are item_graph, ranker"):
        tune(validation, BuildConfig(), tmp_path / "journal", minutes=0, sections=["serve"])


def test_another_data_set_exam_or_configuration_has_trials_of_its_own(
    validation, tmp_path, near, three_trials
):
    tune(validation, BuildConfig(), tmp_path / "journal", **three_trials)
    tables = validation.task.tables
    fewer = replace(tables, impressions=tables.impressions.iloc[:-1])
    exam = validation.exams[0]
    less = exam.truth.copy()
    less.indices[0] = (less.indices[0] + 1) % less.shape[1]
    for benchmark, build in (
        (validation, BuildConfig(popularity_window_h=24)),
        (replace(validation, exams=(replace(exam, truth=less), *validation.exams[1:])), BuildConfig()),
        (replace(validation, exams=validation.exams[1:]), BuildConfig()),
        (replace(validation, task=replace(validation.task, tables=fewer)), BuildConfig()),
    ):
        assert len(tune(benchmark, build, tmp_path / "journal", **three_trials)) == 3


@pytest.mark.parametrize("package", ["models", "evaluation"])
def test_trials_of_other_code_are_not_counted(validation, tmp_path, near, three_trials, monkeypatch, package):
    tune(validation, BuildConfig(), tmp_path / "journal", **three_trials)
    code = tmp_path / "code" / package / "new.py"
    code.parent.mkdir(parents=True)
    code.write_text("pass\n")
    monkeypatch.setattr(tuning, "sources", lambda *packages: [code] if package in packages else [])
    assert len(tune(validation, BuildConfig(), tmp_path / "journal", **three_trials)) == 3
    assert len(tune(validation, BuildConfig(), tmp_path / "journal", **three_trials)) == 6


SETS = ("xmarket", "taobao", "tiktok", "kuairand", "gowalla")


@pytest.mark.parametrize("data_set", SETS)
def test_every_searched_knob_exists_and_its_value_is_in_reach(data_set):
    for name, where in SPACE.items():
        for build in (BuildConfig(), load_build(data_set)):
            assert where.low <= value_of(build, name) <= where.high
        assert value_of(with_knobs(BuildConfig(), {name: where.high}), name) == where.high


@pytest.mark.parametrize("data_set", SETS)
def test_what_was_found_reads_as_settings(data_set, tmp_path):
    knobs = {"ranker.negatives": 3, "two_tower.temperature": 0.0812345678, "ranker.id_dropout": 0.25}
    found = with_knobs(load_build(data_set), knobs)
    (tmp_path / "found.toml").write_text(render_changed(found))
    assert load_build(data_set, tmp_path / "found.toml") == found


def test_knobs_of_every_kind_are_written(tmp_path):
    cascade = CascadeConfig(
        slots=(Slot("product", 1, 3), Slot("live", 2), Slot("live", least=1, within=5)),
        weights_for={"ID.live": {"order": 0.7}},
        rules=("seller_cap", "mmr"),
    )
    build = BuildConfig(seed=3, cascade=cascade)
    (tmp_path / "found.toml").write_text(render_changed(build))
    assert load_build("tiktok", tmp_path / "found.toml") == build


def test_an_error_is_judged_the_other_way_round(validation):
    class Zero:
        name = "zero"

        def score(self, users, candidates=None):
            return np.zeros(candidates.shape, np.float32)

    candidates = np.zeros((4, 1), np.int64)
    exam = Labelled("XX", np.arange(4), candidates, np.full((4, 1), 3, np.float32), ("mae",))
    assert judge(replace(validation, exams=(exam,)), Zero()) == -3
