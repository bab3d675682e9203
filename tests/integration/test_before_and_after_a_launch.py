"""A preview before any training, and the report that a launch leaves, through the use cases and the command line."""

import numpy as np
import pytest
from typer.testing import CliRunner

from domains.errors import NotEnoughData, UnknownVersion
from domains.events.histories import HistoryStore
from domains.spec import DomainSpec
from orchestrator import use_cases
from orchestrator.cli import app
from orchestrator.console import terminal
from orchestrator.evaluation import gate
from orchestrator.evaluation.preview_report import PreviewReport
from orchestrator.evaluation.report import Certificate, ColdStartReport
from orchestrator.jobs import launch as launching
from orchestrator.jobs.launch_state import LaunchSplit, LaunchState
from orchestrator.jobs.leak_scan import leak_scan
from orchestrator.jobs.runner import RunContext

QUICK = {"epochs": 1, "fine_tune_epochs": 1, "width": 4, "lifelong": 10, "batch_size": 512, "fine_tune_batch_size": 512}
SPEC_OF_NOBODY = {
    "name": "nobody",
    "role": "target",
    "task": "ctr",
    "owner": "nobody",
    "interactions": {"user": "u", "item": "i", "label": "y"},
}
SMALLEST = {"folds": 2, "target_rows": 1_500, "source_rows": 600, "width": 4, "lifelong": 10, "epochs": 1}


@pytest.fixture(scope="module")
def market(tmp_path_factory, simulated_market):
    """A tiny marketplace, ingested; nothing is trained."""
    return simulated_market(tmp_path_factory.mktemp("market"))


@pytest.fixture(scope="module")
def launched(market):
    """Its domain "live", fine-tuned under two seeds."""
    settings, registry = market
    use_cases.train_shared(registry=registry, settings=settings, by="test", leave_out=["live"], **QUICK)
    return use_cases.launch("live", registry=registry, settings=settings, by="test", seeds=2, **QUICK)


def test_a_preview_values_every_source_and_forecasts_before_anything_is_trained(market, capsys):
    """It needs no shared model, judges no cold user of a launch, and is read again from its run."""
    settings, registry = market
    assert use_cases.latest_preview("live", registry=registry) is None
    run = use_cases.run("preview", "live", params=SMALLEST, registry=registry, settings=settings, by="test")
    found = PreviewReport.of(run)
    assert registry.live("live") is None
    assert [source.name for source in found.sources] == ["video", "shop"]
    for source in found.sources:
        assert source.verdict in ("borrow", "do not borrow", "no clear gain")
        for gain in (source.alone, source.beside):
            assert gain.low <= gain.high
    rows = found.curve.rows
    assert rows == sorted(rows)
    plain = {"popularity", "item_mean", "item_user_bias", "declared_columns"}
    assert found.metric == registry.domain("live").spec.gate.metric
    assert set(found.curve.errors) == {"adapter", *plain}
    assert set(found.needed) == plain
    assert found.backtest.held <= found.backtest.of
    assert use_cases.latest_preview("live", registry=registry) == found
    terminal.preview(found)
    shown = capsys.readouterr().out
    for expected in ("video", found.sources[0].verdict, "beside the others", "ahead of popularity with"):
        assert expected in shown


def test_a_preview_of_too_little_says_so(market):
    """A domain without rows is refused by name, and the run says why."""
    settings, registry = market
    spec = registry.domain("live").spec.model_dump(mode="json")
    use_cases.register(DomainSpec.from_mapping({**spec, "name": "nothing-yet"}), registry=registry, by="test")
    with pytest.raises(NotEnoughData, match="nothing-yet"):
        use_cases.run("preview", "nothing-yet", registry=registry, settings=settings, by="test")


def test_several_seeds_are_told_and_the_first_is_offered(market, launched):
    """The mean over seeds lies between them; the table's own row is the first seed's."""
    report = ColdStartReport.of(launched)
    seeds = report.seeds["auc"]
    each = list(seeds.each.values())
    assert len(each) == 2
    assert seeds.value == pytest.approx(np.mean(each))
    assert each[0] == pytest.approx(report.rows["adapter"]["auc"].value)
    _, registry = market
    assert [version.id for version in registry.versions("live") if version.level == "adapter"] == [launched.id]


def test_later_rows_of_known_users_are_shown_and_decide_nothing(launched):
    """Warm users are a segment of their own beside the cold ones who judge."""
    report = ColdStartReport.of(launched)
    warm = report.segments["warm_user"]
    assert set(warm.rows) == set(report.rows)
    assert warm.users > 0
    assert report.leaks == []


def test_a_report_and_a_certificate_are_read_as_they_were_written(launched):
    """What the registry holds is what the typed values write, to the last key."""
    assert ColdStartReport.of(launched).as_dict() == launched.report
    assert Certificate.of(launched).as_dict() == launched.certificate


def test_a_report_is_exported_as_one_file(market, launched, monkeypatch, tmp_path):
    """The shell writes the same page that the use case gives; a version of nobody is refused."""
    settings, registry = market
    version, page = use_cases.report_page("live", registry=registry)
    assert version.id == launched.id
    assert Certificate.of(launched).before in page
    monkeypatch.setenv("GRAFT_HOME", str(settings.home))
    out = tmp_path / "report.html"
    done = CliRunner().invoke(app, ["report", "live", launched.id[:8], "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert out.read_text(encoding="utf-8") == page
    with pytest.raises(UnknownVersion, match="launch it first"):
        use_cases.report_page("reading", registry=registry)


def test_the_steps_of_a_launch_name_the_repeats():
    """People who follow the run see when other seeds are at work."""
    assert "Fine-tune again under other seeds" in [step.title for step in launching.STEPS]


@pytest.fixture
def scanned(market, launched):
    """The leak scan of the launch, with something changed before it looks; answers what it found."""
    settings, registry = market
    run = next(run for run in registry.runs("live") if run.kind == "launch-domain")
    context = RunContext(run.id, run.kind, "live", run.params, "test", registry, settings)

    def scan(change=lambda rows, split: None, new_items=()):
        launch = LaunchState.of(context)
        fresh, split = launch.fresh_slot(), vars(launch.split).copy()
        change(fresh.rows, split)
        launch.__dict__["split"] = LaunchSplit(**split)
        found = leak_scan(launch, fresh.encoder, fresh.rows, new_items=np.asarray(new_items, np.int64))
        return [*found.leaks, *(f"feature {suspect.feature!r}: {suspect.why}" for suspect in found.suspects)]

    return scan


def learn_from_the_test(rows, split):
    """Two test rows among the training rows."""
    split["train"] = np.r_[split["train"], split["test"][:2]]


def learn_from_a_cold_user(rows, split):
    """An earlier row of somebody who is said to be cold."""
    earlier = np.flatnonzero(np.isin(rows.user, split["cold_users"]) & (rows.time_us < split["cut_us"]))
    split["train"] = np.r_[split["train"], earlier[:1]]


def learn_from_after_the_cut(rows, split):
    """A row of a warm user from the time of the test rows."""
    split["train"] = np.r_[split["train"], split["warm"][:1]]


def come_from_the_future(rows, split):
    """An event of the day after tomorrow."""
    rows.time_us[split["test"][-1]] = 4_000_000_000_000_000


@pytest.mark.parametrize(
    ("leak", "told"),
    [
        (learn_from_the_test, "2 rows are in both train and test"),
        (learn_from_a_cold_user, "1 cold users have rows in train"),
        (learn_from_after_the_cut, "1 rows of train are at or after the cut"),
        (come_from_the_future, "1 rows lie in the future"),
    ],
)
def test_every_leak_is_found_where_a_launch_looks_for_it(scanned, launched, leak, told):
    """Each check is broken on purpose, found by name, and holds the version back whatever it gains."""
    assert scanned() == []
    found = scanned(leak)
    assert any(told in sentence for sentence in found), found
    report = ColdStartReport.of(launched).model_copy(update={"leaks": found})
    decision = gate.decide(report, DomainSpec.from_mapping(SPEC_OF_NOBODY).gate)
    assert decision.verdict != "ship"
    assert any(told in reason for reason in decision.reasons)


def test_an_item_called_new_that_training_met_is_found(scanned, market, launched):
    """The segment of new items must hold only such as nobody learnt from."""
    settings, registry = market
    run = next(run for run in registry.runs("live") if run.kind == "launch-domain")
    launch = LaunchState.of(RunContext(run.id, run.kind, "live", run.params, "test", registry, settings))
    met = launch.fresh_slot().rows.item[launch.split.train]
    found = scanned(new_items=met[:1])
    assert "1 items that are called new have rows in train" in found


def test_a_history_that_holds_its_rows_own_moment_is_found(scanned, monkeypatch):
    """One event further than strictly before, in the windows of every row."""
    honest = HistoryStore.window

    def one_too_far(store, users, before_us, length):
        start, stop = honest(store, users, before_us + 1, length)
        return start, stop

    monkeypatch.setattr(HistoryStore, "window", one_too_far)
    assert any("history 'this domain'" in sentence for sentence in scanned())


def test_a_retrain_keeps_what_was_chosen_for_the_version_that_is_live(market, launched):
    """A schedule asks for nothing; the version before is a row of the report, and cannot be undercut for certain."""
    settings, registry = market
    use_cases.promote(
        "live",
        launched.id,
        registry=registry,
        settings=settings,
        who="test",
        why="past the gate, for the test",
        force=True,
    )
    again = use_cases.launch("live", registry=registry, settings=settings, by="schedule", kind="retrain", seed=3)
    assert {name: again.config[name] for name in QUICK} == QUICK
    assert again.config["seed"] == 3
    assert ColdStartReport.of(again).rows["live"] == ColdStartReport.of(launched).rows["adapter"]
