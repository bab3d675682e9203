"""Broken files are refused whole with the reason; a kill at any moment leaves the old state and a clean re-run."""

import gzip
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from domains.errors import InvalidData
from domains.events.domain_data import DomainData
from domains.events.histories import Histories
from domains.events.vocabulary import Vocabulary
from domains.ingestion.ingest import ingest
from domains.spec import DomainSpec

ROOT = Path(__file__).parents[2]
YAML = """
name: live-rooms
role: target
task: ctr
owner: team-live
interactions: {user: user_id, item: item_id, time: ts, label: click}
items: {id: item_id, features: {price: number}}
"""
SPEC = DomainSpec.from_yaml(YAML)
HEADER = "user_id,item_id,ts,click\n"
NOW_US = 1_710_000_000_000_000


def events(count, first=0):
    rows = (f"u{at % 37},i{at % 11},{1_704_110_400 + at},{at % 2}\n" for at in range(first, first + count))
    return HEADER + "".join(rows)


def run(folder, *paths, **more):
    return ingest(SPEC, number=1, interactions=list(paths), data_dir=folder / "data", now_us=NOW_US, **more)


def refusal(folder, content, name="events.csv"):
    """The refusal of a file on top of a domain that has data, which must stay as it is."""
    good = folder / "good.csv"
    good.write_text(events(50))
    run(folder, good)
    before = DomainData(folder / "data", SPEC.name).interactions()
    users = len(DomainData(folder / "data", SPEC.name).user_vocabulary)
    bad = folder / name
    bad.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidData) as caught:
        run(folder, good, bad)
    after = DomainData(folder / "data", SPEC.name)
    assert after.interactions().equals(before)
    assert len(after.user_vocabulary) == users
    assert not (after.folder.root / "scratch").exists()
    assert caught.value.details["file"] == name
    assert str(folder) not in caught.value.message
    return caught.value


def parquet_bytes(folder, **columns):
    frame = pd.DataFrame(
        {"user_id": ["a", "b"], "item_id": ["x", "y"], "ts": [1_704_110_400] * 2, "click": [0, 1], **columns}
    )
    frame.to_parquet(folder / "made.parquet")
    return (folder / "made.parquet").read_bytes()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (HEADER, "a header and no rows"),
        ("\n\n\n", "no header and no rows"),
        (events(9).encode("utf-16"), "save it as UTF-8"),
        (os.urandom(64) + b"\0" * 64, "UTF-8|no text"),
        ("user_id,item_id,ts,ts\na,b,1,1\n", "'ts' comes twice"),
        ('user_id,"item_id\n', "quote in its header"),
        (events(9).replace("\n", "\r"), "carriage return"),
        (HEADER.replace("click", "clicked") + "a,b,1704110400,1\n", "no column 'click'.*did you mean 'clicked'"),
        (gzip.compress(events(5000).encode())[:-4000], "truncated or damaged"),
        (b"\x1f\x8b" + b"nothing like gzip", "truncated or damaged"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, content, says):
    """Empty, truncated, in another encoding or with a broken header: nothing is added, and the message says why."""
    fault = refusal(tmp_path, content)
    assert re.search(says, fault.message), fault.message


@pytest.mark.parametrize("cut", [4, 100, -9, -1])
def test_a_truncated_parquet_file_is_refused(tmp_path, cut):
    """A copy that was cut off anywhere has no footer."""
    fault = refusal(tmp_path, parquet_bytes(tmp_path)[:cut], name="events.parquet")
    assert "truncated or no Parquet file" in fault.message


def test_a_damaged_parquet_page_is_refused(tmp_path):
    """A file with a good footer and a broken page fails while it is read, in words and not as an engine's error."""
    content = bytearray(parquet_bytes(tmp_path))
    content[4:60] = b"\xff" * 56
    fault = refusal(tmp_path, bytes(content), name="events.parquet")
    assert "cannot be read" in fault.message


@pytest.mark.parametrize(
    ("rows", "column", "reason"),
    [
        ("a,b,1704110400,often\nc,d,1704110401,never\n", "click", "bad_label"),
        ("a,b,1704110400,3\nc,d,1704110401,4\n", "click", "label_out_of_range"),
        ("a,b,soon,1\nc,d,later,1\n", "ts", "bad_time"),
        (",b,1704110400,1\n,d,1704110401,1\n", "user_id", "missing_user"),
        ("a,,1704110400,1\nc,,1704110401,1\n", "item_id", "missing_item"),
        ("a,b,9704110400,1\nc,d,9704110401,1\n", "ts", "future_time"),
    ],
)
def test_a_column_of_the_wrong_type_refuses_the_file(tmp_path, rows, column, reason):
    """Where no row is usable the file is refused whole, naming the column and the first bad lines."""
    fault = refusal(tmp_path, HEADER + rows)
    assert fault.details["column"] == column
    assert fault.details["reasons"] == {reason: 2}
    assert [bad["line"] for bad in fault.details["first_bad"]] == [2, 3]
    assert fault.details["first_bad"][0]["row"] == rows.split("\n")[0]
    assert "line 2" in fault.message
    assert "column" in fault.message


def test_a_parquet_column_of_the_wrong_type_refuses_the_file(tmp_path):
    """Typed files are checked by the same rules, and the bad rows are shown."""
    fault = refusal(tmp_path, parquet_bytes(tmp_path, click=["yes", "no"]), name="events.parquet")
    assert fault.details["column"] == "click"
    assert '"click": "yes"' in fault.details["first_bad"][0]["row"]


def test_an_items_file_of_no_numbers_is_refused(tmp_path):
    """A feature that is declared a number and never is one means the wrong column was declared."""
    (tmp_path / "events.csv").write_text(events(20))
    (tmp_path / "items.csv").write_text("item_id,price\n" + "".join(f"i{at},cheap\n" for at in range(11)))
    with pytest.raises(
        InvalidData, match=r"items.csv: column 'price' is declared a number and holds none; first: line 2"
    ):
        run(tmp_path, tmp_path / "events.csv", items=tmp_path / "items.csv")
    assert not DomainData(tmp_path / "data", SPEC.name)


def test_an_items_file_that_lacks_every_item_refuses_the_events(tmp_path):
    """The wrong items file: no event is usable, and the message says that it is the items."""
    (tmp_path / "events.csv").write_text(events(20))
    (tmp_path / "items.csv").write_text("item_id,price\nother,1\n")
    with pytest.raises(InvalidData, match="names an item that the items file lacks"):
        run(tmp_path, tmp_path / "events.csv", items=tmp_path / "items.csv")


def test_an_items_file_that_lacks_half_the_items_is_reported(tmp_path):
    """Half of the events are added, the other half is kept as quarantined, and the share is said."""
    rows = "".join(f"u,i{at},{1704110400 + at},{at % 2}\n" for at in range(100))
    (tmp_path / "events.csv").write_text(HEADER + rows)
    (tmp_path / "items.csv").write_text("item_id,price\n" + "".join(f"i{at},1\n" for at in range(50)))
    report = run(tmp_path, tmp_path / "events.csv", items=tmp_path / "items.csv")
    assert (report.rows_added, report.reasons) == (50, {"unknown_item": 50})
    assert report.warnings == [
        "the items file lacks 50 of the 100 items that events name (50%); their events are quarantined"
    ]


def test_awkward_names_of_files_and_folders_mean_themselves(tmp_path):
    """Brackets, stars, quotes and equals signs in a path are no patterns and no columns."""
    odd = tmp_path / "team's [1] *x=y*"
    odd.mkdir()
    (odd / "made.parquet").write_bytes(parquet_bytes(odd, click=[1, 5]))
    (odd / "made.parquet").rename(odd / "events [2]?.parquet")
    (odd / "items [1].csv").write_text("item_id,price\nx,1\ny,2\n")
    for _ in range(2):
        report = run(odd, odd / "events [2]?.parquet", items=odd / "items [1].csv")
        assert report.reasons == {"label_out_of_range": 1}
    assert DomainData(odd / "data", SPEC.name).interactions().num_rows == 1


PROGRAM = """
import os, signal, sys
from pathlib import Path
import domains.ingestion.ingest, domains.events.vocabulary, domains.ingestion.events_writer
from domains.spec import DomainSpec

folder, kind, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def dies(function, *, before):
    seen = []
    def wrapped(*args, **kwargs):
        seen.append(1)
        if before and len(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = function(*args, **kwargs)
        if not before and len(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer
    return wrapped

progress = lambda share, step: None
if kind == "step":
    progress = dies(progress, before=True)
if kind.startswith("names"):
    domains.events.vocabulary.point_at = dies(domains.events.vocabulary.point_at, before=kind.endswith("before"))
if kind.startswith("events"):
    writer = domains.ingestion.events_writer
    writer.pq.ParquetWriter = dies(writer.pq.ParquetWriter, before=False)
if kind.startswith("pointer"):
    domains.ingestion.ingest.point_at = dies(domains.ingestion.ingest.point_at, before=kind.endswith("before"))
if kind == "swap":
    os.replace = dies(os.replace, before=True)
domains.ingestion.ingest.ingest(
    DomainSpec.from_yaml((folder / "spec.yaml").read_text()), number=1,
    interactions=[folder / "second.csv"], items=folder / "items.csv", data_dir=folder / "data",
    now_us=int(sys.argv[4]), on_progress=progress,
)
"""


def prepared(folder):
    """A domain with data, and a second file that is to be added."""
    folder.mkdir()
    (folder / "spec.yaml").write_text(YAML)
    (folder / "first.csv").write_text(events(300))
    (folder / "second.csv").write_text(events(300, first=150) + "u,new,1704110400,7\nfresh,new,1704110999,1\n")
    (folder / "items.csv").write_text("item_id,price\n" + "".join(f"i{at},{at}\n" for at in range(20)) + "new,1\n")
    run(folder, folder / "first.csv")
    return folder


def finish(folder):
    return run(folder, folder / "second.csv", items=folder / "items.csv")


def everything(folder):
    data = DomainData(folder / "data", SPEC.name)
    return {
        "events": data.interactions().to_pylist(),
        "items": data.items().to_pylist() if data.items() is not None else None,
        "quarantine": data.quarantine(),
        "counts": data.counts(),
        "users": data.user_vocabulary.names().to_pylist(),
        "item ids": data.item_vocabulary.names().to_pylist(),
    }


@pytest.mark.parametrize(
    ("kind", "number"),
    [("step", at) for at in range(2, 10)]
    + [("names before", 1), ("names after", 1), ("names before", 2), ("names after", 2), ("events", 1), ("swap", 2)]
    + [("pointer before", 1), ("pointer after", 1)],
)
def test_a_kill_at_any_moment_leaves_the_old_state_and_a_clean_re_run(tmp_path, kind, number):
    """kill -9 at each step, between files and around each pointer: what was there is readable, and the same ingest run
    again ends exactly where an undisturbed one does, vocabularies included."""
    calm, hit = prepared(tmp_path / "calm"), prepared(tmp_path / "hit")
    before = everything(hit)
    died = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(hit), kind, str(number), str(NOW_US)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    finish(calm)
    after = everything(hit)
    if kind == "pointer after":
        assert after == everything(calm)
    else:
        # Vocabularies may have grown: names without events. What is published has not moved.
        assert {key: after[key] for key in ("events", "items", "quarantine", "counts")} == {
            key: before[key] for key in ("events", "items", "quarantine", "counts")
        }
    report = finish(hit)
    assert report.rows_added == (0 if kind == "pointer after" else 151)
    assert everything(hit) == everything(calm)
    folder = DomainData(hit / "data", SPEC.name).folder
    assert sorted(path.name for path in folder.generations.iterdir()) == sorted(
        path.name for path in DomainData(calm / "data", SPEC.name).folder.generations.iterdir()
    )
    assert not (folder.root / "scratch").exists()


def test_two_ingests_of_one_domain_do_not_interleave(tmp_path):
    """Two processes add the same file at once: one adds it, the other waits and finds every row stored."""
    folder = prepared(tmp_path / "both")
    program = PROGRAM + "\nprint('done')"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(folder), "none", "0", str(NOW_US)], cwd=ROOT, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    assert [process.communicate(timeout=120)[0] for process in both] == [b"done\n"] * 2
    assert DomainData(folder / "data", SPEC.name).counts()["events"] == 451
    calm = prepared(tmp_path / "calm")
    finish(calm)
    assert everything(folder) == everything(calm)


def test_domains_ingesting_at_once_share_the_users_without_loss(tmp_path):
    """Several domains append to the one vocabulary of users from processes of their own."""
    program = """
import sys
from pathlib import Path
from domains.ingestion.ingest import ingest
from domains.spec import DomainSpec
folder, name, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
spec = DomainSpec.from_yaml((folder / "spec.yaml").read_text().replace("live-rooms", name))
ingest(spec, number=number, interactions=[folder / f"{name}.csv"], data_dir=folder / "data", now_us=int(sys.argv[4]))
"""
    (tmp_path / "spec.yaml").write_text(YAML)
    names = ["alpha", "beta", "gamma"]
    for at, name in enumerate(names):
        (tmp_path / f"{name}.csv").write_text(events(60 + at).replace("u1", f"{name}-1"))
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), name, str(at + 1), str(NOW_US)], cwd=ROOT)
        for at, name in enumerate(names)
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    users = Vocabulary.load(tmp_path / "data" / "users").names().to_pylist()
    assert len(users) == len(set(users))
    for name in names:
        table = DomainData(tmp_path / "data", name).interactions()
        assert [users[index - 1] for index in table["user"].to_pylist()] == table["user_id"].to_pylist()


def test_readers_never_see_half_an_ingest(tmp_path):
    """While a second file is being added, every read is the old state whole or the new state whole."""
    folder = prepared(tmp_path / "read")
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder), "none", "0", str(NOW_US)], cwd=ROOT)
    seen = set()
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        data = DomainData(folder / "data", SPEC.name)
        seen.add((data.interactions(["item"]).num_rows, data.counts()["events"]))
    assert process.wait(timeout=60) == 0
    seen.add((DomainData(folder / "data", SPEC.name).interactions(["item"]).num_rows, 451))
    assert seen == {(300, 300), (451, 451)}


def test_a_killed_build_of_histories_leaves_the_old_ones(tmp_path):
    """kill -9 while histories are written: what was open stays open, and building again works."""
    folder = prepared(tmp_path / "histories")
    Histories.build(folder / "data", [(SPEC, 1)])
    finish(folder)
    program = """
import os, signal, sys
from pathlib import Path
import domains.events.histories as histories
from domains.spec import DomainSpec
folder, when = Path(sys.argv[1]), sys.argv[2]
stop = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
setattr(histories, when, stop)
histories.Histories.build(folder / "data", [(DomainSpec.from_yaml((folder / "spec.yaml").read_text()), 1)])
"""
    for when in ("_place", "_sort_each_user", "flush_tree", "point_at"):
        died = subprocess.run(
            [sys.executable, "-c", program, str(folder), when], cwd=ROOT, capture_output=True, check=False
        )
        assert died.returncode == -signal.SIGKILL, died.stderr
        assert len(Histories.open(folder / "data").target[SPEC.name]) == 300
    rebuilt = Histories.build(folder / "data", [(SPEC, 1)]).target[SPEC.name]
    assert len(rebuilt) == 451
    backward = 1 + np.flatnonzero(np.diff(rebuilt.time_us) < 0)
    assert np.isin(backward, rebuilt.offsets).all(), "the events of one user are out of time order"
    assert np.all(np.diff(rebuilt.offsets) >= 0)
