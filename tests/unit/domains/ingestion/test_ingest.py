"""What ingest makes of each kind of row, column and file: added once, a duplicate, quarantined by line, or refused."""

import gzip
from datetime import UTC, datetime

import pandas as pd
import pytest

from domains.errors import InvalidData
from domains.events.histories import Histories
from domains.ingestion import events_writer
from tests.unit.domains.ingestion.fakes import BARE, HEADER, NO_MORE, NOON_US, NOW_US, SPEC, Desk, a_spec, bare


def test_good_rows_come_back_as_written(desk):
    """Ids, times in microseconds UTC, label, action and context of each event, with indices from the vocabularies."""
    report = desk.ingest(HEADER + "ann,tea,2024-01-01T12:00:00Z,1,view,12\nbob,jam,2024-01-01T12:00:01Z,0,cart,\n")
    events = desk.data().interactions()
    assert events.select(["user_id", "item_id", "time_us", "label", "action", "hour"]).to_pylist() == [
        {"user_id": "ann", "item_id": "tea", "time_us": NOON_US, "label": 1.0, "action": "view", "hour": 12.0},
        {"user_id": "bob", "item_id": "jam", "time_us": NOON_US + 10**6, "label": 0.0, "action": "cart", "hour": None},
    ]
    assert (report.rows_read, report.rows_added, report.users, report.items, report.label_mean) == (2, 2, 2, 2, 0.5)
    assert events["item"].to_pylist() == desk.data().item_vocabulary.index(["tea", "jam"]).tolist()
    assert events["user"].to_pylist() == desk.data().user_vocabulary.index(["ann", "bob"]).tolist()
    assert (report.first_us, report.last_us) == (NOON_US, NOON_US + 10**6)


def test_every_bad_row_is_named_by_its_true_line(desk):
    """Blank lines, quoted line breaks and broken rows before it do not shift a row's line, and its text is kept."""
    report = desk.ingest(
        HEADER.encode()
        + b"ann,tea,2024-01-01T12:00:00Z,1,view,1\r\n"
        + b"\r\n"
        + b",tea,2024-01-01T12:00:01Z,1,view,1\n"  # 4
        + b'bob,"a\nb",2024-01-01T12:00:02Z,1,view,1\n'  # 5 and 6: good
        + b"bob,tea,2024-01-01T12:00:03Z,yes,view,1\n"  # 7
        + b"bob,tea\n"  # 8
        + b'"bob,tea,2024-01-01T12:00:04Z,1,view,1\n'  # 9: the quote never closes
        + b"b\xfcb,tea,2024-01-01T12:00:05Z,1,view,1\n"  # 10
        + b"cat,tea,2024-01-01T12:00:06Z,1,view,1"  # 11: good, and no line feed at the end
    )
    assert desk.quarantined() == [
        (4, "missing_user"), (7, "bad_label"), (8, "wrong_column_count"), (9, "broken_quote"), (10, "bad_encoding"),
    ]  # fmt: skip
    bad = desk.data().quarantine()
    assert bad[1] == {
        "file": "events.csv", "line": 7, "reason": "bad_label", "row": "bob,tea,2024-01-01T12:00:03Z,yes,view,1",
    }  # fmt: skip
    assert bad[4]["row"].startswith("b\\xfcb")
    assert report.rows_added == 3
    assert report.rows_read == report.rows_added + report.rows_duplicate + report.rows_quarantined
    assert sum(report.reasons.values()) == report.rows_quarantined == 5


def test_lines_are_true_without_any_quote(desk):
    """The fast way of cutting lines counts blank lines too."""
    desk.ingest(bare("2024-01-01") + "\n\n,i,2024-01-01,1\n" + "u,x\xe9,2024-01-01,1\n\nu,y,2024-01-01,7\n", spec=BARE)
    assert desk.quarantined() == [(5, "missing_user"), (8, "label_out_of_range")]


def test_bad_bytes_without_any_quote_cost_one_row(desk):
    """Latin-1 bytes in one line leave the lines around it as they are."""
    desk.ingest(bare("2024-01-01", "2024-01-02").encode() + b"u,\xe9,2024-01-01,1\nu,z,2024-01-01,1\n", spec=BARE)
    assert desk.quarantined() == [(4, "bad_encoding")]
    assert set(desk.data().interactions()["item_id"].to_pylist()) == {"i0", "i1", "z"}


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        (",tea,2024-01-01,1", "missing_user"),
        ("NULL,tea,2024-01-01,1", "missing_user"),
        ("ann,  ,2024-01-01,1", "missing_item"),
        ("ann,nan,2024-01-01,1", "missing_item"),
        ("ann,tea,,1", "missing_time"),
        ("ann,tea,yesterday,1", "bad_time"),
        ("ann,tea,2024-13-01,1", "bad_time"),
        ("ann,tea,infinity,1", "bad_time"),
        ("ann,tea,1970-01-01,1", "absurd_time"),
        ("ann,tea,0001-01-01,1", "absurd_time"),
        ("ann,tea,2024-02-01,1", "future_time"),
        ("ann,tea,99999-01-01,1", "future_time"),
        ("ann,tea,2024-01-01,", "missing_label"),
        ("ann,tea,2024-01-01,none", "missing_label"),
        ("ann,tea,2024-01-01,often", "bad_label"),
        ("ann,tea,2024-01-01,inf", "bad_label"),
        ("ann,tea,2024-01-01,0.5", "bad_label"),
        ("ann,tea,2024-01-01,2", "label_out_of_range"),
        ("ann,tea,2024-01-01,-1", "label_out_of_range"),
    ],
)
def test_each_rule_has_its_reason(desk, cells, reason):
    """One bad row between two good ones is quarantined for the rule that it breaks."""
    desk.ingest(f"user_id,item_id,ts,click\na,b,2024-01-01,1\n{cells}\nc,d,2024-01-01,0\n", spec=BARE)
    assert desk.quarantined() == [(3, reason)]
    assert desk.data().counts()["events"] == 2


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        ("auto", "2024-01-01T12:00:00Z"),
        ("auto", "2024-01-01 12:00:00"),
        ("iso", "2024-01-01T14:00:00+02:00"),
        ("iso", "2024-01-01T14:00:00.000000+0200"),
        ("iso", "2024-01-01 13:00:00 Europe/Berlin"),
        ("auto", "1704110400"),
        ("auto", "1704110400.0"),
        ("s", "1704110400"),
        ("auto", "1704110400000"),
        ("ms", "1704110400000"),
        ("auto", "1704110400000000"),
        ("us", "1704110400000000"),
    ],
)
def test_one_moment_in_every_spelling(desk, unit, text):
    """Text with or without zone, and seconds, milliseconds or microseconds, are the same microsecond."""
    desk.ingest(bare(text), spec=a_spec(interactions={"action": None, "context": None, "time_unit": unit}))
    assert desk.data().interactions()["time_us"].to_pylist() == [NOON_US]


def test_a_time_without_zone_among_zoned_ones_is_ambiguous(desk):
    """Where most times name a zone, one that names none could be anything."""
    report = desk.ingest(bare("2024-01-01T12:00:00Z", "2024-01-01T12:00:00+01:00", "2024-01-01T12:00:00"), spec=BARE)
    assert desk.quarantined() == [(4, "time_without_zone")]
    assert sorted(desk.data().interactions()["time_us"].to_pylist()) == [NOON_US - 3600 * 10**6, NOON_US]
    assert any("name a zone" in warning for warning in report.warnings)


def test_a_zone_among_times_without_is_converted(desk):
    """Where most times name no zone they are UTC, and the odd one says exactly what it means."""
    report = desk.ingest(bare("2024-01-01T12:00:00", "2024-01-01T12:00:01", "2024-01-01T12:00:00+02:00"), spec=BARE)
    assert desk.quarantined() == []
    assert min(desk.data().interactions()["time_us"].to_pylist()) == NOON_US - 7200 * 10**6
    assert any("read as UTC" in warning for warning in report.warnings)


def test_milliseconds_declared_as_seconds_are_refused(desk):
    """A wrong unit puts every row into the far future, so the whole file is refused."""
    with pytest.raises(InvalidData, match="lies in the future") as caught:
        desk.ingest(
            bare("1704110400000"), spec=a_spec(interactions={"time_unit": "s", "action": None, "context": None})
        )
    assert caught.value.details["column"] == "ts"
    assert not desk.data()


def test_duplicates_are_added_once(desk):
    """Within a file, between files of one ingest, and against what is stored."""
    content = bare("2024-01-01", "2024-01-02")
    report = desk.ingest(content + "u,i0,2024-01-01,1\n", content, spec=BARE)
    assert (report.rows_read, report.rows_added, report.rows_duplicate) == (5, 2, 3)
    more = desk.ingest(content + "u,new,2024-01-03,1\n", spec=BARE, name="next.csv")
    assert (more.rows_added, more.rows_duplicate) == (1, 2)
    assert desk.data().counts()["events"] == 3


def test_a_re_run_adds_nothing(desk):
    """The same ingest twice: the same id, nothing added, and nothing on disk changes."""
    content = bare("2024-01-01", "never", "2024-01-02")
    first = desk.ingest(content, spec=BARE)
    before = desk.data().folder.pointer.read_bytes()
    again = desk.ingest(content, spec=BARE)
    assert again.ingest_id == first.ingest_id
    assert (again.rows_added, again.rows_duplicate, again.rows_quarantined) == (0, 2, 1)
    assert desk.data().folder.pointer.read_bytes() == before
    assert len(list(desk.data().folder.generations.iterdir())) == 1
    assert again.quarantine == first.quarantine
    assert again.quarantine.is_file()
    assert [report.rows_added for report in desk.data().ingests()] == [2]


def test_the_same_content_in_another_file_adds_nothing(desk):
    """Renamed, compressed, as Parquet or with tabs: the events are the ones that are stored."""
    content = bare("2024-01-01", "2024-01-02")
    desk.ingest(content, spec=BARE)
    table = pd.DataFrame(
        {"user_id": ["u", "u"], "item_id": ["i0", "i1"], "ts": pd.to_datetime(["2024-01-01", "2024-01-02"]), "click": 1}
    )
    table.to_parquet(desk.folder / "same.parquet")
    for other in (
        desk.write(content, "renamed.csv"),
        desk.write(gzip.compress(content.encode()), "same.csv.gz"),
        desk.write(content.replace(",", "\t"), "same.tsv"),
        desk.folder / "same.parquet",
    ):
        report = desk.ingest(other, spec=BARE)
        assert (report.rows_added, report.rows_duplicate) == (0, 2), other
    assert desk.data().counts()["events"] == 2


def test_the_same_event_with_another_label_is_a_conflict(desk):
    """The first label stands, in one file and against what is stored; the other row is kept for a person to see."""
    desk.ingest(bare("2024-01-01") + "u,i0,2024-01-01,0\n", spec=BARE)
    assert desk.quarantined() == [(3, "conflicting_label")]
    desk.ingest(bare("2024-01-01", label=0) + "u,other,2024-01-01,0\n", spec=BARE, name="later.csv")
    assert desk.quarantined() == [(2, "conflicting_label"), (3, "conflicting_label")]
    assert sorted(desk.data().interactions()["label"].to_pylist()) == [0.0, 1.0]


def test_files_are_cut_by_day_month_or_year(desk, monkeypatch):
    """Days where each holds enough rows, else months or years: little data is not scattered over many files."""
    desk.ingest(bare("2024-01-01", "2024-01-02"), spec=a_spec(name="few", interactions=NO_MORE), number=3)
    assert [path.parent.name for path in desk.data("few").event_files()] == ["date=2024-01-01"]
    monkeypatch.setattr(events_writer, "FEWEST_ROWS", 1)
    desk.ingest(bare("2024-01-01", "2024-01-01T23:59:59Z", "2024-01-02"), spec=BARE)
    assert [path.parent.name for path in desk.data().event_files()] == ["date=2024-01-01", "date=2024-01-02"]
    longer = a_spec(name="books", interactions=NO_MORE)
    desk.ingest(bare("1991-05-05", "2023-05-05"), spec=longer, number=2)
    assert [path.parent.name for path in desk.data("books").event_files()] == ["date=1991-01-01", "date=2023-01-01"]


def test_data_without_time(desk):
    """Source events stand before all target events, so that a target row sees the whole source history."""
    for name, role, moment in (("books", "source", 0), ("music", "target", 1)):
        spec = a_spec(name=name, role=role, interactions={"time": None, "action": None, "context": None})
        desk.ingest("user_id\titem_id\tclick\nu\ti\t1\nu\tj\t1\n", spec=spec, name=f"{name}.tsv", number=moment + 1)
        assert desk.data(name).interactions()["time_us"].to_pylist() == [moment, moment]


def test_ratings_become_clicks_and_keep_their_value(desk):
    """``positive_above`` makes the label; the rating itself stays beside it, and is what histories carry."""
    spec = a_spec(
        interactions={"label": "rating", "label_range": [1, 5], "positive_above": 3, "action": None, "context": None}
    )
    desk.ingest("user_id,item_id,ts,rating\nu,a,2024-01-01,5\nu,b,2024-01-01,3\nu,c,2024-01-01,6\n", spec=spec)
    events = desk.data().interactions().to_pylist()
    assert [(row["item_id"], row["label"], row["raw_label"]) for row in events] == [("a", 1.0, 5.0), ("b", 0.0, 3.0)]
    assert desk.quarantined() == [(4, "label_out_of_range")]


def test_popularity_is_a_smoothed_mean(desk):
    """(sum + weight x mean) / (events + weight): few events lean on the mean."""
    rows = [f"u{at},hit,2024-01-01,1\n" for at in range(30)] + ["v,flop,2024-01-01,0\n", "w,late,2024-01-09,1\n"]
    items = desk.write("item_id,category,price\nhit,a,1\nflop,a,1\nlate,a,1\nunseen,a,1\n", "items.csv")
    desk.ingest("user_id,item_id,ts,click\n" + "".join(rows), spec=BARE, items=items)
    table = {row["item_id"]: row for row in desk.data().popularity().to_pylist()}
    mean = 31 / 32
    assert table["hit"]["score"] == pytest.approx((30 + 20 * mean) / 50)
    assert table["flop"]["score"] == pytest.approx(20 * mean / 21)
    assert table["unseen"] == {"item_id": "unseen", "item": 4, "events": 0, "label_mean": None, "score": mean}


def test_whole_number_ids_of_a_float_column_stay_whole(desk):
    """pandas turns ids into floats as soon as one is missing: 12.0 is id 12, the gap is a missing id."""
    pd.DataFrame(
        {"user_id": [12.0, None], "item_id": [7, 8], "ts": [1704110400] * 2, "click": [True, False]}
    ).to_parquet(desk.folder / "events.parquet")
    desk.ingest(desk.folder / "events.parquet", spec=BARE)
    event = desk.data().interactions().to_pylist()[0]
    assert (event["user_id"], event["item_id"], event["time_us"], event["label"]) == ("12", "7", NOON_US, 1.0)
    (bad,) = desk.data().quarantine()
    assert (bad["line"], bad["reason"]) == (2, "missing_user")
    assert '"item_id": 8' in bad["row"]


def test_zoned_parquet_times_are_converted(desk):
    """A typed moment needs no unit: its zone is known."""
    pd.DataFrame(
        {"user_id": "u", "item_id": "i", "click": 1, "ts": [pd.Timestamp("2024-01-01T13:00", tz="Europe/Berlin")]}
    ).to_parquet(desk.folder / "events.parquet")
    desk.ingest(desk.folder / "events.parquet", spec=BARE)
    assert desk.data().interactions()["time_us"].to_pylist() == [NOON_US]


def test_the_same_data_gives_the_same_bytes(tmp_path):
    """Order of rows, of files and of threads do not show in what is stored."""
    rows = [f"u{at % 7},i{at % 5},{1704110400 + at},{at % 2}\n" for at in range(500)]
    head, stored = "user_id,item_id,ts,click\n", []
    for name, parts, threads in (("one", [rows], 1), ("two", [rows[250:][::-1], rows[:250]], 2)):
        (tmp_path / name).mkdir()
        desk = Desk(tmp_path / name)
        desk.ingest(*(head + "".join(part) for part in parts), spec=BARE, threads=threads)
        stored.append([path.read_bytes() for path in desk.data().event_files()])
    assert stored[0] == stored[1]


def test_histories_come_from_what_was_ingested(desk):
    """All source domains in time order, each event with its domain's number and its item's index there."""
    video = a_spec(name="video", role="source")
    shop = a_spec(name="shop", role="source", interactions=NO_MORE)
    desk.ingest(HEADER + "u,v1,2024-01-01,1,view,\nu,v2,2024-01-03,0,like,\n", spec=video, number=3)
    desk.ingest("user_id,item_id,ts,click\nu,s1,2024-01-02,1\n", spec=shop, number=5)
    desk.ingest(HEADER + "u,l1,2024-01-02,1,view,\n", spec=SPEC, number=7)
    domains = [(video, 3), (shop, 5), (SPEC, 7)]
    built = Histories.build(desk.data_dir, domains)
    user = int(desk.data().user_vocabulary.index(["u"])[0])
    seen = built.source.history(user, NOW_US, 10)
    assert seen.domain.tolist() == [3, 5, 3]
    assert seen.item.tolist() == [1, 1, 2]
    assert seen.action.tolist() == [1, 2, 3]
    assert seen.value.tolist() == [1.0, 1.0, 0.0]
    second = int(datetime(2024, 1, 2, tzinfo=UTC).timestamp()) * 10**6
    assert built.source.history(user, second, 10).domain.tolist() == [3]
    assert len(built.target["live-rooms"].history(user, NOW_US, 10)) == 1
    assert Histories.build(desk.data_dir, domains).source.path == built.source.path
    desk.ingest(HEADER + "u,v9,2024-01-04,1,view,\n", spec=video, number=3, name="more.csv")
    rebuilt = Histories.build(desk.data_dir, domains)
    assert rebuilt.source.history(user, NOW_US, 10).domain.tolist() == [3, 5, 3, 3]
    assert len(built.source) == 3
