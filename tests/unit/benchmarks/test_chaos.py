"""The rehearsal of faults measures gaps, counts its rows and fails by its status."""

from benchmarks.chaos import __main__ as chaos
from benchmarks.chaos.load import Log


def test_a_gap_reaches_from_the_kill_to_the_next_answer():
    """Answers before the kill shorten no gap, and none at all is a gap to the end."""
    log = Log(answers=[(1.0, 0.1), (9.5, 0.1), (12.0, 0.1)])
    assert log.gap_s(9.0, 13.0) == 2.5
    assert log.gap_s(13.0, 15.0) == 2.0


def test_every_row_has_a_name_of_its_own_and_all_fit_into_fifteen_minutes():
    """Names choose rows; what is left of the time is for preparing and settling."""
    assert len({row.name for row in chaos.ROWS}) == len(chaos.ROWS)
    assert sum(row.seconds for row in chaos.ROWS) < 12 * 60


def test_the_table_says_which_goal_is_not_reached():
    """One line a row."""
    rows = [{"row": "kills", "goal": "0 lost", "measured": "2 lost", "ok": False}]
    assert chaos.table(rows).splitlines()[2:] == ["| kills | 0 lost | 2 lost | NO |"]


def test_a_gap_that_opens_some_time_after_a_kill_counts():
    """The workers of a server that was killed answer on for a while; what follows is its gap nevertheless."""
    log = Log(answers=[(float(at), 0.1) for at in (1, 2, 3, 4, 10, 11)])
    assert log.gap_after(1.5) == 6.0
    assert log.gap_after(1.5, within_s=2.0) == 1.0
