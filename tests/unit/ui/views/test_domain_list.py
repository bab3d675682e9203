"""The list of domains, and the shared model above it."""

import pytest

from tests.unit.ui.fake_browser import open_page, press, said


def test_the_list_shows_state_fallback_level_owner_and_counts(full):
    """One look says what answers where."""
    text = said(open_page())
    for expected in ("Challenger", "Shared model", "team-live", "100 events", "20 users, 7 items", "1" * 12):
        assert expected in text


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
