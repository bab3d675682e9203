"""A small file that swells is refused before it has filled the memory."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from domains.errors import InvalidData
from domains.ingestion import bounds
from domains.ingestion.source_files import open_source
from domains.ingestion.text_records import text_records

HEADER = b"u,i,t,y\n"


def read(path) -> int:
    """The number of rows."""
    source = open_source(path)
    return sum(batch.num_rows for batch in text_records(source))


@pytest.mark.parametrize("line", [b"a,1,1764000000,1\n", b"0" * 1000, b'"a",1,1764000000,1\n', b"\n"])
def test_a_gzip_that_swells_is_refused(tmp_path, line):
    """With lines, in one endless line, quoted and blank."""
    path = tmp_path / "bomb.csv.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(HEADER)
        for _ in range(40):
            file.write(line * (1_000_000 // len(line)))
    assert path.stat().st_size < 200_000
    with pytest.raises(InvalidData, match=r"bomb\.csv\.gz: (holds more than|a line is longer)"):
        read(path)


def test_a_gzip_within_the_bounds_is_read_whole(tmp_path, monkeypatch):
    """However often it repeats itself while it is small; and up to the last byte that the ratio allows."""
    path = tmp_path / "fine.csv.gz"
    path.write_bytes(gzip.compress(HEADER + b"a,1,1764000000,1\n" * 50_000))
    assert read(path) == 50_000
    monkeypatch.setattr(bounds, "LARGEST_BYTES", 100_000)
    with pytest.raises(InvalidData, match=r"fine\.csv\.gz: holds more than 100,000 bytes"):
        read(path)


@pytest.mark.parametrize("quote", [b"", b'"'])
def test_a_line_without_an_end_is_refused(tmp_path, monkeypatch, quote):
    """Plain or quoted: what is no table is not gathered in memory."""
    monkeypatch.setattr(bounds, "LONGEST_LINE", 1 << 20)
    path = tmp_path / "long.csv"
    path.write_bytes(HEADER + quote + b"x" * (20 << 20))
    with pytest.raises(InvalidData, match="longer than"):
        read(path)


def test_a_parquet_file_that_swells_is_refused_unread(tmp_path):
    """By what it declares: rows, or bytes."""
    rows = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"u": pa.nulls(40_000_000, pa.string())}), rows, row_group_size=40_000_000)
    with pytest.raises(InvalidData, match=r"40,000,000 rows"):
        open_source(rows)
    content = tmp_path / "bytes.parquet"
    table = pa.table({"u": ["x" * 1_000_000 + str(k) for k in range(40)]})
    pq.write_table(table, content, compression="zstd", use_dictionary=False)
    with pytest.raises(InvalidData, match="holds more than"):
        open_source(content)
    fine = tmp_path / "fine.parquet"
    pq.write_table(pa.table({"u": ["a"] * 500_000, "y": [1.0] * 500_000}), fine)
    assert open_source(fine).columns == ("u", "y")
