"""The benchmark with injected harm: liars lie to everybody alike, tests are not shown, runs go on where they were."""

from dataclasses import replace

import numpy as np
import pytest

import benchmarks.source_reweighting as benchmark
from benchmarks import injected_harm, refused_feeds
from benchmarks.injected_harm import GOOD, RANDOM, REVERSED, drawn_kinds
from benchmarks.refused_feeds import Given, check_sources, described, feeds_of, without
from benchmarks.results_table import Task
from benchmarks.source_reweighting import ALONE, INFLUENCE, SOURCE_WEIGHTING, UNIFORM, SideBySide, measure, open_task
from orchestrator.data.dataset import Workspace


@pytest.fixture(scope="module")
def tiny():
    """Small data and short training, wherever the module's tests look."""
    patch = pytest.MonkeyPatch()
    patch.setattr(injected_harm, "SIMULATED_EVENTS", 6_000)
    patch.setattr(benchmark, "TARGET_ROWS", {"simulator": 300})
    patch.setattr(
        benchmark, "RECIPE", benchmark.RECIPE.model_copy(update={"epochs": 1, "width": 4, "lifelong": 5, "short": 2})
    )
    yield
    patch.undo()


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    return tmp_path_factory.mktemp("harm")


@pytest.fixture(scope="module")
def task(folder) -> Task:
    return open_task(None, folder, "simulator-harmed", 3)


def test_a_quarter_of_the_feeds_is_random_and_a_quarter_reversed_and_the_seed_draws_which():
    drawn = drawn_kinds(1, 0.25)
    assert np.bincount(drawn, minlength=3).tolist() == [8, 4, 4]
    assert not np.array_equal(drawn, drawn_kinds(2, 0.25))


def test_reversed_feeds_tell_the_opposite_random_ones_nothing_and_the_target_the_truth(task):
    given: Given = task.given
    true = Workspace(given.workspace.settings, given.workspace.domains)
    for name in given.encoder.slots:
        described, held = given.workspace.examples(given.encoder, name), true.examples(given.encoder, name)
        kinds = given.workspace.kinds_of(described)
        assert np.array_equal(described.label[kinds == GOOD], held.label[kinds == GOOD])
        assert np.array_equal(described.label[kinds == REVERSED], 1 - held.label[kinds == REVERSED])
        if name == given.encoder.slots[-1]:
            assert (kinds == GOOD).all()
        else:
            assert abs(np.corrcoef(described.label[kinds == RANDOM], held.label[kinds == RANDOM])[0, 1]) < 0.15


def test_histories_hear_what_the_training_rows_hear(task):
    """The values of one source's events, as rows and as histories, are the same multiset."""
    given: Given = task.given
    name = given.encoder.slots[0]
    rows = given.workspace.examples(given.encoder, name)
    store = given.workspace.histories.source
    here = store.domain == given.workspace.domain(name).number
    in_store = np.lexsort((store.value[here], store.item[here], store.time_us[here]))
    in_rows = np.lexsort((rows.value, rows.item, rows.time_us))
    assert np.array_equal(store.value[here][in_store], rows.value[in_rows])


def test_no_model_is_given_a_test_label_or_a_source_row_from_after_the_first_test_row(task):
    given: Given = task.given
    assert np.isnan(given.asked.label).all()
    assert np.isnan(given.asked.value).all()
    first = given.asked.time_us.min()
    assert max(part.time_us.max() for part in given.parts) < first
    assert given.validation.time_us.max() < first


def test_no_network_sees_the_feed_of_an_event_and_the_weigher_does(task):
    """Neither user nor item tells the feed, so there is nothing for a ranker to learn it by."""
    given: Given = task.given
    assert "feed" not in [field.name for field in given.encoder.item_fields]
    rows = given.parts[0]
    feeds = given.workspace.feeds(rows.domain, rows.user, rows.item, rows.time_us)
    assert set(feeds) == set(range(16))
    for who in (rows.user, rows.item):
        most = np.bincount(who).argmax()
        assert len(np.unique(feeds[who == most])) > 8
    batch = given.batch_builder.batch(rows, 0)
    assert np.array_equal(feeds_of(given, batch)[:, 0].numpy(), feeds + 1)


@pytest.mark.slow
def test_where_feeds_are_catalogues_they_stand_beside_the_item(tiny, folder):
    given: Given = open_task(None, folder, "simulator-seen", 3).given
    assert "feed" in [field.name for field in given.encoder.item_fields]
    rows = given.parts[0]
    feeds = given.workspace.feeds(rows.domain, rows.user, rows.item, rows.time_us)
    assert all(len(np.unique(feeds[rows.item == item])) == 1 for item in np.unique(rows.item)[:20])


def test_of_a_refused_feed_nothing_is_taken(task):
    """No training row, no event of a history, no share in an item's mean; all else stays as it was."""
    given: Given = task.given
    name = given.encoder.slots[0]
    left = without(given, [(name, 2), (name, 5)])
    before, after = given.parts[0], left.parts[0]
    feeds = given.workspace.feeds(name, before.user, before.item, before.time_us)
    kept = ~np.isin(feeds, [2, 5])
    assert 0 < kept.sum() < len(kept)
    assert np.array_equal(after.item, before.item[kept])
    assert not np.array_equal(left.means[name].means, given.means[name].means)
    number = given.workspace.domain(name).number
    held = []
    for one in (given, left):
        held.append(int((np.asarray(one.workspace.histories.source.domain) == number).sum()))
        assert held[-1] == len(one.workspace.examples(one.encoder, name))
    assert held[1] < held[0]
    assert np.array_equal(left.parts[1].label, given.parts[1].label)
    assert np.array_equal(left.parts[-1].label, given.parts[-1].label)


@pytest.mark.slow
def test_what_the_target_tower_refuses_is_left_out_and_it_looks_again_until_nothing_is(task, monkeypatch):
    """Told to refuse reversed feeds at each look, four at a time, they end with all of them gone."""
    given: Given = replace(task.given, memory={})
    looks = []

    def four_of_the_reversed(left: Given, transfer):
        bad = [
            (part.domain, f)
            for part, _ in left.training_sources
            for f in range(16)
            if left.workspace.kinds[f] == REVERSED
        ]
        still = [feed for feed in bad if feed not in left.workspace.refused]
        looks.append(len(still))
        return dict.fromkeys(still[:4], 0.1) | {("video", 99): 0.9, ("shop", 99): 0.9}

    monkeypatch.setattr(refused_feeds, "feed_weights", four_of_the_reversed)
    found = check_sources(given, SOURCE_WEIGHTING)
    assert looks == [8, 4, 0]
    assert len(found.refused) == 8
    assert found.last is not None
    assert len(found.certainties) == 3
    assert check_sources(given, SOURCE_WEIGHTING) is found


@pytest.mark.slow
def test_a_source_of_which_every_feed_is_refused_teaches_nobody_and_stays_in_histories(task, monkeypatch):
    """A network sees whose events they are, so what lies throughout can be read turned round."""
    given: Given = replace(task.given, memory={})

    def all_of_them(left: Given, transfer):
        return {(part.domain, feed): 0.1 for part, _ in left.training_sources for feed in range(16)}

    monkeypatch.setattr(refused_feeds, "feed_weights", all_of_them)
    found = check_sources(given, SOURCE_WEIGHTING)
    assert found.left.refused_sources == set(given.encoder.slots[:-1])
    assert not found.refused
    assert found.left.training_sources == ()
    assert len(found.left.workspace.histories.source.item) == len(given.workspace.histories.source.item)
    detail = described(given, None, found.left, found)
    assert set(detail["verdicts"].values()) == {False}
    assert set(detail["weights"].values()) == {0.0}


def test_a_source_batch_stands_beside_each_target_batch_and_sources_go_on_where_they_were(task):
    given: Given = task.given
    parts = [(part, slot) for slot, part in enumerate(given.parts)]
    data = SideBySide(benchmark.epoch_of(given, parts[-1:], 64), benchmark.epoch_of(given, parts[:-1], 64))
    first, second = (list(data.batches(epoch)) for epoch in (0, 1))
    assert len(first) == len(data)
    assert [int(batch.domain[0]) == given.target for batch in first] == [True, False] * (len(first) // 2)
    assert not np.array_equal(first[1].time.numpy(), second[1].time.numpy())
    for start in (1, 2, 5):
        rest = list(data.batches(0, start))
        assert [batch.item.tolist() for batch in rest] == [batch.item.tolist() for batch in first[start:]]


@pytest.mark.slow
def test_a_run_fills_the_table_and_a_second_one_trains_nothing(folder, task, monkeypatch):
    table = measure(None, folder, settings=["simulator-harmed"], seeds=1, models=[ALONE, UNIFORM, INFLUENCE])
    result = table.result("simulator-harmed", 0, INFLUENCE)
    assert result is not None
    assert set(result.detail["weights"]) == {"good", "random", "reversed"}
    assert set(result.detail["verdicts"]) <= {"video", "shop"}
    assert result.detail["percentiles"]
    assert "Weights at the end" in (folder / "source-reweighting.md").read_text()
    assert (folder / "source-reweighting-weights.svg").read_text().count("<polygon") >= 1
    monkeypatch.setattr(benchmark, "fit", None)
    measure(None, folder, settings=["simulator-harmed"], seeds=1, models=[ALONE, UNIFORM, INFLUENCE])
