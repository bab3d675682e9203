"""The formats of full public files, written small, become specs and rows that ingest takes whole."""

from pathlib import Path

import pytest

from domains.public import PreparedDomain, reading
from tests.integration.public_loaders.fakes import (
    REVIEWS,
    ali_ccp,
    amazon_json,
    assert_ingests_whole,
    distinct,
    kuairand,
    load,
    movielens,
    rows_of,
    taobao_ads,
    write_lines,
)


def test_movielens_genres_are_domains(tmp_path: Path) -> None:
    """A movie goes to its first genre; titles are latin-1; ages become bands."""
    prepared = load(
        "movielens", movielens(tmp_path / "ml-1m"), tmp_path / "out", sources=("Drama",), targets=("Animation",)
    )
    drama, animation = prepared["movielens-drama"], prepared["movielens-animation"]
    assert [(row["user_id"], row["item_id"], row["rating"]) for row in rows_of(animation)] == [("1", "1", 5.0)]
    assert drama.rows == 3
    assert {row["title"] for row in rows_of(drama, "items")} == {"Misérables, Les (1995)", "Heat (1995)"}
    assert rows_of(animation, "items")[0]["release_year"] == 1995
    assert {row["user_id"]: row["age_band"] for row in rows_of(drama, "users")} == {"1": "under-18", "2": "56-plus"}
    assert animation.spec.sources == ("movielens-drama",)
    assert_ingests_whole(drama, tmp_path / "data", 1)


def test_movielens_chooses_the_largest_genres_as_sources(tmp_path: Path) -> None:
    """With no names given, the three largest are sources and the others targets once they have enough ratings."""
    folder = tmp_path / "ml-1m"
    write_lines(folder / "users.dat", "1::F::1::10::48067")
    genres = ("Drama", "Comedy", "Action", "Horror", "War")
    write_lines(folder / "movies.dat", *(f"{i}::Film (2000)::{genre}" for i, genre in enumerate(genres)))
    counts = (9, 8, 7, 5, 1)
    write_lines(
        folder / "ratings.dat", *(f"1::{i}::5::{97830 + n}" for i, count in enumerate(counts) for n in range(count))
    )
    prepared = load("movielens", folder, tmp_path / "out", minimum_ratings=5)
    assert {name: domain.spec.role for name, domain in prepared.items()} == {
        "movielens-drama": "source",
        "movielens-comedy": "source",
        "movielens-action": "source",
        "movielens-horror": "target",
    }


def test_kuairand_tabs_are_domains(tmp_path: Path) -> None:
    """Both log files are read; the strongest action names the row; quoted features keep their commas."""
    prepared = load("kuairand", kuairand(tmp_path / "KuaiRand-1K"), tmp_path / "out", minimum_rows=2)
    main, other = prepared["kuairand-tab-1"], prepared["kuairand-tab-4"]
    assert (main.rows, other.rows) == (4, 2)
    assert (main.spec.role, other.spec.role, other.spec.sources) == ("source", "target", ("kuairand-tab-1",))
    actions = {(row["user_id"], row["item_id"]): row["event_type"] for row in rows_of(main)}
    assert actions == {("1", "1"): "view", ("1", "2"): "like", ("2", "1"): "view", ("3", "2"): "click"}
    assert {row["tag"] for row in rows_of(main, "items")} == {"12,65"}
    assert {row["item_id"] for row in rows_of(main, "items")} == {"1", "2"}
    assert {row["follow_user_num_range"] for row in rows_of(main, "users")} == {"(10,50]"}
    assert_ingests_whole(main, tmp_path / "data", 1)


def test_taobao_ads_are_cut_by_category_into_impressions_and_log(tmp_path: Path) -> None:
    """Target: impressions of categories below 2,000; source: the log of the others; an item is (category, brand)."""
    prepared = load("taobao-ads", taobao_ads(tmp_path / "in"), tmp_path / "out")
    ads, log = prepared["taobao-ads"], prepared["taobao-log"]
    assert {(row["item_id"], row["click"], row["pid"]) for row in rows_of(ads)} == {
        ("1999/55", 0, "430548_1007"),
        ("1999/none", 1, "430548_1007"),
    }
    assert ads.left_out == {"ad not in ad_feature.csv": 1, "category of the source": 1}
    assert {(row["item_id"], row["btag"]) for row in rows_of(log)} == {("6250/91286", "pv"), ("2000/55", "cart")}
    assert {row["item_id"]: row["price"] for row in rows_of(ads, "items")} == {"1999/55": 10.0, "1999/none": 20.0}
    assert ads.spec.sources == ("taobao-log",)
    assert next(row for row in rows_of(ads, "users") if row["user_id"] == "1")["pvalue_level"] is None
    assert_ingests_whole(ads, tmp_path / "data", 1)


def test_ali_ccp_scenes_are_domains(tmp_path: Path) -> None:
    """Users come of the common features, items and scenes of the impressions; both parts of the files are read."""
    prepared = load("ali-ccp", ali_ccp(tmp_path / "in"), tmp_path / "out", minimum_rows=1)
    ten, eleven = prepared["ali-ccp-10"], prepared["ali-ccp-11"]
    assert sorted((row["user_id"], row["item_id"], row["click"], row["event_type"]) for row in rows_of(ten)) == [
        ("7", "50", 0, "view"),
        ("7", "50", 1, "click"),
        ("8", "52", 1, "buy"),
    ]
    assert [(row["user_id"], row["item_id"]) for row in rows_of(eleven)] == [("7", "51")]
    assert (ten.spec.role, eleven.spec.role, eleven.spec.sources) == ("source", "target", ("ali-ccp-10",))
    assert ten.left_out == {"no item or no scene": 1, "bought without a click": 1, "no user": 1}
    assert {row["item_id"]: (row["category"], row["shop"], row["brand"]) for row in rows_of(ten, "items")} == {
        "50": ("6", "20", "9"),
        "52": ("7", None, None),
    }
    people = {row["user_id"]: row for row in rows_of(ten, "users")}
    assert (people["7"]["profile_1"], people["7"]["gender"], people["7"]["geography"]) == ("70", "2", "4")
    assert (people["8"]["age"], people["8"]["gender"]) == ("5", None)
    assert_ingests_whole(ten, tmp_path / "data", 1)


def test_ali_ccp_can_be_read_for_a_share_of_its_users(tmp_path: Path) -> None:
    """Whole users stay or go."""
    folder = tmp_path / "in"
    people = [(f"c{user}", str(user)) for user in range(40)]
    write_lines(folder / "common_features_train.csv", *(f"{common},1,101\x02{user}\x031.0" for common, user in people))
    write_lines(
        folder / "sample_skeleton_train.csv",
        *(
            f"{number},0,0,{common},2,205\x02{number}\x031.0\x01301\x02{10 + number % 2}\x031.0"
            for number, common in enumerate(common for common, _ in people * 4)
        ),
    )
    prepared = load("ali-ccp", folder, tmp_path / "out", user_share=0.5, minimum_rows=1, targets=["11"])
    kept = {name: distinct(domain, "user_id") for name, domain in prepared.items()}
    users = kept["ali-ccp-10"] | kept["ali-ccp-11"]
    assert 5 < len(users) < 35
    assert sum(domain.rows for domain in prepared.values()) == 4 * len(users)


def test_taobao_behaviour_leaves_out_rows_of_other_years(tmp_path: Path) -> None:
    """The original file has some; they are counted by domain."""
    file = write_lines(
        tmp_path / "in" / "UserBehavior.csv",
        "1,2268318,2520377,pv,1511544070",
        "1,2333346,252000,buy,1511561733",
        "2,2576651,149192,fav,-2134949234",
        "2,2576651,149192,cart,1511572885",
    )
    prepared = load("taobao-behaviour", file, tmp_path / "out")
    near, far = prepared["taobao-behaviour-near"], prepared["taobao-behaviour-far"]
    assert (near.rows, far.rows) == (2, 1)
    assert (near.left_out, far.left_out) == ({"dated outside of the nine days": 1}, {})
    assert {row["item_id"]: row["category"] for row in rows_of(near, "items")} == {
        "2333346": "252000",
        "2576651": "149192",
    }
    assert_ingests_whole(near, tmp_path / "data", 1)


def test_amazon_reviews_of_both_years_are_read_with_their_metadata(tmp_path: Path) -> None:
    """2014 gzip JSON with Python-literal metadata, 2018 JSON with JSON metadata; only rated items are described."""
    prepared = load("amazon", amazon_json(tmp_path / "in"), tmp_path / "out")
    books, discs = prepared["amazon-books"], prepared["amazon-cds-and-vinyl"]
    assert (books.spec.role, discs.spec.role) == ("source", "target")
    assert [(r["user_id"], r["item_id"], r["rating"], r["ts"]) for r in rows_of(books)] == [
        (r["reviewerID"], r["asin"], r["overall"], r["unixReviewTime"]) for r in REVIEWS
    ]
    assert rows_of(books, "items") == [
        {"item_id": "0000013714", "category": "Music & Hymns", "brand": "O'Neill", "price": 3.5}
    ]
    assert rows_of(discs, "items") == [{"item_id": "0000013714", "category": "Pop", "brand": None, "price": 1299.0}]


def test_amazon_rating_files_tell_user_from_item_by_their_ids(tmp_path: Path) -> None:
    """2014 writes ``user,item,rating,time`` and 2018 ``item,user,rating,time``, both without a header."""
    folder = tmp_path / "in"
    write_lines(
        folder / "ratings_Movies_and_TV.csv",
        "A3R5OBKS7OM2IR,0000143502,5.0,1358380800",
        "A3R5OBKS7OM2I2,0000143502,1.0,1",
    )
    write_lines(folder / "Books.csv", "0001713353,A1C6M8LCIX4M6M,5.0,1123804800")
    prepared = load("amazon", folder, tmp_path / "out", sources=("Movies_and_TV",), targets=("Books",))
    assert rows_of(prepared["amazon-movies-and-tv"])[0]["user_id"] == "A3R5OBKS7OM2IR"
    assert rows_of(prepared["amazon-books"])[0]["user_id"] == "A1C6M8LCIX4M6M"
    assert prepared["amazon-books"].items is None
    assert_ingests_whole(prepared["amazon-books"], tmp_path / "data", 1)


def test_a_new_loader_is_one_decorated_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how its rows are read; files, specs, roles and the name on the command line follow."""
    monkeypatch.setattr(reading, "LOADERS", {})

    @reading.loader("diary")
    def _(path: Path, out_dir: Path) -> list[PreparedDomain]:
        with reading.Staging(out_dir) as staging:
            staging.scan_text("diary", path / "diary.csv", {"who": "BIGINT", "what": "VARCHAR", "place": "VARCHAR"})
            return staging.write_parts(
                reading.Part(
                    name=f"diary-{place}",
                    role=role,
                    interactions=f"SELECT text_of(who) AS user_id, what AS item_id FROM diary WHERE place = '{place}'",
                    columns={"user": "user_id", "item": "item_id"},
                    items="SELECT DISTINCT item_id FROM written",
                )
                for place, role in reading.roles(["home", "work"], sources=None, targets=["work"])
            )

    write_lines(tmp_path / "diary.csv", "1,tea,home", "1,tea,work", "2,nap,home")
    prepared = reading.LOADERS["diary"](tmp_path, tmp_path / "out")
    assert [(one.spec.name, one.spec.role, one.rows) for one in prepared] == [
        ("diary-home", "source", 2),
        ("diary-work", "target", 1),
    ]
    assert prepared[1].spec.sources == ("diary-home",)
    for number, one in enumerate(prepared, start=1):
        assert_ingests_whole(one, tmp_path / "data", number)
