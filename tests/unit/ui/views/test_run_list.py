"""The list of runs."""

import pytest

from tests.unit.ui.fake_browser import open_page, said


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
