"""The playground."""

import pytest

from domains.events.histories import Histories
from tests.unit.ui.fake_browser import open_page, press, said


@pytest.mark.slow
def test_the_playground_says_in_one_sentence_that_the_service_is_down(full, settings):
    """No stack trace, and what to do about it."""
    Histories.build(settings.data_dir, [(domain.spec, domain.number) for domain in full.domains()])
    app = press(open_page("playground", name="live"), "rank")
    assert len(app.error) == 1
    assert "does not answer" in app.error[0].value
    assert any("curl --silent" in code.value for code in app.code)


@pytest.mark.slow
def test_before_any_training_the_playground_offers_users_without_history(full):
    """Histories are built when training starts; until then an id can be typed."""
    app = open_page("playground", name="live")
    assert len(app.error) == 0
    assert "Graft has no history of this user" in said(app)
