"""The page of one domain: its report, decisions about it, data added to it."""

import pytest

from tests.unit.ui.fake_browser import choose_server_file, decide, follow, in_tables, open_page, press, said
from tests.unit.ui.fake_domains import PREVIEW, spec, write_events


@pytest.mark.slow
def test_a_domain_page_shows_the_gate_the_plots_and_the_certificate(full):
    """A decision can be made from this page alone."""
    app = open_page("domain_page", name="live")
    text = said(app)
    for expected in (
        "Passed the gate",
        "AUC on 200 cold users beats popularity",
        "Nothing else changed",
        "Items never seen in training",
        "Cold users",
        "policy, the gate",
        "under **2 seeds**",
        "none on two sides of the split",
        "Trained from scratch",
        "its samples help the target",
    ):
        assert expected in text or in_tables(app, expected), expected
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
    assert [promotion.why for promotion in full.promotions("live")][:2] == ["clicks fell", "beats popularity"]


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
def test_a_domain_page_offers_short_runs_and_shows_what_they_measured(full):
    """Before the first preview an invitation, after it each source's verdict and the rows still needed."""
    app = open_page("domain_page", name="live")
    assert "Not tried yet" in said(app)
    assert "keeps only the measurements" in said(press(app, "preview"))
    full.start_run("preview", "live", params={}, by="ann", run_id="preview-1")
    full.finish_run("preview-1", state="succeeded", result=PREVIEW.as_dict())
    app = open_page("domain_page", name="live")
    assert in_tables(app, "do not borrow")
    for expected in (
        "1,234 rows",
        "more than a hundred times",
        "5 of 6 forecast intervals",
        "+0.0100 (+0.0050 to +0.0200)",
    ):
        assert expected in said(app)


@pytest.mark.slow
def test_a_file_that_is_all_wrong_is_refused_with_its_first_bad_lines(registry, tmp_path):
    """Nothing is added, and the team sees where to look."""
    events = tmp_path / "wrong.csv"
    events.write_text("user_id,item_id,ts,click\n" + "u1,i1,2025-03-01T10:00:00Z,9\n" * 30)
    domain = registry.register_domain(spec("live"), by="ann")
    app = open_page("domain_page", name=domain.name)
    choose_server_file(app, "add-live", events)
    press(app, "add-live")
    follow(app, "Nothing was added")
    assert "invalid_data" in said(app)
    assert in_tables(app, "Has a label outside label_range")
    assert registry.domain("live").counts.get("rows_added", 0) == 0


def test_a_path_that_does_not_exist_is_refused_before_anything_runs(registry):
    """A typing mistake costs no run."""
    registry.register_domain(spec("live"), by="ann")
    app = open_page("domain_page", name="live")
    choose_server_file(app, "add-live", "nowhere/events.csv")
    assert "no file nowhere/events.csv" in said(app)
    assert registry.runs() == []


def test_no_file_outside_the_folder_of_the_settings_is_read(registry, settings, tmp_path, monkeypatch):
    """Neither by its path, nor with .., nor through a link; whether it exists is not said, and the audit log knows."""
    registry.register_domain(spec("live"), by="ann")
    folder = tmp_path / "imports"
    folder.mkdir()
    secret = write_events(tmp_path / "secret.csv")
    (folder / "link.csv").symlink_to(secret)
    (folder / "up").symlink_to(tmp_path)
    (folder / "circle").symlink_to(folder / "circle")
    (tmp_path / "imports-2").mkdir()
    write_events(tmp_path / "imports-2" / "events.csv")
    write_events(folder / "events.csv")
    monkeypatch.setenv("GRAFT_IMPORT_DIR", str(folder))
    app = open_page("domain_page", name="live")
    outside = ("/etc/passwd", str(secret), "../secret.csv", "link.csv", "up/secret.csv", "../imports-2/events.csv")
    for name in (*outside, "/no/such/file", "a\0b"):
        choose_server_file(app, "add-live", name)
        assert "are read from" in said(app), name
    refused = {entry["details"]["path"] for entry in registry.audit() if entry["what"] == "refuse_path"}
    assert set(outside) < refused
    for name in ("events.csv", str(folder / "events.csv")):
        choose_server_file(app, "add-live", name)
        assert not app.error, name
    monkeypatch.setenv("GRAFT_IMPORT_DIR", "")
    app = open_page("domain_page", name="live")
    assert [control.key for control in app.segmented_control if str(control.key).endswith("-where")] == []
    assert [field.key for field in app.text_input if "-path-" in str(field.key)] == []


@pytest.mark.slow
def test_an_uploaded_file_is_added_once_and_its_copy_goes(registry, settings, tmp_path):
    """Valid rows are in the data folder; a second copy would only fill the disk."""
    registry.register_domain(spec("live"), by="ann")
    app = open_page("domain_page", name="live")
    uploader = next(part for part in app.file_uploader if str(part.key).startswith("add-live-interactions"))
    uploader.set_value([("events.csv", write_events(tmp_path / "events.csv").read_bytes(), "text/csv")]).run()
    press(app, "add-live")
    follow(app, "All rows are valid")
    assert registry.domain("live").counts["rows_added"] == 100
    assert [path for path in (settings.home / "uploads").rglob("*") if path.is_file()] == []
