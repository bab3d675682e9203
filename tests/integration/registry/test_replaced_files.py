"""SQLite's file taken away, or replaced by a backup, under processes that have it open."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from domains.registry import prediction_log
from domains.registry.registry import Registry


def _row(request_id: str) -> dict[str, object]:
    return {"request_id": request_id, "item_id": "i", "action": "click", "domain": "live", "user_id": "u"}


def _kept(file: Path) -> set[str]:
    with sqlite3.connect(file) as connection:
        kept = {name for (name,) in connection.execute("SELECT request_id FROM feedback")}
    connection.close()
    return kept


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


@pytest.fixture
def registry(file: Path) -> Registry:
    registry = Registry(f"sqlite:///{file}")
    registry.migrate()
    return registry


@pytest.mark.parametrize("log_stays", [False, True])
def test_what_is_acknowledged_after_a_restore_is_in_the_restored_file(registry, file, log_stays):
    """The old file is deleted while it is open; its log, left behind, is not played into the new one."""
    registry.log_feedback([_row("before")])
    backup = file.with_name("backup.db")
    with sqlite3.connect(file) as from_, sqlite3.connect(backup) as to:
        from_.backup(to)
    from_.close()
    to.close()
    registry.log_feedback([_row("lost with the old file")])
    identity = registry.identity()
    if not log_stays:
        for ending in ("-wal", "-shm"):
            file.with_name(file.name + ending).unlink(missing_ok=True)
    backup.rename(file)
    assert registry.identity() != identity
    for number in range(20):
        registry.log_feedback([_row(f"after-{number}")])
    assert _kept(file) == {"before", *(f"after-{number}" for number in range(20))}
    registry.close()
    with sqlite3.connect(file) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_a_file_that_is_gone_is_not_made_anew(registry, file):
    """An empty database would take writes that nobody reads again."""
    away = file.with_name("away.db")
    file.rename(away)
    for _ in range(2):
        with pytest.raises(OperationalError):
            registry.log_feedback([_row("nowhere")])
        with pytest.raises(OperationalError):
            registry.generation()
    assert not file.exists()
    away.rename(file)
    assert registry.log_feedback([_row("again")]) == 1
    assert "again" in _kept(file)


def test_a_file_replaced_in_the_middle_of_a_write_takes_the_acknowledgement_along(registry, file, monkeypatch):
    """The caller hears of it and sends the feedback again."""
    backup = file.with_name("backup.db")
    registry.close()
    backup.write_bytes(file.read_bytes())
    advance = prediction_log.advance

    def replaced_meanwhile(*arguments: object, **options: object) -> int:
        done = advance(*arguments, **options)
        if backup.exists():
            backup.rename(file)
        return done

    monkeypatch.setattr(prediction_log, "advance", replaced_meanwhile)
    with pytest.raises(OperationalError, match="replaced"):
        registry.log_feedback([_row("r")])
    assert registry.log_feedback([_row("r")]) == 1
    assert _kept(file) == {"r"}
