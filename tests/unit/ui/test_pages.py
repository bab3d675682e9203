"""Every page: what it shows when there is nothing yet."""

import tomllib

import pytest

from tests.unit.ui.fake_browser import APP, open_page, said


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


def test_pages_show_no_words_that_are_meant_for_readers_of_the_code():
    """Streamlit writes out any text that stands by itself in a page, unless told not to."""
    config = tomllib.loads((APP.parent / ".streamlit" / "config.toml").read_text())
    assert config["runner"]["magicEnabled"] is False
