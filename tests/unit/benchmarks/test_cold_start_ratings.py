"""Protocol A on small files in the original Amazon format: what is offered, what is hidden, what runs again."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import cold_start_ratings as ratings
from benchmarks.baselines.factors import latest_liked
from benchmarks.rating_bridges import HISTORY, LIKED_ABOVE, Ready
from benchmarks.results_table import Method, Table
from domains.errors import InvalidData
from models.baselines.plain import MappedSourceBias, Rows
from orchestrator.training.recipe import Recipe

SETTING = "amazon-movies-to-cds-50"
REVIEWS = 90 * 12
"""Of each category, as the fixture writes them."""


@pytest.fixture(scope="module")
def data(amazon_reviews):
    return amazon_reviews


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def task(data, out):
    return ratings.open_task(data, out, SETTING, 0)


def test_settings_are_offered_where_their_files_lie(data, tmp_path):
    """Metadata of a category is no review file of it, and a folder without any set is refused by name."""
    pairs = {setting.rsplit("-", 1)[0] for setting in ratings.offered(data, ratings.SETTINGS, ratings.pair_of)}
    assert pairs == {"amazon-movies-to-cds", "amazon-movies-to-cds-timed"}
    with pytest.raises(InvalidData, match="douban/"):
        ratings.offered(tmp_path, ratings.SETTINGS, ratings.pair_of)


def test_cold_users_are_hidden_and_queries_are_bare(task):
    """No target row of a test user teaches or chooses; the queries hold no label; the source shows all of it."""
    given = task.given
    cold, held = set(given.asked.user), set(given.validation.user)
    assert cold
    assert held
    assert not cold & held
    assert not (cold | held) & set(given.train.user)
    assert np.isnan(given.asked.label).all()
    assert np.isnan(given.asked.value).all()
    assert len(given.source) + len(given.source_validation) == REVIEWS
    # Hidden users without source history wait: their rows are neither learnt from nor asked for.
    used = len(given.train) + len(given.validation) + len(task.label)
    assert 0.9 * REVIEWS < used <= REVIEWS
    assert cold <= set(given.source.user) | set(given.source_validation.user)


@pytest.mark.slow
def test_in_time_everything_learnt_from_lies_before_what_is_asked(data, out):
    """The timed setting tests the last rows and lends no later source row."""
    given = ratings.open_task(data, out, "amazon-movies-to-cds-timed-50", 0).given
    first = given.asked.time_us.min()
    for rows in (given.train, given.validation, given.source, given.source_validation):
        assert rows.time_us.max() < first


def test_bridges_read_the_same_likes_from_less(task):
    """Batches that keep the latest likes alone say what the whole history says of them."""
    given = task.given
    rows = given.train.take(np.arange(100))
    whole = given.bridges.batch_builder.batch(rows, 1)
    kept = next(Ready(given.bridges, rows, 1, size=100, seed=0, shuffle=False).batches(0))
    wanted, real = latest_liked(whole.lifelong, LIKED_ABOVE, HISTORY)
    items, found = latest_liked(kept.lifelong, LIKED_ABOVE, HISTORY)
    assert torch.equal(found, real)
    assert torch.equal(items * found, wanted * real)


def test_the_tuned_bias_is_the_best_of_all_that_were_tried(task):
    """Shared refits give what each pair of smoothings gives by itself."""
    given = task.given
    found = ratings.tuned_bias(task, 0)[ratings.TUNED]
    source_rows = Rows.of(given.source.user, given.source.item, given.source.label)
    held, errors = given.validation, {}
    for smoothing in ratings.SMOOTHINGS:
        for ridge in ratings.SMOOTHINGS:
            baseline = MappedSourceBias(smoothing, ridge)
            baseline.fit(given.train.user, given.train.item, given.train.label, source=source_rows)
            told = np.clip(baseline.predict(held.user, held.item), 1, 5)
            errors[smoothing, ridge] = float(np.sqrt(np.square(told - held.label).mean()))
    assert found.detail["validation_rmse"] == pytest.approx(min(errors.values()), abs=1e-9)
    assert errors[found.detail["smoothing"], found.detail["source_ridge"]] == min(errors.values())


@pytest.mark.slow
def test_every_row_answers_and_a_second_run_trains_nothing(data, out, monkeypatch, task):
    """The whole table on the original format: all rows there, the mapped bias below the item mean, then resumed."""
    recipe = Recipe(task="rating", lifelong=20, epochs=1, fine_tune_epochs=1, width=8)
    monkeypatch.setattr(ratings, "EPOCHS", 1)
    monkeypatch.setattr(ratings, "EPOCHS_AT_MOST", 1)
    ratings.measure(data, out, settings=[SETTING], seeds=1, recipe=recipe)
    table = Table(out)
    names = [name for method in ratings.methods(recipe) for name in method.names]
    assert table.models() == names
    errors = {name: table.values(SETTING, name, "rmse")[0] for name in names}
    assert errors[ratings.BASELINE] < errors["item mean"]
    assert errors[ratings.ADAPTER] < errors["item mean"]
    assert ratings.WIDE_PART in (out / "cold-start-ratings.md").read_text()

    def refuse(*_):
        raise AssertionError("a result was trained again")

    ready = [replace(method, fit=refuse) for method in ratings.methods(recipe)]
    monkeypatch.setattr(ratings, "methods", lambda recipe: ready)
    before = (out / "results.jsonl").read_bytes()
    ratings.measure(data, out, settings=[SETTING], seeds=1, recipe=recipe)
    assert (out / "results.jsonl").read_bytes() == before
    assert all(isinstance(one, Method) for one in ready)
