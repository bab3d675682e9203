"""The benchmark with injected harm: liars lie to everybody alike, tests are not shown, runs go on where they were."""

import numpy as np
import pytest

import benchmarks.injected_harm as injected_harm
import benchmarks.source_reweighting as benchmark
from benchmarks.injected_harm import GOOD, RANDOM, REVERSED, drawn_kinds
from benchmarks.source_reweighting import ALONE, INFLUENCE, UNIFORM, Given, SideBySide, measure, open_case
from orchestrator.arena import Case
from orchestrator.workspace import Workspace


@pytest.fixture(scope="module")
def tiny():
    """Small data and short training, wherever the module's tests look."""
    patch = pytest.MonkeyPatch()
    patch.setattr(injected_harm, "SIMULATED_EVENTS", 6_000)
    patch.setattr(benchmark, "TARGET_ROWS", 300)
    patch.setattr(
        benchmark, "RECIPE", benchmark.RECIPE.model_copy(update={"epochs": 1, "width": 4, "lifelong": 5, "short": 2})
    )
    yield
    patch.undo()


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    return tmp_path_factory.mktemp("harm")


@pytest.fixture(scope="module")
def case(folder) -> Case:
    return open_case(None, folder, "simulator-harmed", 3)


def test_a_quarter_of_the_feeds_is_random_and_a_quarter_reversed_and_the_seed_draws_which():
    drawn = drawn_kinds(1, 0.25)
    assert np.bincount(drawn, minlength=3).tolist() == [8, 4, 4]
    assert not np.array_equal(drawn, drawn_kinds(2, 0.25))


def test_reversed_feeds_tell_the_opposite_random_ones_nothing_and_the_target_the_truth(case):
    given: Given = case.given
    true = Workspace(given.workspace.settings, given.workspace.domains)
    for name in given.layout.slots:
        told, held = given.workspace.examples(given.layout, name), true.examples(given.layout, name)
        kinds = given.workspace.kinds_of(told)
        assert np.array_equal(told.label[kinds == GOOD], held.label[kinds == GOOD])
        assert np.array_equal(told.label[kinds == REVERSED], 1 - held.label[kinds == REVERSED])
        if name == given.layout.slots[-1]:
            assert (kinds == GOOD).all()
        else:
            assert abs(np.corrcoef(told.label[kinds == RANDOM], held.label[kinds == RANDOM])[0, 1]) < 0.15


def test_histories_hear_what_the_training_rows_hear(case):
    """The values of one source's events, as rows and as histories, are the same multiset."""
    given: Given = case.given
    name = given.layout.slots[0]
    rows = given.workspace.examples(given.layout, name)
    store = given.workspace.histories.source
    here = store.domain == given.workspace.domain(name).number
    in_store = np.lexsort((store.value[here], store.item[here], store.time_us[here]))
    in_rows = np.lexsort((rows.value, rows.item, rows.time_us))
    assert np.array_equal(store.value[here][in_store], rows.value[in_rows])


def test_no_model_is_given_a_test_label_or_a_source_row_from_after_the_first_test_row(case):
    given: Given = case.given
    assert np.isnan(given.asked.label).all()
    assert np.isnan(given.asked.value).all()
    first = given.asked.time_us.min()
    assert max(part.time_us.max() for part in given.parts) < first
    assert given.validation.time_us.max() < first


def test_a_source_batch_stands_beside_each_target_batch_and_sources_go_on_where_they_were(case):
    given: Given = case.given
    parts = [(part, slot) for slot, part in enumerate(given.parts)]
    data = SideBySide(benchmark._epoch(given, parts[-1:], 64), benchmark._epoch(given, parts[:-1], 64))
    first, second = (list(data.batches(epoch)) for epoch in (0, 1))
    assert len(first) == len(data)
    assert [int(batch.domain[0]) == given.target for batch in first] == [True, False] * (len(first) // 2)
    assert not np.array_equal(first[1].time.numpy(), second[1].time.numpy())
    for start in (1, 2, 5):
        rest = list(data.batches(0, start))
        assert [batch.item.tolist() for batch in rest] == [batch.item.tolist() for batch in first[start:]]


def test_a_run_fills_the_table_and_a_second_one_trains_nothing(folder, case, monkeypatch):
    table = measure(None, folder, settings=["simulator-harmed"], seeds=1, models=[ALONE, UNIFORM, INFLUENCE])
    cell = table.cell("simulator-harmed", 0, INFLUENCE)
    assert cell is not None
    assert set(cell.detail["weights"]) == {"good", "random", "reversed"}
    assert set(cell.detail["verdicts"]) <= {"video", "shop"}
    assert cell.detail["percentiles"]
    assert "Weights at the end" in (folder / "source-reweighting.md").read_text()
    assert (folder / "source-reweighting-weights.svg").read_text().count("<polygon") >= 1
    monkeypatch.setattr(benchmark, "fit", None)
    measure(None, folder, settings=["simulator-harmed"], seeds=1, models=[ALONE, UNIFORM, INFLUENCE])
