"""The results table: the same tasks for all, nothing trained twice, nothing lost by a kill, honest tests."""

import json

import numpy as np
import pytest

from benchmarks import results_page
from benchmarks.results_table import (
    Method,
    Scored,
    Table,
    Task,
    evaluate,
    measured,
    paired_over_seeds,
    paired_over_users,
    run,
)


def a_task(seed: int, rows: int = 60) -> Task:
    chance = np.random.default_rng(seed)
    return Task(given=seed, label=chance.uniform(1, 5, rows), user=chance.integers(0, 12, rows), bounds=(1.0, 5.0))


def open_task(setting: str, seed: int) -> Task:
    return a_task(seed)


class Guesser:
    """Answers with the seed's labels plus a fixed error, and counts how often it was asked."""

    def __init__(self, name: str, error: float, **config: float) -> None:
        self.asked: list[int] = []
        self.error = error
        self.method = Method((name,), self.fit, {"error": error, **config})

    def fit(self, task: Task, seed: int) -> dict[str, Scored]:
        self.asked.append(seed)
        return {self.method.names[0]: Scored(a_task(task.given).label + self.error, {"parameters": 7})}


def filled(folder, *guessers: Guesser, seeds: int = 3) -> Table:
    table = Table(folder)
    run(
        table,
        settings=["one"],
        seeds=range(seeds),
        methods=[guesser.method for guesser in guessers],
        open_task=open_task,
    )
    return table


def test_a_second_run_trains_nothing_again(tmp_path):
    """What is on disk is taken as it is."""
    guesser = Guesser("a", 0.5)
    filled(tmp_path, guesser)
    table = filled(tmp_path, guesser)
    assert guesser.asked == [0, 1, 2]
    assert len(table.results()) == 3


def test_a_killed_run_continues_with_the_seed_it_died_in(tmp_path):
    """A model that raises leaves the results before it whole, and a half-written line is dropped."""
    first, broken = Guesser("a", 0.5), Guesser("b", 0.1)
    broken.method = Method(("b",), lambda task, seed: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        filled(tmp_path, first, broken)
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"setting": "one", "seed": 1, "mod')
    mended = Guesser("b", 0.1)
    table = filled(tmp_path, first, mended)
    assert first.asked == [0, 1, 2]
    assert mended.asked == [0, 1, 2]
    assert len(Table(tmp_path).results()) == len(table.results()) == 6


def test_another_config_is_trained_anew_and_replaces_the_old_cell(tmp_path):
    """A result answers for one config alone."""
    filled(tmp_path, Guesser("a", 0.5))
    changed = Guesser("a", 0.5, width=8)
    table = filled(tmp_path, changed)
    assert changed.asked == [0, 1, 2]
    assert len(table.results()) == len(Table(tmp_path).results()) == 3


def test_one_training_may_fill_several_rows(tmp_path):
    """An method with two names is fitted once a seed."""
    fits = []

    def fit(task: Task, seed: int) -> dict[str, Scored]:
        fits.append(seed)
        return {"x": Scored(task.label), "y": Scored(task.label + 1)}

    table = Table(tmp_path)
    run(table, settings=["one"], seeds=[4], methods=[Method(("x", "y"), fit)], open_task=open_task)
    assert fits == [4]
    assert table.values("one", "x", "mae") == {4: 0.0}
    assert table.models() == ["x", "y"]


def test_scores_are_judged_clipped_and_as_they_are():
    """Beyond the bounds of the labels a score counts as the bound; the raw error is kept beside it."""
    task = Task(None, np.array([5.0, 1.0]), np.array([1, 2]), (1.0, 5.0))
    evaluated = evaluate(task, np.array([7.0, 1.0]), "rating")
    assert evaluated["mae"] == 0.0
    assert evaluated["raw_mae"] == 1.0


@pytest.mark.parametrize("score", [np.zeros(59), np.full(60, np.nan)])
def test_an_answer_that_is_missing_or_no_number_is_refused(score):
    """A model that did not answer every test row has no place in the table."""
    with pytest.raises(ValueError, match="60 finite scores"):
        evaluate(a_task(0), score, "rating")


def test_pairing_over_seeds_takes_the_difference_seed_by_seed(tmp_path):
    """A constant gap has no spread, whatever the seeds themselves do."""
    table = filled(tmp_path, Guesser("good", 0.1), Guesser("bad", 0.3))
    paired = paired_over_seeds(table, "one", "raw_mae", "good", "bad")
    assert paired.difference.value == pytest.approx(-0.2)
    assert paired.difference.high == pytest.approx(-0.2, abs=1e-6)
    assert (paired.lower, paired.seeds) == (3, 3)


def test_pairing_over_users_agrees_with_the_rows_of_all_seeds(tmp_path):
    """The middle of the interval is the pooled difference, and the interval holds it."""
    table = filled(tmp_path, Guesser("good", 0.1), Guesser("bad", 0.3))
    interval = paired_over_users(table, "one", "mae", "good", "bad", draws=50)
    assert interval.value == pytest.approx(-0.2, abs=1e-6)
    assert interval.low <= interval.value + 1e-6
    assert interval.high >= interval.value - 1e-6


def test_time_and_memory_are_measured():
    """Fifty megabytes that live inside the block are seen."""
    with measured() as used:
        block = np.ones(50 * 2**20 // 8)
        for _ in range(5):
            block.sum()
    assert used.seconds > 0
    assert used.megabytes > 25


def test_the_page_sets_the_best_in_bold_and_names_the_baseline(tmp_path):
    """The table, the tests and the cost stand on one page; a plot stands beside it."""
    table = filled(tmp_path, Guesser("good", 0.1), Guesser("bad", 0.3))
    page = results_page.markdown(table, subject="good", plain="bad", measures=("mae", "rmse"), bounds=(1.0, 5.0))
    line = next(line for line in page.splitlines() if line.startswith("| good"))
    assert "**" in line
    assert any(line.startswith("| one | mae | bad |") and "3/3" in line for line in page.splitlines())
    results_page.plot(table, "mae", tmp_path / "plot.svg", subject="good")
    assert (tmp_path / "plot.svg").read_text().count("<circle") == 2
    assert len(json.loads(json.dumps(results_page.as_dict(table)))["results"]) == 6


def queries(seed: int) -> Task:
    """Forty queries of eight candidates; the first half of them is a segment."""
    chance = np.random.default_rng(seed)
    return Task(None, chance.integers(0, 8, 40), np.arange(40) // 4, segments={"first half": np.arange(40) < 20})


def test_ranking_is_judged_by_the_place_of_the_right_candidate():
    """Right at the top in the first half, right at the bottom in the other."""
    task = queries(0)
    right = np.eye(8)[task.label]
    found = evaluate(task, np.where(task.segments["first half"][:, None], right, -right), "ranking")
    assert found["first half/mrr"] == 1.0
    assert found["mrr"] == pytest.approx((1 + 1 / 8) / 2)
    assert found["hit@10"] == 1.0


def test_a_tie_among_candidates_is_worth_the_mean_of_its_orders():
    """All alike: the mean reciprocal rank of a place drawn by chance."""
    found = evaluate(queries(0), np.zeros((40, 8)), "ranking")
    assert found["mrr"] == pytest.approx(np.mean(1 / np.arange(1, 9)))


def test_segments_of_queries_are_paired_over_users(tmp_path):
    """The interval of a segment holds the difference of that segment alone."""

    def fit(task: Task, seed: int) -> dict[str, Scored]:
        right = np.eye(8)[task.label]
        return {"good": Scored(right), "bad": Scored(np.where(task.segments["first half"][:, None], -right, right))}

    table = Table(tmp_path)
    methods = [Method(("good", "bad"), fit)]
    run(
        table,
        settings=["one"],
        seeds=range(2),
        methods=methods,
        open_task=lambda _, seed: queries(seed),
        kind="ranking",
    )
    interval = paired_over_users(table, "one", "first half/mrr", "good", "bad", draws=20)
    assert interval.value == pytest.approx(7 / 8)
    page = results_page.markdown(table, subject="good", measures=("mrr", "first half/mrr"))
    assert any(line.startswith("| one | first half/mrr | bad | +0.8750 |") for line in page.splitlines())
