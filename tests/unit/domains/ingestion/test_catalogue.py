"""Items and users files: what they add, what they replace, and which of their rows are quarantined."""

from tests.unit.domains.ingestion.fakes import BARE, NO_MORE, a_spec, bare


def test_an_event_of_an_item_that_the_items_file_lacks(desk):
    """It is quarantined, and the report says what share of the items is missing; so it is for later ingests."""
    items = desk.write("item_id,category,price\ni0,food,1.5\ni1,food,\n", "items.csv")
    report = desk.ingest(bare("2024-01-01", "2024-01-01", "2024-01-01", "2024-01-01"), spec=BARE, items=items)
    assert desk.quarantined() == [(4, "unknown_item"), (5, "unknown_item")]
    assert any("lacks 2 of the 4 items" in warning and "50%" in warning for warning in report.warnings)
    later = desk.ingest("user_id,item_id,ts,click\nv,i0,2024-01-02,1\nv,i3,2024-01-02,1\n", spec=BARE, name="later.csv")
    assert later.reasons == {"unknown_item": 1}
    assert desk.data().items().to_pylist() == [
        {"item_id": "i0", "item": 1, "category": "food", "price": 1.5},
        {"item_id": "i1", "item": 2, "category": "food", "price": None},
    ]


def test_a_later_items_file_adds_and_replaces(desk):
    """Items keep their index; a new row of the same id replaces its features; the others stay."""
    desk.ingest(
        bare("2024-01-01"), spec=BARE, items=desk.write("item_id,category,price\ni0,a,1\nold,b,2\n", "items.csv")
    )
    desk.ingest(
        bare("2024-01-01"), spec=BARE, items=desk.write("item_id,category,price\ni0,c,1\nnew,d,x\n", "more.csv")
    )
    assert [(row["item_id"], row["item"], row["category"]) for row in desk.data().items().to_pylist()] == [
        ("i0", 1, "c"), ("old", 2, "b"), ("new", 3, "d"),
    ]  # fmt: skip


def test_bad_rows_of_an_items_file(desk):
    """No id and a second row of an id are quarantined; a number that is none is missing, since losing the item would
    lose its events."""
    items = desk.write("item_id,category,price\ni0,a,cheap\n,b,1\ni0,other,1\ni0,a,cheap\ni1,a,2\n", "items.csv")
    report = desk.ingest(bare("2024-01-01"), spec=BARE, items=items)
    assert desk.quarantined() == [(3, "missing_id"), (4, "duplicate_id")]
    assert desk.data().items()["price"].to_pylist() == [None, 2.0]
    assert report.rows_quarantined == 0
    assert any("'price' is no number in 1 rows" in warning for warning in report.warnings)


def test_users_are_shared_between_domains(desk):
    """One vocabulary of users for all domains: the same person has the same index everywhere."""
    desk.ingest(bare("2024-01-01"), spec=BARE)
    other = a_spec(name="video", role="source", interactions=NO_MORE)
    users = desk.write("user_id,age_band\nzoe,18-24\n", "users.csv")
    desk.ingest("user_id,item_id,ts,click\na,x,2024-01-01,1\nu,y,2024-01-01,1\n", spec=other, number=2, users=users)
    assert desk.data("video").user_vocabulary.index(["u", "zoe", "a"]).tolist() == [1, 2, 3]
    assert desk.data("video").users().to_pylist() == [{"user_id": "zoe", "user": 2, "age_band": "18-24"}]
    assert dict(zip(*desk.data("video").interactions(["item_id", "user"]).to_pydict().values(), strict=True)) == {
        "x": 3,
        "y": 1,
    }
