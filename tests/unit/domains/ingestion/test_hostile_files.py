"""Files as they arrive from other programs, broken downloads and ill will: each is read right, or refused in one line.

A table: what the file holds; the rows that it adds, the reasons of those set aside and the ids that result, or what the
refusal says; and what the team is warned of.
"""

import bz2
import datetime as dt
import decimal
import gzip
import lzma
import os
import re
import socket
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from domains.errors import InvalidData
from domains.ingestion.text_records import LONGEST_FIELD
from tests.unit.domains.ingestion.fakes import NO_MORE, NOON_US, a_spec

T = NOON_US // 1_000_000
HEADER = "user_id,item_id,ts,click\n"
ROWS = "".join(f"u{k},i{k},{T + k},{k % 2}\n" for k in range(4))
GOOD = {"user_id": list("abcd"), "item_id": list("1234"), "ts": [T + k for k in range(4)], "click": [1, 0, 1, 0]}
PLAIN = a_spec(interactions=NO_MORE, items=None, users=None)
MOST_SECONDS = 30


@dataclass(frozen=True)
class Case:
    """What one file holds, and what must come of it."""

    name: str
    content: str | bytes | Callable[[Path], Path]
    adds: int | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    users: list[str] | None = None
    times: list[int] | None = None
    says: str = ""
    warns: str = ""
    file: str = "events.csv"

    def __str__(self) -> str:
        return self.name

    def write(self, folder: Path) -> Path:
        """The file, in a folder of its own."""
        if callable(self.content):
            return self.content(folder)
        path = folder / self.file
        path.write_bytes(self.content if isinstance(self.content, bytes) else self.content.encode())
        return path


def rows(*cells: str, rest: str = f"1,{T},1") -> str:
    """A file with one row for each user."""
    return HEADER + "".join(f"{cell},{rest}\n" for cell in cells)


def times(*texts: str) -> str:
    """A file with one row for each time."""
    return HEADER + "".join(f"u{at},1,{text},{at % 2}\n" for at, text in enumerate(texts))


def parquet(*, file: str = "events.parquet", **columns: object) -> Callable[[Path], Path]:
    """A Parquet file of good rows with some of its columns replaced or added."""

    def write(folder: Path) -> Path:
        pq.write_table(pa.table({**GOOD, **columns}), folder / file)
        return folder / file

    return write


def damaged(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    """A Parquet file whose bytes were changed."""

    def write(folder: Path) -> Path:
        path = parquet()(folder)
        path.write_bytes(change(path.read_bytes()))
        return path

    return write


def float_column(kind: object, *values: float) -> pa.Array:
    return pa.array(np.array(values, kind))


def not_utf8() -> pa.Array:
    """Text of which one value is no UTF-8."""
    offsets = np.array([0, 2, 3, 4, 5], np.int32)
    return pa.Array.from_buffers(pa.string(), 4, [None, pa.py_buffer(offsets), pa.py_buffer(b"\xff\xfebcd")])


def named_twice(*names: str) -> Callable[[Path], Path]:
    """A Parquet file with one column more, under these names."""

    def write(folder: Path) -> Path:
        columns = [pa.array(list("wxyz")), *(pa.array(values) for values in GOOD.values())]
        pq.write_table(pa.Table.from_arrays(columns, names=list(names)), folder / "events.parquet")
        return folder / "events.parquet"

    return write


def as_int96(folder: Path) -> Path:
    at = pa.array([dt.datetime(2024, 1, 1, 12, k) for k in range(4)], pa.timestamp("ns"))
    pq.write_table(pa.table({**GOOD, "ts": at}), folder / "e.parquet", use_deprecated_int96_timestamps=True)
    return folder / "e.parquet"


def with_empty_group(folder: Path) -> Path:
    table = pa.table(GOOD)
    with pq.ParquetWriter(folder / "e.parquet", table.schema) as writer:
        for part in (table.slice(0, 2), table.slice(0, 0), table.slice(2)):
            writer.write_table(part)
    return folder / "e.parquet"


def zipped(*names: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "e.zip", "w") as archive:
            for name in names:
                archive.writestr(name, HEADER + ROWS)
        return folder / "e.zip"

    return write


def written_by(write: Callable[[pa.Table, str], object], file: str) -> Callable[[Path], Path]:
    """A file that another library writes."""

    def made(folder: Path) -> Path:
        write(pa.table(GOOD), str(folder / file))
        return folder / file

    return made


def special(make: Callable[[Path], object]) -> Callable[[Path], Path]:
    """What ``make`` puts at the path."""

    def made(folder: Path) -> Path:
        make(folder / "e.csv")
        return folder / "e.csv"

    return made


def a_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the address of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    finally:
        os.chdir(here)


def linked(path: Path) -> None:
    (path.parent / "real.csv").write_text(HEADER + ROWS)
    path.symlink_to(path.parent / "real.csv")


TEXT = [
    Case("byte order mark", b"\xef\xbb\xbf" + (HEADER + ROWS).encode(), adds=4),
    Case("byte order mark before quotes", '\ufeff"user_id","item_id","ts","click"\n' + ROWS, adds=4),
    Case("mixed line ends", HEADER.replace("\n", "\r\n") + ROWS.replace("\n", "\r\n", 2), adds=4),
    Case("a lone carriage return", rows("a", "b").replace("1\nb", "1\rb"), says="none of its 1 rows"),
    Case("NUL in an id", rows("a\0b", "b"), adds=1, reasons={"unusable_user": 1}),
    Case("a quote that stays open", rows('"a', "b", "c"), adds=2, reasons={"broken_quote": 1}),
    Case("20,000 quotes that stay open", rows(*(f'"a{k}' for k in range(20_000))), says="quote that does not close"),
    Case("a backslash before a quote", rows('"a\\"b"', "b"), adds=1, reasons={"broken_quote": 1}),
    Case("a doubled quote", rows('"a""b"'), adds=1, users=['a"b']),
    Case("a line break in a cell", HEADER.replace("\n", ",x\n") + f'"a",1,{T},1,"1\n2\n3"\nb,1,x,1,1\n', adds=1,
         reasons={"bad_time": 1}),
    Case("line breaks in the rows that a refusal shows", HEADER + f'"a\nb",1,{T},7\n', says="line 2: .a b.,1"),
    Case("words in place of most times", times(f"{T}", "never", "unknown", "-"), adds=1, reasons={"bad_time": 3}),
    Case("a cell of 200,000 characters", HEADER.replace("\n", ",x\n") + f'"a",1,{T},1,"{"w" * 200_000}"\n', adds=1),
    Case("a long cell of many lines", HEADER.replace("\n", ",x\n") + f"b,1,{T},1,1\na,1,{T},1,"
         + '"' + "w\n" * LONGEST_FIELD + '",1\n', adds=1,
         reasons={"broken_quote": 2, "wrong_column_count": LONGEST_FIELD - 1}),
    Case("cells of 5,000 characters", HEADER.replace("\n", ",x\n") + f"a,1,{T},1,{'z' * 5000}\n" * 3, adds=1),
    Case("20,000 columns", HEADER.replace("\n", "") + "".join(f",c{k}" for k in range(20_000)) + "\n"
         + f"a,1,{T},1{',5' * 20_000}\n", adds=1),
    Case("20,000 columns, none of them the label", "user_id,item_id,ts" + "".join(f",c{k}" for k in range(20_000)),
         says="no column 'click' .* and 19,983 more$"),
    Case("ragged rows", HEADER + f"a,1,{T},1\nb,2,{T}\nc,3,{T},1,5\n,,,\n,\nd\n", adds=1,
         reasons={"missing_user": 1, "wrong_column_count": 4}),
    Case("a count below the rows", HEADER + ROWS + "(4 rows)\n", adds=4, reasons={"wrong_column_count": 1}),
    Case("blank lines", "\n\n" + HEADER + "\n\n" + ROWS.replace("\n", "\n\n"), adds=4),
    Case("a column named twice", "user_id,item_id,ts,click,ts\n", says="'ts' comes twice"),
    Case("columns that differ in case", "USER_ID," + rows("a,b"), adds=1, users=["b"]),
    Case("the header in capitals", HEADER.upper() + ROWS, says="did you mean 'USER_ID'"),
    Case("spaces in the header", " user_id , item_id,ts\u00a0,click \n" + ROWS, adds=4),
    Case("columns without a name", HEADER.replace("\n", ",,\n") + ROWS.replace("\n", ",,\n"), adds=4),
    Case("no header", ROWS, says="no column 'user_id'"),
    Case("a header and nothing", HEADER, says="a header and no rows"),
    Case("nothing", "", says="is empty"),
    Case("one column", "user_id\na\n", says="no column 'item_id' .* divided by"),
    Case("semicolons", (HEADER + ROWS).replace(",", ";"), adds=4),
    Case("bars", (HEADER + ROWS).replace(",", "|"), adds=4),
    Case("tabs in a .csv", (HEADER + ROWS).replace(",", "\t"), adds=4),
    Case("commas in a .tsv", HEADER + ROWS, adds=4, file="events.tsv"),
    Case("spaces between cells", (HEADER + ROWS).replace(",", " "), says="divided by a comma, a semicolon, a tab"),
    Case("other delimiters in a quoted name", HEADER.replace("\n", ',"a;b;c;d;e;f"\n') + ROWS.replace("\n", ",1\n"),
         adds=4),
    Case("single quotes", HEADER + f"'a','1','{T}','1'\n", says="time that cannot be read"),
    Case("decimal commas", HEADER.replace(",", ";") + f"a;1;{T};1,0\n", says="column 'click'.*no number"),
    Case("Latin-1", rows("é", "b").encode("latin-1"), adds=1, reasons={"bad_encoding": 1}),
    Case("UTF-16", (HEADER + ROWS).encode("utf-16-le"), says="save it as UTF-8"),
    Case("UTF-32", (HEADER + ROWS).encode("utf-32"), says="save it as UTF-8"),
    Case("an overlong byte", HEADER.encode() + b"\xc0\xaf,1,%d,1\nb,1,%d,1\n" % (T, T), adds=1,
         reasons={"bad_encoding": 1}),
]  # fmt: skip
IDS = [
    Case("spaces around ids", rows("a ", "\u3000a", "a\u00a0", "\ta"), adds=1, users=["a"]),
    Case("spaces around ids in quotes", rows('"a "', '"a\n"', '"\u2003a"'), adds=1, users=["a"]),
    Case("spaces around ids in Parquet", parquet(user_id=["a ", "\u3000a", "a\u00a0", "\x0ba"]), adds=4, users=["a"]),
    Case("zeros before ids", rows("007", "7", "08"), adds=3, users=["007", "08", "7"], warns="1 ids both with zeros"),
    Case("two Unicode forms", rows("\u00e9", "e\u0301", "f"), adds=3, warns="1 ids that differ only in their Unicode"),
    Case("words for nothing", rows("None", "NULL", "nan", "x"), adds=1, reasons={"missing_user": 3}),
    Case("whole numbers of any size", rows("18446744073709551615", "9" * 30), adds=2,
         users=["18446744073709551615", "9" * 30]),
    Case("unsigned 64-bit ids", parquet(user_id=pa.array([2**64 - 1, 2**63, 5, 6], pa.uint64())), adds=4,
         users=["18446744073709551615", "5", "6", "9223372036854775808"]),
    Case("floats beyond their precision", parquet(user_id=float_column(np.float64, 2**53 + 2, 1e18, 5, 6)), adds=4,
         warns="2 ids above 9,007,199,254,740,992"),
    Case("short floats beyond theirs", parquet(user_id=float_column(np.float32, 123456789, 4, 5, 6)), adds=4,
         warns="1 ids above 16,777,216"),
    Case("decimals wider than any number", parquet(user_id=pa.array(
        [decimal.Decimal(10) ** 50 + k for k in range(4)], pa.decimal256(60, 0))), adds=4, warns="4 ids above"),
    Case("half floats", parquet(user_id=float_column(np.float16, 1, 2, 2048, 65504)), adds=4,
         users=["1", "2", "2048", "65504"]),
    Case("only nulls", parquet(user_id=pa.nulls(4)), says="column 'user_id'.*names no user"),
    Case("a map", parquet(user_id=pa.array([[("a", 1)]] * 4, pa.map_(pa.string(), pa.int64()))), says="type MAP"),
    Case("bytes of one length", parquet(user_id=pa.array([b"aa"] * 4, pa.binary(2))), says="'user_id' .* is bytes"),
    Case("a dictionary", parquet(user_id=pa.array(list("abab")).dictionary_encode()), adds=4, users=["a", "b"]),
    Case("long strings and views", parquet(user_id=pa.array(list("abcd"), pa.large_string())), adds=4),
]  # fmt: skip
TIMES = [
    Case("days", times("2024-01-01", "2023-12-31"), adds=2, times=[NOON_US - 43_200_000_000 - 86_400_000_000,
                                                                  NOON_US - 43_200_000_000]),
    Case("zones", times("2024-01-01T12:00:00Z", "2024-01-01T14:00:00+02:00", "2024-01-01 13:00:00 Europe/Berlin"),
         adds=3, times=[NOON_US]),
    Case("the hour that comes twice", times("2023-10-29T02:30:00+02:00", "2023-10-29T02:30:00+01:00"), adds=2,
         times=[1_698_539_400_000_000, 1_698_543_000_000_000]),
    Case("two-digit years", times("24-01-01", "23/12/31"), says="before 1990"),
    Case("dates as numbers", times("20231224", "20231225"), says="look like dates such as 20251124"),
    Case("dates with times as numbers", times("20231224100000", "20231225100000"), says="look like dates"),
    Case("American dates", times("12/24/2023 10:00"), says="column 'ts'.*time that cannot be read"),
    Case("grouped digits", HEADER.replace(",", ";") + "a;1;1,704,110,400;1\n", says="time that cannot be read"),
    Case("numbers with exponents", times("1.7041104e9", "1.7041104E+09", f"{T}.0"), adds=3, times=[NOON_US]),
    Case("four units in one file", times(f"{T}000", f"{T}", f"{T}000000", f"{T}000000000"), adds=1, times=[NOON_US],
         reasons={"absurd_time": 1, "future_time": 1, "time_in_nanoseconds": 1}),
    Case("text among numbers", times(f"{T}", f"{T}", "2024-01-01"), adds=2, reasons={"bad_time": 1}),
    Case("negative and none", times("-1704110400", "0", f"{T}"), adds=1, reasons={"absurd_time": 2}),
    Case("endless", times("inf", "1e400", f"{T}", f"{T}", f"{T}"), adds=3, reasons={"bad_time": 2}),
    Case("words", times("infinity", "epoch", "today", "2024-01-01T12:00:00"), adds=1,
         reasons={"absurd_time": 1, "bad_time": 2}),
    Case("96-bit times", as_int96, adds=4),
    Case("dates in Parquet", parquet(ts=[dt.date(2024, 1, 1)] * 4), adds=4, times=[NOON_US - 43_200_000_000]),
    Case("decimal times", parquet(ts=pa.array([decimal.Decimal(T)] * 4, pa.decimal128(20, 3))), adds=4,
         times=[NOON_US]),
    Case("durations", parquet(ts=pa.array([1] * 4, pa.duration("s"))), says="before 1990"),
    Case("times of a day", parquet(ts=pa.array([1] * 4, pa.time32("s"))), says="time that cannot be read"),
]  # fmt: skip
PARQUET = [
    Case("no rows", written_by(lambda table, path: pq.write_table(table.slice(0, 0), path), "e.parquet"),
         says="no rows"),
    Case("an empty row group", with_empty_group, adds=4),
    Case("only null labels", parquet(click=pa.nulls(4)), says="column 'click'.*no label"),
    Case("yes and no", parquet(click=[True, False, True, None]), adds=3, reasons={"missing_label": 1}),
    Case("nested columns beside", parquet(x=[[1], [2], [], None], y=[{"user_id": 1}] * 4), adds=4),
    Case("names that are used inside", parquet(_line=[1] * 4, _fault=["x"] * 4, line=[7] * 4, reason=["q"] * 4,
                                               click=[1, 0, 5, 7]), adds=2, reasons={"label_out_of_range": 2}),
    Case("the name of row numbers", parquet(file_row_number=[5] * 4), says="column 'file_row_number', a name that"),
    Case("a column twice", named_twice("user_id", *GOOD), says="'user_id' .* comes twice"),
    Case("a column in two cases", named_twice("USER_ID", *GOOD), says="'user_id' .* only in case"),
    Case("an unneeded column twice", named_twice("x", "user_id", "item_id", "ts", "click"), adds=4),
    Case("ids that are no UTF-8", parquet(user_id=not_utf8()), says="cannot be read: .*not valid UTF8"),
    Case("other text that is no UTF-8 in a bad row", parquet(x=not_utf8(), click=[1, 0, 7, 8]), says="not valid UTF8"),
    Case("text under the name of Parquet", HEADER + ROWS, says="no Parquet file", file="events.parquet"),
    Case("Parquet under the name of text", parquet(file="events.csv"), adds=4),
    Case("the last bytes missing", damaged(lambda content: content[:-10]), says="truncated or no Parquet"),
    Case("a footer longer than the file", damaged(lambda content: content[:-8] + b"\xff\xff\xff\x7fPAR1"),
         says="truncated or no Parquet"),
    Case("a page of noise", damaged(lambda content: content[:10] + b"\xaa" * 30 + content[40:]), says="cannot be read"),
]  # fmt: skip
FORMATS = [
    Case("gzip under any name", gzip.compress((HEADER + ROWS).encode()), adds=4),
    Case("gzip in two members", gzip.compress((HEADER + ROWS).encode()) + gzip.compress(b"z,1,1704110400,1\n"), adds=5),
    Case("gzip with zeros behind", gzip.compress((HEADER + ROWS).encode()) + b"\0" * 50, adds=4),
    Case("gzip with noise behind", gzip.compress((HEADER + ROWS).encode()) + b"noise", says="truncated or damaged"),
    Case("gzip of another sum", gzip.compress((HEADER + ROWS).encode())[:-8] + b"\0" * 8, says="truncated or damaged"),
    Case("gzip of nothing", gzip.compress(b""), says="no header and no rows"),
    Case("gzip in gzip", gzip.compress(gzip.compress((HEADER + ROWS).encode())), says="gzip once more"),
    Case("Parquet in gzip", lambda folder: Case("", gzip.compress(parquet()(folder).read_bytes())).write(folder),
         says="Parquet inside gzip"),
    Case("a zip archive", zipped("e.csv"), says="is a zip archive"),
    Case("a zip archive of two", zipped("e.csv", "f.csv"), says="is a zip archive"),
    Case("a zip archive with a way out", zipped("../../e.csv"), says="is a zip archive"),
    Case("zstd", pa.compress((HEADER + ROWS).encode(), "zstd", asbytes=True), says="compressed with zstd"),
    Case("bzip2", bz2.compress((HEADER + ROWS).encode()), says="compressed with bzip2"),
    Case("xz", lzma.compress((HEADER + ROWS).encode()), says="compressed with xz"),
    Case("JSON", '[\n {"user_id": "a"}]', says="is JSON"),
    Case("JSON lines", '{"user_id": "a"}\n{"user_id": "b"}\n', says="is JSON"),
    Case("brackets in a header", "[x],user_id,item_id,ts,click\n" + ROWS.replace("u", "1,u"), adds=4),
    Case("a web page", "<!DOCTYPE html><html><body>moved</body></html>", says="page of HTML"),
    Case("ORC", written_by(pyarrow.orc.write_table, "e.orc"), says="an ORC file"),
    Case("Feather", written_by(pyarrow.feather.write_feather, "e.feather"), says="an Arrow file"),
    Case("a link", special(linked), adds=4),
    Case("a link to nothing", special(lambda path: path.symlink_to("nowhere")), says="No such file"),
    Case("a link to itself", special(lambda path: path.symlink_to(path)), says="symbolic links"),
    Case("a pipe", special(os.mkfifo), says="a pipe or a device"),
    Case("a socket", special(a_socket), says="a pipe or a device"),
    Case("a folder", special(Path.mkdir), says="is a folder"),
    Case("a device", lambda _: Path("/dev/zero"), says="a pipe or a device"),
    Case("nothing there", special(lambda _: None), says="No such file"),
    Case("a name that is too long", lambda folder: folder / ("x" * 300), says="too long"),
    Case("a name of bytes", HEADER + f"a,1,{T},1\nb,1,x,1\n", adds=1, reasons={"bad_time": 1}, file="\udcff\n.csv"),
    Case("a name of bytes of a bad file", times("x"), says=r"^\\xff\\n\.csv: none of", file="\udcff\n.csv"),
]  # fmt: skip


@pytest.mark.parametrize("case", [*TEXT, *IDS, *TIMES, *PARQUET, *FORMATS], ids=str)
def test_a_file_is_read_right_or_refused_in_one_line(desk, case):
    """In bounded time; what is refused leaves nothing behind."""
    path = case.write(desk.folder)
    began = time.monotonic()
    if case.says:
        with pytest.raises(InvalidData) as refused:
            desk.ingest(path, spec=PLAIN)
        message = refused.value.message
        assert re.search(case.says, message), message
        assert message.isprintable()
        assert refused.value.details["file"] in message
        assert len(message) < 3_000
        assert not desk.data()
        return
    report = desk.ingest(path, spec=PLAIN)
    assert time.monotonic() - began < MOST_SECONDS
    assert (report.rows_added, report.reasons) == (case.adds, case.reasons)
    assert sum(report.reasons.values()) == len(desk.data().quarantine(limit=1_000_000))
    found = desk.data().interactions()
    for expected, column in ((case.users, "user_id"), (case.times, "time_us")):
        if expected is not None:
            assert sorted(set(found[column].to_pylist())) == expected
    assert re.search(case.warns, "\n".join(report.warnings)), report.warnings
