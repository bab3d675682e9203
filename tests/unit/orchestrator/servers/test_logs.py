"""Logs are appended to, bounded in size and number, and never in the way of a server."""

import errno
import subprocess
import sys
import time

import pytest

from orchestrator.servers import logs


def test_a_log_holds_what_was_written_by_earlier_starts_and_says_when_each_began(tmp_path):
    """The end of a log is that of the last start."""
    log = tmp_path / "logs" / "ui.log"
    for line in ("first", "second"):
        with logs.open_log(log, "ui") as sink:
            sink.write(f"{line}\n".encode())
    assert "first" in log.read_text()
    assert log.read_text().count("ui starts") == 2
    assert logs.tail(log, 3) == "second"
    logs.open_log(log, "ui").close()
    assert logs.tail(log) == "its log is empty"


def test_a_full_log_moves_aside_under_a_process_that_goes_on_writing_to_it(tmp_path):
    """The room taken has a bound. Gone is what is older than the logs kept, and what falls into the moment of a cut."""
    log = tmp_path / "service.log"
    code = "import time\nfor k in range(3000): print(f'line {k:05d} ' + 'x' * 90, flush=True); time.sleep(0.001)"
    with logs.open_log(log, "service") as sink:
        writer = subprocess.Popen([sys.executable, "-c", code], stdout=sink)
    moved = 0
    while writer.poll() is None or log.stat().st_size > 20_000:
        moved += logs.rotate(log, most_bytes=20_000, kept=3)
        time.sleep(0.002)
    assert moved > 3
    held = [log.with_name(f"service.log.{number}") for number in (3, 2, 1)]
    assert sorted(tmp_path.iterdir()) == sorted([log, *held])
    lines = [line for file in (*held, log) for line in file.read_text().splitlines() if line.startswith("line")]
    numbers = [int(line.split()[1]) for line in lines]
    assert numbers == sorted(set(numbers)), "in order, none twice"
    assert len(numbers) > 0.9 * (3000 - numbers[0])


def test_without_older_logs_the_content_is_dropped(tmp_path):
    """As the setting says."""
    log = tmp_path / "ui.log"
    log.write_text("x" * 100)
    assert logs.rotate(log, most_bytes=10, kept=0)
    assert list(tmp_path.iterdir()) == [log]
    assert log.stat().st_size == 0


def test_a_full_disk_costs_the_log_and_nothing_else(tmp_path, monkeypatch):
    """The copy has no room: the log is cut all the same, which gives room back."""
    log = tmp_path / "ui.log"
    log.write_text("x" * 100)

    def full(*_arguments):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(logs.shutil, "copyfileobj", full)
    assert logs.rotate(log, most_bytes=10, kept=2)
    assert log.stat().st_size == 0
    assert list(tmp_path.iterdir()) == [log]


def test_a_disk_that_takes_no_file_starts_the_server_without_a_log(tmp_path):
    """Nothing can be opened where a folder's name is a file's."""
    (tmp_path / "logs").write_text("")
    assert logs.open_log(tmp_path / "logs" / "ui.log", "ui") is None
    assert "cannot be read" in logs.tail(tmp_path / "logs" / "ui.log")


@pytest.mark.parametrize("size", [0, 10])
def test_a_log_within_its_bound_stays(tmp_path, size):
    """And one that is not there is no fault."""
    log = tmp_path / "ui.log"
    assert not logs.rotate(log, most_bytes=10, kept=2)
    log.write_bytes(b"x" * size)
    assert not logs.rotate(log, most_bytes=10, kept=2)
    assert log.stat().st_size == size
