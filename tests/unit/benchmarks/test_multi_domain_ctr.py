"""Protocol C on tiny made files: who is cold, what rows may see, and what a table holds of it."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import multi_domain_ctr, new_domain
from benchmarks.multi_domain_ctr import SHARED, WIDE_PART, measure, open_task
from benchmarks.results_table import Task
from orchestrator.data.batches import EventSource

QUICK = multi_domain_ctr.GRAFT.model_copy(update={"width": 4, "epochs": 1, "head": (8, 4)})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ratings of 80 users, 60 of them in both domains, who have a taste and a mood that both domains share."""
    folder = tmp_path_factory.mktemp("data")
    chance = np.random.default_rng(0)
    mood = chance.normal(0, 1, 80)
    (folder / "douban").mkdir()
    for name, first in (("book", 0), ("music", 20)):
        quality = chance.normal(0, 0.7, 30)
        lines = []
        for user in range(first, first + 60):
            for item in chance.choice(30, 14, replace=False):
                stars = np.clip(round(3.5 + mood[user] + quality[item] + chance.normal(0, 0.5)), 1, 5)
                lines.append(f"{user}\t{item}\t{int(stars)}")
        (folder / "douban" / f"{name}_ratings.dat").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def task(data: Path, out: Path) -> Task:
    return open_task(data, out, "douban", 0)


def test_a_case_holds_no_answer_of_the_test_rows(task: Task):
    """Neither among what is asked nor in a history that training or judging may read."""
    given = task.given
    assert all(np.isnan(rows.label).all() and np.isnan(rows.value).all() for rows in given.asked)
    events = given.workspace.histories.source
    assert len(events.item) == sum(len(rows) for rows in given.train)


def test_a_cold_user_has_no_training_row_in_the_domain_and_some_in_the_other(task: Task):
    """A user is cold here because they are known there."""
    book, music = task.given.train
    for segment, here, there in (("book cold", book, music), ("music cold", music, book)):
        cold = np.unique(task.user[task.segments[segment]])
        assert len(cold)
        assert not np.isin(cold, here.user).any()
        assert np.isin(cold, there.user).all()


def test_warm_and_cold_rows_make_up_a_domain_and_domains_the_test(task: Task):
    """No row is judged twice or never."""
    for name in ("book", "music"):
        warm, cold = task.segments[f"{name} warm"], task.segments[f"{name} cold"]
        assert not (warm & cold).any()
        assert np.array_equal(warm | cold, task.segments[name])
    assert np.array_equal(task.segments["book"], ~task.segments["music"])


def test_a_training_row_never_sees_itself_and_a_judged_one_sees_all_of_its_user(task: Task):
    """The random order stands in for time: what comes before is seen, the row itself is not."""
    given = task.given
    events = EventSource(given.workspace.histories.source)
    for known, asked in zip(given.train, given.asked, strict=True):
        start, stop = events.window(known.user, known.time_us, 1000)
        for row in range(len(known)):
            seen = slice(start[row], stop[row])
            same = (events.arrays["domain"][seen] == known.number) & (events.arrays["item"][seen] == known.item[row])
            assert not same.any()
        start, stop = events.window(asked.user, asked.time_us, 1000)
        every = sum(np.bincount(rows.user, minlength=200) for rows in given.train)
        assert np.array_equal(stop - start, every[asked.user])


@pytest.mark.slow
def test_rows_of_the_table_are_trained_once_and_taken_up_again(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch):
    """Ours answers in two rows from one training; a second call finds all of them done."""
    rows = multi_domain_ctr.methods("douban", QUICK, QUICK)
    monkeypatch.setattr(multi_domain_ctr, "methods", lambda _: rows)
    names = ["item + user bias of stars", SHARED, "MMoE", "DNN-single"]
    table = measure(data, out, settings=["douban"], seeds=1, models=names)
    assert {result.model for result in table.results()} == {*names, WIDE_PART}
    assert all(0.5 < result.metrics["book warm/auc"] <= 1 for result in table.results())
    written = (out / "results.jsonl").read_text()
    measure(data, out, settings=["douban"], seeds=1, models=names)
    assert (out / "results.jsonl").read_text() == written
    assert "Paired tests" in (out / "multi-domain-ctr.md").read_text()


@pytest.mark.slow
def test_a_new_domain_leaves_the_old_one_as_it_was(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch):
    """The adapter moves no score of the old domain by a bit; tuning everything does."""
    quick = QUICK.model_copy(update={"short": 50, "fine_tune_epochs": 1, "fine_tune_learning_rate": 1e-2})
    rows = new_domain.methods(quick)
    monkeypatch.setattr(new_domain, "methods", lambda: rows)
    table = measure(data, out, settings=["douban-new-music-10", "douban-new-music-100"], seeds=1)
    few, whole = (table.result(f"douban-new-music-{share}", 0, new_domain.ADAPTER) for share in (10, 100))
    assert few is not None
    assert whole is not None
    assert few.detail["drift"] == whole.detail["drift"] == 0.0
    assert whole.detail["frozen"]
    without = table.result("douban-new-music-100", 0, new_domain.FEW)
    assert without is not None
    assert without.detail["parameters"] == whole.detail["parameters"] - whole.detail["item_rows"]
    full = table.result("douban-new-music-100", 0, new_domain.FULL)
    assert full is not None
    assert "largest drift" in (out / "multi-domain-ctr.md").read_text()


def test_a_share_of_the_new_domain_is_all_there_is_of_it(data: Path, out: Path):
    """Rows that were taken away are in no history either."""
    given = open_task(data, out, "douban-new-music-10", 0).given
    whole = open_task(data, out, "douban-new-music-100", 0).given
    assert len(given.train) == round(0.1 * len(whole.train))
    assert len(given.workspace.histories.target["douban-music"].item) == len(given.train)
