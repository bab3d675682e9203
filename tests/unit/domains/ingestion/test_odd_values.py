"""Values that programs write and nobody meant: each costs its row or is named, never the file for a wrong reason."""

import decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from domains.errors import InvalidData
from domains.limits import LONGEST_ID, LONGEST_TEXT
from tests.unit.domains.ingestion.fakes import NO_MORE, NOON_US, a_spec

PLAIN = a_spec(interactions=NO_MORE, items=None, users=None)
WITH_ITEMS = a_spec(interactions=NO_MORE, users=None)
NAN, INF = float("nan"), float("inf")
START_S = NOON_US // 1_000_000
GOOD = {
    "user_id": list("abcd"),
    "item_id": list("1234"),
    "ts": [START_S + k for k in range(4)],
    "click": [1, 0, 1, 0],
}


def parquet(desk, **columns):
    path = desk.folder / "odd.parquet"
    pq.write_table(pa.table({**GOOD, **columns}), path)
    return path


def ids(desk, column):
    return sorted(set(desk.data().interactions()[column].to_pylist()))


@pytest.mark.parametrize("floats", [pa.float16(), pa.float32(), pa.float64()])
@pytest.mark.parametrize(
    ("column", "values", "reasons"),
    [
        ("user_id", [1.0, 2.0, NAN, INF], {"missing_user": 2}),
        ("item_id", [1.0, 2.0, NAN, -INF], {"missing_item": 2}),
        ("click", [1.0, NAN, 0.0, None], {"missing_label": 2}),
        ("click", [1.0, NAN, INF, 0.0], {"bad_label": 1, "missing_label": 1}),
    ],
)
def test_not_a_number_costs_its_row(desk, floats, column, values, reasons):
    """Frames write NaN where a value is missing; the rows beside it are good."""
    report = desk.ingest(parquet(desk, **{column: pa.array(values, pa.float64()).cast(floats)}), spec=PLAIN)
    assert (report.rows_added, report.reasons) == (2, reasons)


def test_a_time_that_is_not_a_number_costs_its_row(desk):
    """Seconds as floats, with gaps."""
    times = pa.array([float(START_S), NAN, START_S + 2.0, None], pa.float64())
    assert desk.ingest(parquet(desk, ts=times), spec=PLAIN).reasons == {"missing_time": 2}


def test_a_feature_that_is_not_a_number_is_missing(desk):
    """The item stays, without that value."""
    path = desk.folder / "items.parquet"
    price = pa.array([1.0, NAN, INF, 2.0], pa.float64())
    pq.write_table(pa.table({"item_id": list("1234"), "category": list("aabb"), "price": price}), path)
    assert desk.ingest(parquet(desk), spec=WITH_ITEMS, items=path).rows_added == 4
    assert desk.data().items()["price"].to_pylist() == [1.0, None, None, 2.0]


@pytest.mark.parametrize(
    "values",
    [
        [[1], [2], [3, 4], []],
        [{"x": k} for k in range(4)],
        [b"\xff\x00", b"b", b"c", b"d"],
    ],
)
@pytest.mark.parametrize("column", list(GOOD))
def test_a_column_of_no_plain_values_is_refused_by_name(desk, column, values):
    """A list made text would be an id that nobody can ask for."""
    with pytest.raises(InvalidData, match=f"column '{column}' .* one plain value a row"):
        desk.ingest(parquet(desk, **{column: values}), spec=PLAIN)


def test_one_frame_gives_the_same_ids_from_parquet_and_csv(desk):
    """Whole numbers that became floats are whole numbers again, decimals and dictionaries included."""
    text = f"user_id,item_id,ts,click\n12.0,7.0,{START_S},1\n13,8,{START_S + 1},0\n-0.0,9,{START_S + 2},0\n"
    report = desk.ingest(text, spec=PLAIN)
    assert any("12.0 is read as 12" in line for line in report.warnings)
    assert (ids(desk, "user_id"), ids(desk, "item_id")) == (["0", "12", "13"], ["7", "8", "9"])
    users = pa.array([decimal.Decimal(k) / 100 * 100 for k in (12, 13, 12, 13)], pa.decimal128(10, 2))
    items = pa.array([7.0, 8.0, 7.0, 9.0]).dictionary_encode()
    desk.ingest(parquet(desk, user_id=users, item_id=items), spec=PLAIN)
    assert (ids(desk, "user_id"), ids(desk, "item_id")) == (["0", "12", "13"], ["7", "8", "9"])


def test_ids_of_letters_and_floats_stay_as_they_are_with_a_warning(desk):
    """There 12.0 may be a version, not a number."""
    report = desk.ingest(f"user_id,item_id,ts,click\n12.0,1,{START_S},1\nx,2,{START_S},0\n", spec=PLAIN)
    assert ids(desk, "user_id") == ["12.0", "x"]
    assert any("beside ids that are no numbers" in line for line in report.warnings)


def test_events_find_their_items_when_one_file_wrote_floats(desk):
    """The items file is read by the same rule as the events."""
    items = desk.write("item_id,category,price\n7.0,a,1\n8.0,b,2\n", "items.csv")
    report = desk.ingest(f"user_id,item_id,ts,click\na,7,{START_S},1\nb,8,{START_S},0\n", spec=WITH_ITEMS, items=items)
    assert report.rows_added == 2


def test_ids_that_no_request_can_name_are_set_aside(desk):
    """The limit of ingestion is the limit of requests; the longest id that fits is taken."""
    rows = [("u" * LONGEST_ID, "1"), ("u" * (LONGEST_ID + 1), "1"), ("a", "i" * 5000), ("n\0l", "1"), ("é" * 400, "2")]
    text = "user_id,item_id,ts,click\n" + "".join(f"{user},{item},{START_S},1\n" for user, item in rows)
    report = desk.ingest(text, spec=PLAIN)
    assert (report.rows_added, report.reasons) == (2, {"unusable_item": 1, "unusable_user": 2})
    items = desk.write(f"item_id,category,price\n1,a,1\n2,{'w' * (LONGEST_TEXT + 1)},1\n{'i' * 401},a,1\n", "items.csv")
    report = desk.ingest(f"user_id,item_id,ts,click\nz,2,{START_S},1\n", spec=WITH_ITEMS, items=items)
    assert any("read there as missing" in line for line in report.warnings)
    assert desk.data().items()["category"].to_pylist() == ["a", None]


def test_a_context_value_that_cannot_be_used_is_missing_and_said(desk):
    """As an item's or a user's would be: the event stays, without it."""
    spec = a_spec(
        interactions={"action": None, "context": {"hour": "number", "page": "category"}}, items=None, users=None
    )
    rows = [("3", "home"), ("3,5", "w" * (LONGEST_TEXT + 1)), ("inf", "null"), ("nan", "")]
    text = "user_id,item_id,ts,click,hour,page\n"
    text += "".join(f'u,i,{START_S + at},1,"{hour}",{page}\n' for at, (hour, page) in enumerate(rows))
    report = desk.ingest(text, spec=spec)
    found = desk.data().interactions()
    assert found["hour"].to_pylist() == [3.0, None, None, None]
    assert found["page"].to_pylist() == ["home", None, None, None]
    assert "events.csv: 'hour' is no number in 2 rows, first on line 3: '3,5'; read there as missing" in report.warnings
    assert any("'page' holds over 1,000 characters" in line for line in report.warnings)


def test_nanoseconds_are_named(desk):
    """A future in the year 55,000 says little to whoever wrote nanoseconds."""
    rows = "".join(f"u{k},{k},{(START_S + k) * 10**9},1\n" for k in range(3))
    for unit in ("auto", "s", "us"):
        spec = a_spec(interactions={**NO_MORE, "time_unit": unit}, items=None, users=None)
        with pytest.raises(InvalidData, match="nanoseconds"):
            desk.ingest("user_id,item_id,ts,click\n" + rows, spec=spec)


def test_another_unit_than_the_declared_one_is_named(desk):
    """Milliseconds read as seconds lie in the future, seconds read as milliseconds before 1990: both say why."""
    for unit, factor, words in (("s", 1000, "like milliseconds and are read as seconds"), ("ms", 1, "like seconds")):
        spec = a_spec(interactions={**NO_MORE, "time_unit": unit}, items=None, users=None)
        with pytest.raises(InvalidData, match=words):
            desk.ingest(f"user_id,item_id,ts,click\na,1,{START_S * factor},1\n", spec=spec)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Tokyo"])
def test_typed_times_keep_their_moment(desk, unit, zone):
    """Every resolution of Arrow, with and without a zone."""
    times = pa.array([(START_S + k) * 10**9 for k in range(4)], pa.timestamp("ns")).cast(pa.timestamp(unit))
    desk.ingest(parquet(desk, ts=times.cast(pa.timestamp(unit, zone))), spec=PLAIN)
    assert desk.data().interactions()["time_us"].to_pylist() == [NOON_US + k * 1_000_000 for k in range(4)]


@pytest.mark.parametrize("label", [0, 1])
def test_labels_all_alike_are_said(desk, label):
    """Nothing can be learned from them."""
    report = desk.ingest(parquet(desk, click=[label] * 4), spec=PLAIN)
    assert f"every label is {label}: there is nothing to learn from" in report.warnings


def test_events_at_one_moment_are_said(desk):
    """No split by time can follow."""
    report = desk.ingest(parquet(desk, ts=[START_S] * 4), spec=PLAIN)
    assert any("at one moment" in line for line in report.warnings)
    assert not desk.ingest(parquet(desk), spec=PLAIN).warnings
