"""Registering a domain: by form, by YAML, with files."""

import pytest

from tests.unit.ui.fake_browser import choose_server_file, follow, open_page, press
from tests.unit.ui.fake_domains import spec, write_events


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
    choose_server_file(app, "register", events)
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
