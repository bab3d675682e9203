"""Every page on a real registry: what it shows when empty, when full, and when something is wrong."""

import time
import tomllib
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from domains.ingestion.ingest import ingest
from domains.registry.registry import Registry, Version
from domains.spec import DomainSpec
from orchestrator.settings import Settings

APP = Path(__file__).parents[3] / "ui" / "app.py"
CLOSED_PORT = "1"  # nothing listens on it
REPORT = {
    "task": "ctr",
    "metric": "auc",
    "subject": "adapter",
    "examples": 900,
    "users": 200,
    "cold_users": 200,
    "label_mean": 0.25,
    "rows": {
        "popularity": {"auc": {"value": 0.60, "low": 0.57, "high": 0.63}},
        "adapter": {"auc": {"value": 0.71, "low": 0.68, "high": 0.74}},
    },
    "gain": {"popularity": {"value": 0.11, "low": 0.07, "high": 0.15}},
    "segments": {
        "cold_item": {
            "examples": 60,
            "users": 40,
            "rows": {"adapter": {"auc": {"value": 0.6, "low": 0.5, "high": 0.7}}},
        }
    },
    "prediction_bias": 0.05,
    "pcoc": 1.05,
    "ece": 0.012,
    "reliability": [
        {"predicted": 0.1, "observed": 0.12, "examples": 450},
        {"predicted": 0.4, "observed": 0.38, "examples": 450},
    ],
    "leaks": [],
    "leak_scan": ["900 rows: none on two sides of the split"],
    "required": {"baselines": {"popularity": ["policy", "gate"]}, "seeds": 2, "seeds_by": "policy"},
    "seeds": {"auc": {"value": 0.70, "low": 0.6, "high": 0.8, "each": {"0": 0.71, "1": 0.69}}},
    "certificate_ok": True,
    "all_parameters": 324_706,
    "fine_tune_seconds": 90.0,
    "training_examples": 5_000,
    "notes": [],
    "launch_seconds": 240.0,
    "gain_over_seeds": {"popularity": {"value": 0.1, "low": 0.0, "high": 0.2, "each": {"0": 0.11, "1": 0.09}}},
    "cost": {
        "processor_seconds": 90.0,
        "parts": {"fine-tuning": 30.0, "scratch": 60.0},
        "price_per_processor_hour": 2.0,
        "currency": "EUR",
        "money": 0.05,
    },
    "source_weighting": {
        "verdicts": {
            "video": {
                "weight": 0.9,
                "influence": 0.1,
                "certainty": 3.0,
                "borrow": True,
                "verdict": "borrow",
                "reason": "its samples help the target",
            }
        },
        "weights": [
            {"step": step, "source": "video", "rows": 9, "mean": 0.5, "p10": 0.2, "p50": 0.5, "p90": 0.9}
            for step in (100, 200)
        ],
        "windows": [],
        "target_certainty": None,
        "harmful_parts": [],
    },
    "learning_curve": [{"epoch": 1, "step": 50, "loss": 0.6, "seconds": 1.5, "metric": "auc", "value": 0.66}],
    "trained_parameters": 18_277,
    "decision": {"promote": True, "verdict": "ship", "reasons": ["auc on 200 cold users beats popularity by +0.11"]},
}
CERTIFICATE = {
    "ok": True,
    "changed": [],
    "frozen_tensors": 73,
    "trained_parameters": 18_277,
    "all_parameters": 324_706,
    "before": "ab" * 32,
    "after": "ab" * 32,
    "hashes": {"head.weight": "cd" * 32},
    "backbone": "b" * 64,
    "probe_rows": {"video": 256},
    "predictions_moved": [],
}


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Settings:
    """A home of its own, with no server up."""
    for name, value in {
        "HOME": str(tmp_path / "home"),
        "SERVICE_PORT": CLOSED_PORT,
        "PREFECT_PORT": CLOSED_PORT,
    }.items():
        monkeypatch.setenv(f"GRAFT_{name}", value)
    return Settings()


@pytest.fixture
def registry(settings) -> Registry:
    """The registry that the pages read."""
    settings.home.mkdir(parents=True)
    registry = Registry(settings.registry_url)
    registry.migrate()
    return registry


def spec(name: str, role: str = "target", **changes) -> DomainSpec:
    """A small valid spec of clicks."""
    declared = {
        "name": name,
        "role": role,
        "task": "ctr",
        "owner": f"team-{name}",
        "interactions": {"user": "user_id", "item": "item_id", "time": "ts", "label": "click"},
    }
    return DomainSpec.from_mapping({**declared, **changes})


def write_events(path: Path, *, bad: bool = False) -> Path:
    """A hundred clicks and passes; with ``bad`` one more row whose label is no click."""
    rows = [f"u{n % 20},i{n % 7},2025-03-01T10:{n % 60:02d}:00Z,{n % 2}" for n in range(100)]
    if bad:
        rows.append("u1,i1,2025-03-01T10:00:00Z,7")
    path.write_text("\n".join(["user_id,item_id,ts,click", *rows]) + "\n")
    return path


@pytest.fixture
def full(registry, settings, tmp_path) -> Registry:
    """A source and a target with data, a shared model, and a challenger that passed its gate."""
    for name, role in (("video", "source"), ("live", "target")):
        domain = registry.register_domain(spec(name, role), by="ann")
        report = ingest(
            domain.spec,
            number=domain.number,
            interactions=[write_events(tmp_path / f"{name}.csv")],
            data_dir=settings.data_dir,
        )
        registry.record_ingest(name, report.ingest_id, report.as_dict())
    measured = {"value": 0.65, "low": 0.6, "high": 0.7}
    rows = {"shared": {"auc": measured}, "item_mean": {"auc": measured}, "train_mean": {"auc": measured}}
    registry.add_version(
        Version(id="b" * 64, kind="backbone", artifact="x:1", metrics={"video": {"examples": 50, "rows": rows}})
    )
    registry.promote(None, "b" * 64, expect=None, who="ann", why="first")
    common = {"kind": "adapter", "domain": "live", "backbone_id": "b" * 64}
    registry.add_version(Version(id="1" * 64, artifact="x:2", level="zero_shot", **common))
    registry.promote("live", "1" * 64, expect=None, who="ann", why="first answers")
    registry.add_version(
        Version(
            id="a" * 64,
            artifact="x:3",
            level="adapter",
            report=REPORT,
            metrics=REPORT["rows"]["adapter"],
            certificate=CERTIFICATE,
            **common,
        )
    )
    registry.move("live", "training", by="ann")
    registry.move("live", "challenger", by="ann")
    return registry


def open_page(page: str | None = None, **query: str) -> AppTest:
    """The app on one of its pages."""
    app = AppTest.from_file(str(APP), default_timeout=60).run()
    if page is not None:
        for name, value in query.items():
            app.query_params[name] = value
        app.switch_page(f"views/{page}.py").run()
    assert not app.exception
    return app


def said(app: AppTest) -> str:
    """Everything that a page says in words."""
    kinds = ("title", "subheader", "markdown", "caption", "info", "warning", "success", "error", "metric", "code")
    return "\n".join(
        str(part.label if kind == "metric" else part.value) for kind in kinds for part in getattr(app, kind)
    )


def press(app: AppTest, key: str) -> AppTest:
    """Press the button of this key."""
    app.button(key=key).click().run()
    assert not app.exception
    return app


def decide(app: AppTest, key: str, *, why: str) -> None:
    """Give the reason in a dialog and confirm. A browser keeps the dialog open; here each run must open it anew."""
    app.text_input(key=f"why-{key}").input(why)
    press(app, key)
    app.button(key=f"do-{key}").click()
    press(app, key)


def follow(app: AppTest, until: str, limit_s: float = 30) -> AppTest:
    """Draw the page again until it says something."""
    deadline = time.monotonic() + limit_s
    while until not in said(app):
        assert time.monotonic() < deadline, said(app)
        time.sleep(0.2)
        app.run()
    return app


@pytest.mark.parametrize(
    ("page", "title"),
    [
        (None, "No domain yet"),
        ("domain_page", "No domain yet"),
        ("playground", "No domain"),
        ("run_list", "Nothing has"),
    ],
)
@pytest.mark.slow
def test_a_page_with_nothing_to_show_says_what_to_do(registry, page, title):
    """An empty registry is where everybody starts."""
    app = open_page(page)
    assert title in said(app)
    assert any(str(button.key).startswith("empty-") for button in app.button)


def test_the_list_shows_state_fallback_level_owner_and_counts(full):
    """One look says what answers where."""
    text = said(open_page())
    for expected in ("Challenger", "Shared model", "team-live", "100 events", "20 users, 7 items", "1" * 12):
        assert expected in text


@pytest.mark.slow
def test_a_domain_page_shows_the_gate_the_plots_and_the_certificate(full):
    """A decision can be made from this page alone."""
    app = open_page("domain_page", name="live")
    text = said(app)
    for expected in (
        "The gate lets it pass",
        "AUC on 200 cold users beats popularity",
        "Nothing else moved",
        "Items never seen in training",
        "Cold users judged on",
        "policy, the gate",
        "under other seeds",
        "none on two sides of the split",
        "Trained from scratch",
        "its samples help the target",
    ):
        assert expected in text or any(expected in str(table.value.to_dict()) for table in app.dataframe), expected
    assert len(app.get("vega_lite_chart") or app.get("arrow_vega_lite_chart")) >= 3


@pytest.mark.slow
def test_a_version_goes_live_only_with_a_reason_and_comes_back_in_one_step(full):
    """Promote, then roll back; both with who and why."""
    app = press(open_page("domain_page", name="live"), "promote")
    assert app.button(key="do-promote").disabled
    decide(app, "promote", why="beats popularity")
    assert full.live("live").version_id == "a" * 64
    app = press(open_page("domain_page", name="live"), "roll-back")
    decide(app, "roll-back", why="clicks fell")
    assert full.live("live").version_id == "1" * 64
    assert [flip.why for flip in full.promotions("live")][:2] == ["clicks fell", "beats popularity"]


@pytest.mark.slow
def test_the_shared_model_can_be_chosen_in_the_dialog(full):
    """Every way to read histories has a name in words, the usual one is chosen; where one has a pyramid, its size."""

    def box(label: str) -> list:
        return [found for found in app.selectbox if found.label == label]

    def pyramids_beside(architecture: str) -> list[int]:
        box("Histories are read by")[0].set_value(architecture)
        press(app, "train-shared")
        return [len(found.options) for found in box("Pyramid")]

    app = press(open_page("domain_list"), "train-shared")
    assert len(box("Histories are read by")[0].options) == 4
    assert box("Histories are read by")[0].value == "dacdr+lcn"
    assert pyramids_beside("dacdr+lcn") == [4]
    assert pyramids_beside("domain_over_pyramid") == [3], "it reads what a pyramid selects"
    assert pyramids_beside("dacdr") == []


@pytest.mark.slow
def test_without_prefect_a_launch_is_offered_inside_the_ui(full):
    """The dialog says that nobody else would run it."""
    app = press(open_page("domain_page", name="live"), "launch")
    assert "The Prefect server does not answer" in said(app)
    assert "inside this UI" in app.button(key="start-launch-domain").label


@pytest.mark.slow
def test_an_unknown_domain_in_the_address_is_answered_in_words(full):
    """A stale link is no crash."""
    assert "No domain is registered as 'gone'" in said(open_page("domain_page", name="gone"))


@pytest.mark.slow
def test_a_running_run_shows_its_step_and_a_failed_one_its_error_in_full(full):
    """What goes on is followed; what failed says why."""
    full.start_run("launch-domain", "live", params={}, by="ann", run_id="one")
    full.report_progress("one", 0.4, "Fine-tune the adapter", loss=0.5)
    full.start_run("train-shared", None, params={}, by="ann", run_id="two")
    full.finish_run("two", state="failed", error="first line\nNotEnoughData: no source has data")
    text = said(open_page("run_list"))
    assert "loss 0.5000" in text
    assert "NotEnoughData: no source has data" in text
    assert "first line\nNotEnoughData" in text


@pytest.mark.slow
def test_the_playground_says_in_one_sentence_that_the_service_is_down(full, settings):
    """No stack trace, and what to do about it."""
    from orchestrator import use_cases

    use_cases.Histories.build(settings.data_dir, [(domain.spec, domain.number) for domain in full.domains()])
    app = press(open_page("playground", name="live"), "rank")
    assert len(app.error) == 1
    assert "does not answer" in app.error[0].value
    assert any("curl --silent" in code.value for code in app.code)


def test_yaml_is_checked_as_it_stands_with_line_and_field(registry):
    """A misspelt key names its line and what was meant."""
    app = open_page("register")
    app.segmented_control[1].set_value("YAML").run()
    app.text_area(key="yaml-text").input("name: live\nrole: target\ntask: ctr\nownr: me\n").run()
    found = {row["Field"]: row for row in app.table[0].value.to_dict("records")}
    assert found["`ownr`"]["Line"] == "4"
    assert "did you mean 'owner'" in found["`ownr`"]["What to correct"]
    assert app.button(key="register").disabled


@pytest.mark.slow
def test_the_form_reads_the_columns_and_registers_with_the_bad_rows_shown(registry, tmp_path):
    """From a file on the server to a validated domain without naming a single column."""
    events = write_events(tmp_path / "events.csv", bad=True)
    app = open_page("register")
    app.segmented_control[0].set_value("On this server").run()
    app.text_input(key="register-path-Interactions").input(str(events)).run()
    app.text_input(key="form-name").input("live").run()
    app.text_input(key="form-owner").input("team-live").run()
    assert app.selectbox(key="form-label-chosen").value == "click"
    press(app, "register")
    follow(app, "1 bad row set aside")
    assert registry.domain("live").counts["rows_added"] == 100
    bad = app.dataframe[1].value.to_dict("records")
    assert (bad[0]["File"], bad[0]["Line"]) == ("events.csv", 102)


def test_a_taken_name_is_refused_with_its_code(full):
    """Two teams, one name: the second is told who holds it."""
    app = open_page("register")
    app.segmented_control[1].set_value("YAML").run()
    taken = spec("live", owner="somebody-else").to_yaml()
    app.text_area(key="yaml-text").input(taken).run()
    press(app, "register")
    assert "already registered" in app.error[0].value
    assert "domain_already_registered" in app.error[0].value


@pytest.mark.slow
def test_a_file_that_is_all_wrong_is_refused_with_its_first_bad_lines(registry, tmp_path):
    """Nothing is added, and the team sees where to look."""
    events = tmp_path / "wrong.csv"
    events.write_text("user_id,item_id,ts,click\n" + "u1,i1,2025-03-01T10:00:00Z,9\n" * 30)
    domain = registry.register_domain(spec("live"), by="ann")
    app = open_page("domain_page", name=domain.name)
    where = next(control for control in app.segmented_control if control.key == "add-live-where")
    where.set_value("On this server").run()
    app.text_input(key="add-live-path-Interactions").input(str(events)).run()
    press(app, "add-live")
    follow(app, "Nothing was added")
    assert "invalid_data" in said(app)
    assert any("Has a label outside label_range" in str(table.value.to_dict()) for table in app.dataframe)
    assert registry.domain("live").counts.get("rows_added", 0) == 0


def test_a_path_that_is_not_there_is_said_before_anything_runs(registry):
    """A typing mistake costs no run."""
    registry.register_domain(spec("live"), by="ann")
    app = open_page("domain_page", name="live")
    next(control for control in app.segmented_control if control.key == "add-live-where").set_value(
        "On this server"
    ).run()
    app.text_input(key="add-live-path-Interactions").input("/nowhere/events.csv").run()
    assert "no file /nowhere/events.csv" in said(app)
    assert registry.runs() == []


@pytest.mark.slow
def test_an_uploaded_file_is_added_once_and_its_copy_goes(registry, settings, tmp_path):
    """What was validated lies in the data folder; a second copy would only fill the disk."""
    registry.register_domain(spec("live"), by="ann")
    app = open_page("domain_page", name="live")
    uploader = next(part for part in app.file_uploader if str(part.key).startswith("add-live-interactions"))
    uploader.set_value([("events.csv", write_events(tmp_path / "events.csv").read_bytes(), "text/csv")]).run()
    press(app, "add-live")
    follow(app, "All good")
    assert registry.domain("live").counts["rows_added"] == 100
    assert [path for path in (settings.home / "uploads").rglob("*") if path.is_file()] == []


@pytest.mark.slow
def test_a_domain_page_shows_what_short_runs_said_and_offers_them(full):
    """Before the first preview an invitation, after it each source's verdict and the rows still needed."""
    app = open_page("domain_page", name="live")
    assert "Not tried yet" in said(app)
    assert "Nothing is kept but what they said" in said(press(app, "preview"))
    interval = {"value": 0.01, "low": 0.005, "high": 0.02}
    worse = {"value": -0.01, "low": -0.02, "high": -0.005}
    errors = [interval, interval]
    found = {
        "domain": "live",
        "task": "ctr",
        "metric": "logloss",
        "data": "g1",
        "run": "preview-1",
        "evaluation_rows": 900,
        "evaluation_users": 80,
        "folds": 4,
        "best": [],
        "forecast_sources": ["video"],
        "made_at": "2026-01-02T03:04:05+00:00",
        "together": interval,
        "sources": [{"name": "video", "alone": worse, "beside": worse, "verdict": "do not borrow"}],
        "curve": {"rows": [500.0, 1000.0], "errors": {"adapter": errors, "popularity": errors, "item_mean": errors}},
        "needed": {"popularity": {"rows": 1234.0, "low": 500.0, "high": None, "certain": 0.8}},
        "backtest": {"held": 5, "of": 6, "checks": []},
    }
    full.start_run("preview", "live", params={}, by="ann", run_id="preview-1")
    full.finish_run("preview-1", state="succeeded", result=found)
    app = open_page("domain_page", name="live")
    assert any("do not borrow" in str(table.value.to_dict()) for table in app.dataframe)
    for expected in ("1,234 rows", "more than a hundred times", "held 5 of 6", "+0.0100 [+0.0050, +0.0200]"):
        assert expected in said(app)


def test_pages_show_no_words_that_are_meant_for_readers_of_the_code():
    """Streamlit writes out any text that stands by itself in a page, unless told not to."""
    config = tomllib.loads((APP.parent / ".streamlit" / "config.toml").read_text())
    assert config["runner"]["magicEnabled"] is False
