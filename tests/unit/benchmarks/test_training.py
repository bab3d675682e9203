"""A line of the training benchmark says what was measured, beside its gate, and never passes what was not measured."""

import importlib.util

import pytest
import torch

from benchmarks.fuxictr_models import as_fuxictr
from benchmarks.roofline import Ceilings, on_gpu
from benchmarks.training import Bench, Line, race
from benchmarks.workload import FineTuning, Ours, Shape, Workload, shared


def test_a_line_tells_goal_figure_gate_and_verdict():
    assert str(Line("P1", "L=500", 2.79, 2.0)) == "P1 L=500 2.79x gate 2.0x ok"
    assert str(Line("P4", "5M", 2.2, 2.0, most=True)) == "P4 5M 2.20x gate <= 2.0x MISS"
    assert str(Line("P1", "L=50", None, 2.0, why="fuxictr not installed")) == "P1 L=50 skipped: fuxictr not installed"


@pytest.mark.skipif(importlib.util.find_spec("fuxictr") is not None, reason="the peer is installed")
def test_without_the_peer_its_goals_are_skipped_with_the_reason():
    bench = Bench(batch=16, rounds=1)
    lines = [*bench.p1(), *bench.p2(), *bench.p5()]
    assert {line.verdict for line in lines} == {"skipped"}
    assert {line.why for line in lines} == {"fuxictr not installed"}


@pytest.fixture(scope="module")
def work() -> Workload:
    return Workload(Shape(20, items=2000, batch=32, session=4))


def test_rows_of_a_session_share_one_stored_history(work):
    """As the product's batches do: 32 rows of 8 users hold 8 histories, all full."""
    batch = next(work.batches())
    assert batch.lifelong.item.shape == (8, 20)
    assert batch.lifelong.mask().all()


def test_the_peer_gets_each_row_with_its_whole_history_and_candidate(work):
    batch = next(work.batches())
    features, items, mask = as_fuxictr(batch)
    rows = items["item"].view(32, 21)
    assert torch.equal(rows[:, :20], batch.lifelong.item[batch.lifelong.row])
    assert torch.equal(rows[:, 20], batch.item)
    assert mask.all()
    assert torch.equal(features["label"], batch.label)


def test_a_floor_is_the_steps_products_and_rows_at_the_devices_speeds(work):
    """Twice the speed, half the floor; rows are 8 histories of 20 events, read and written once."""
    slow, fast = (Ceilings(speed * 1e9, speed * 1e9).floor(shared(work, "dacdr+lcn")) for speed in (1, 2))
    assert slow[0] == pytest.approx(2 * fast[0])
    assert slow[1] == pytest.approx(2 * 8 * 20 * 64 * 4 / 1e6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_roofline_says_so():
    assert list(on_gpu([])) == ["roofline skipped: torch finds no GPU here"]


@pytest.mark.slow
def test_baselines_train_and_a_fine_tuned_backbone_stays(work):
    trainers: dict[str, Ours] = {"whole": shared(work, "dacdr+lcn"), "adapter": FineTuning(work, "dacdr+lcn")}
    before = [{n: p.clone() for n, p in each.model.named_parameters()} for each in trainers.values()]
    took = race(trainers, 1)
    assert all(figures.cpu > 0 and figures.wall > 0 for figures in took.values())
    moved = [
        {name for name, parameter in each.model.named_parameters() if not torch.equal(parameter, old[name])}
        for each, old in zip(trainers.values(), before, strict=True)
    ]
    assert "embeddings.source_items.rows.weight" in moved[0]
    assert moved[1]
    assert all(name.startswith("domains.1.") for name in moved[1])
