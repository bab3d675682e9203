"""Public data sets in their original formats become specs and rows that ingest takes whole."""

import gzip
import json
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from domains.errors import DomainFault, InvalidData
from domains.ingestion.ingest import ingest
from domains.public import LOADERS, PreparedDomain
from domains.spec import DomainSpec


def _load(name: str, path: Path, out_dir: Path, **options: object) -> dict[str, PreparedDomain]:
    prepared = {domain.spec.name: domain for domain in LOADERS[name](path, out_dir, **options)}
    for domain in prepared.values():
        _assert_spec_fits_files(domain)
    assert not (out_dir / ".staging").exists()
    return prepared


def _assert_spec_fits_files(domain: PreparedDomain) -> None:
    """Every column that the spec names is in the files, ids are text, and the rows are as many as said."""
    spec, schema = domain.spec, pq.read_schema(domain.interactions)
    assert DomainSpec.from_yaml(domain.interactions.parent / "spec.yaml") == spec
    columns = spec.interactions
    named = {columns.user, columns.item, columns.time, columns.label, columns.action, *columns.context} - {None}
    assert named <= set(schema.names)
    assert pa.types.is_string(schema.field(columns.user).type)
    assert pa.types.is_string(schema.field(columns.item).type)
    assert pq.read_metadata(domain.interactions).num_rows == domain.rows > 0
    for declared, file in ((spec.items, domain.items), (spec.users, domain.users)):
        assert (declared is None) == (file is None)
        if declared is not None and file is not None:
            assert {declared.id, *declared.features} <= set(pq.read_schema(file).names)


def _rows(domain: PreparedDomain, table: str = "interactions") -> list[dict]:
    return pq.read_table(getattr(domain, table)).to_pylist()


def _distinct(domain: PreparedDomain, column: str) -> set[str]:
    return set(pq.read_table(domain.interactions, columns=[column])[column].to_pylist())


def _write(path: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))
    return path


def _assert_ingests_whole(domain: PreparedDomain, data_dir: Path, number: int) -> None:
    report = ingest(
        domain.spec,
        number=number,
        interactions=[domain.interactions],
        items=domain.items,
        users=domain.users,
        data_dir=data_dir,
    )
    assert (report.rows_read, report.rows_added, report.rows_quarantined) == (domain.rows, domain.rows, 0)


# ---------------------------------------------------------------- real files, where they lie beside the checkout


@pytest.mark.real_data
def test_douban_has_its_published_counts_and_shared_users(public_data: Path, tmp_path: Path) -> None:
    """Book 96,041 ratings and music 69,709; 1,566 users rate in both."""
    prepared = _load("douban", public_data / "douban", tmp_path)
    book, music = prepared["douban-book"], prepared["douban-music"]
    assert (book.rows, music.rows) == (96_041, 69_709)
    assert (book.spec.role, music.spec.role, music.spec.sources) == ("source", "target", ("douban-book",))
    assert len(_distinct(book, "user_id")) == 2_110
    assert len(_distinct(book, "item_id")) == 6_777
    assert len(_distinct(music, "user_id")) == 1_672
    assert len(_distinct(music, "item_id")) == 5_567
    assert len(_distinct(book, "user_id") & _distinct(music, "user_id")) == 1_566
    _assert_ingests_whole(music, tmp_path / "data", 1)


@pytest.mark.real_data
def test_douban_can_be_turned_round_and_taken_unfiltered(public_data: Path, tmp_path: Path) -> None:
    """The direction of transfer and the cut are options; clicks are ratings above 3."""
    prepared = _load("douban", public_data / "douban", tmp_path, targets=("book",), task="ctr", unfiltered=True)
    assert prepared["douban-book"].rows == 227_251
    assert prepared["douban-book"].spec.sources == ("douban-music",)
    assert prepared["douban-book"].spec.interactions.positive_above == 3


@pytest.mark.real_data
def test_amazon_heterogeneous_items_belong_to_their_first_code(public_data: Path, tmp_path: Path) -> None:
    """Code 1 has 180,248 ratings, 2 has 13,940, 3 has 817; 3,875 users rate in both 1 and 2."""
    folder = public_data / "amazon_movie_tv"
    prepared = _load("amazon-heterogeneous", folder, tmp_path, sources=("1", "3"))
    one, two, three = (prepared[f"amazon-category-{code}"] for code in (1, 2, 3))
    assert (one.rows, two.rows, three.rows) == (180_248, 13_940, 817)
    assert len(_distinct(one, "user_id") & _distinct(two, "user_id")) == 3_875
    assert all(row["brand"] is not None for row in _rows(two, "items"))
    _assert_ingests_whole(two, tmp_path / "data", 1)


@pytest.mark.real_data
def test_food_and_kitchen_share_all_users_and_shuffle_the_ties_of_a_day(public_data: Path, tmp_path: Path) -> None:
    """83,663 + 89,885 rows of 7,144 users; within a day ascending ids no longer give the order away."""
    prepared = _load("food-kitchen", public_data / "food_kitchen", tmp_path)
    food, kitchen = prepared["amazon-food"], prepared["amazon-kitchen"]
    assert (food.rows, kitchen.rows) == (83_663, 89_885)
    assert len(_distinct(food, "user_id")) == len(_distinct(kitchen, "user_id")) == 7_144
    assert (len(_rows(food, "items")), len(_rows(kitchen, "items"))) == (11_837, 16_258)
    table = pq.read_table(food.interactions)
    user, item, ts = (table[name].to_numpy().astype(np.int64) for name in ("user_id", "item_id", "ts"))
    same_user = user[1:] == user[:-1]
    assert (ts[1:] >= ts[:-1])[same_user].all()
    ties = same_user & (ts[1:] == ts[:-1])
    assert (item[1:] > item[:-1])[ties].mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.real_data
def test_game_and_video_share_only_the_low_user_numbers(public_data: Path, tmp_path: Path) -> None:
    """Game 157,721 rows and 12,319 items, Video 158,984 and 8,751; 212 and 216 cold test users."""
    prepared = _load("game-video", public_data / "game_video", tmp_path)
    game, video = prepared["amazon-game"], prepared["amazon-video"]
    assert (game.rows, video.rows) == (157_721, 158_984)
    assert (len(_distinct(game, "item_id")), len(_distinct(video, "item_id"))) == (12_319, 8_751)
    shared = _distinct(game, "user_id") & _distinct(video, "user_id")
    assert all(user.isdigit() and int(user) < 2_179 for user in shared)
    for domain, cold in ((game, 212), (video, 216)):
        rows = pq.read_table(domain.interactions).to_pandas()
        test_users = set(rows.user_id[rows.split == "test"])
        assert len(test_users) == cold
        assert not test_users & set(rows.user_id[rows.split == "train"])


@pytest.mark.real_data
def test_kuairand_sequences_keep_step_order_and_count_unknown_items(public_data: Path, tmp_path: Path) -> None:
    """5,101 users of 800 steps; the known and the unknown steps of a code add up to all of its steps."""
    with np.load(public_data / "kuairand_sequences" / "sequences.npz") as arrays:
        tab = np.concatenate([arrays[f"{part}_tab"] for part in ("training", "evaluation", "testing")])
        second_user = arrays["training_item"][1][(arrays["training_tab"][1] == 9) & (arrays["training_item"][1] >= 0)]
    prepared = _load("kuairand-sequences", public_data / "kuairand_sequences", tmp_path)
    users: set[str] = set()
    for code in (9, 4):
        domain = prepared[f"kuairand-code-{code}"]
        assert domain.rows + domain.left_out["unknown item"] == (tab == code).sum()
        users |= _distinct(domain, "user_id")
    assert len(users) <= 5_101
    table = pq.read_table(prepared["kuairand-code-9"].interactions, filters=[("user_id", "==", "training-1")])
    assert table["item_id"].to_pylist() == [str(item) for item in second_user]
    assert (np.diff(table["ts"].to_numpy()) > 0).all()


@pytest.mark.real_data
def test_ebnerd_impressions_become_one_row_per_shown_article(public_data: Path, tmp_path: Path) -> None:
    """10,848 exposures; as many clicks as the impressions list."""
    folder = public_data / "ebnerd_fixture"
    prepared = _load("ebnerd", folder, tmp_path)
    front = prepared["ebnerd-front"]
    assert front.rows == 10_848
    ((clicks,),) = (
        duckdb.connect()
        .execute(
            "SELECT sum(len(list_distinct(list_intersect(article_ids_clicked, article_ids_inview)))) "
            f"FROM '{folder / 'behaviors.parquet'}'"
        )
        .fetchall()
    )
    assert sum(row["click"] for row in _rows(front)) == clicks
    assert front.spec.sources == ("ebnerd-reading",)
    assert prepared["ebnerd-reading"].rows > 0


# ---------------------------------------------------------------- formats of full public files, written small


def _movielens(folder: Path) -> Path:
    _write(folder / "users.dat", "1::F::1::10::48067", "2::M::56::16::70072")
    _write(
        folder / "movies.dat",
        "1::Toy Story (1995)::Animation|Children's|Comedy",
        "2::Misérables, Les (1995)::Drama|Musical",
        "3::Heat (1995)::Drama",
        encoding="latin-1",
    )
    _write(
        folder / "ratings.dat", "1::1::5::978300760", "1::2::3::978302109", "2::3::4::978298413", "2::2::4::978298414"
    )
    return folder


def test_movielens_genres_are_domains(tmp_path: Path) -> None:
    """A movie goes to its first genre; titles are latin-1; ages become bands."""
    prepared = _load(
        "movielens", _movielens(tmp_path / "ml-1m"), tmp_path / "out", sources=("Drama",), targets=("Animation",)
    )
    drama, animation = prepared["movielens-drama"], prepared["movielens-animation"]
    assert [(row["user_id"], row["item_id"], row["rating"]) for row in _rows(animation)] == [("1", "1", 5.0)]
    assert drama.rows == 3
    assert {row["title"] for row in _rows(drama, "items")} == {"Misérables, Les (1995)", "Heat (1995)"}
    assert _rows(animation, "items")[0]["release_year"] == 1995
    assert {row["user_id"]: row["age_band"] for row in _rows(drama, "users")} == {"1": "under-18", "2": "56-plus"}
    assert animation.spec.sources == ("movielens-drama",)
    _assert_ingests_whole(drama, tmp_path / "data", 1)


def test_movielens_chooses_the_largest_genres_as_sources(tmp_path: Path) -> None:
    """With no names given, the three largest lend and the others borrow once they have enough ratings."""
    folder = tmp_path / "ml-1m"
    _write(folder / "users.dat", "1::F::1::10::48067")
    genres = ("Drama", "Comedy", "Action", "Horror", "War")
    _write(folder / "movies.dat", *(f"{i}::Film (2000)::{genre}" for i, genre in enumerate(genres)))
    counts = (9, 8, 7, 5, 1)
    _write(folder / "ratings.dat", *(f"1::{i}::5::{97830 + n}" for i, count in enumerate(counts) for n in range(count)))
    prepared = _load("movielens", folder, tmp_path / "out", minimum_ratings=5)
    assert {name: domain.spec.role for name, domain in prepared.items()} == {
        "movielens-drama": "source",
        "movielens-comedy": "source",
        "movielens-action": "source",
        "movielens-horror": "target",
    }


def _kuairand(folder: Path) -> Path:
    header = (
        "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
        "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
    )
    row = "{},{},20220408,1700,16494{:07d}0,{},{},0,0,0,0,0,100,200,0,0,0,0,{}"
    rows = [row.format(u, v, 10 * u + v, int(v == 2), int(u == 1 and v == 2), t) for u, v, t in _SHOWN]
    _write(folder / "data" / "log_standard_4_08_to_4_21_1k.csv", header, *rows[:4])
    _write(folder / "data" / "log_standard_4_22_to_5_08_1k.csv", header, *rows[4:])
    _write(
        folder / "data" / "user_features_1k.csv",
        "user_id,user_active_degree,is_lowactive_period,follow_user_num_range,fans_user_num_range,register_days_range",
        *(f'{user},full_active,0,"(10,50]","[1,10)",61-90' for user in (1, 2, 3)),
    )
    _write(
        folder / "data" / "video_features_basic_1k.csv",
        "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,music_id,music_type,tag",
        *(f'{video},7,NORMAL,2022-04-01,LongImport,1,{1000.0 * video},3,9.0,"12,65"' for video in (1, 2, 9)),
    )
    return folder


_SHOWN = [(1, 1, 1), (1, 2, 1), (2, 1, 1), (2, 2, 4), (3, 2, 1), (3, 1, 4)]


def test_kuairand_tabs_are_domains(tmp_path: Path) -> None:
    """Both log files are read; the strongest action names the row; quoted features keep their commas."""
    prepared = _load("kuairand", _kuairand(tmp_path / "KuaiRand-1K"), tmp_path / "out", minimum_rows=2)
    main, other = prepared["kuairand-tab-1"], prepared["kuairand-tab-4"]
    assert (main.rows, other.rows) == (4, 2)
    assert (main.spec.role, other.spec.role, other.spec.sources) == ("source", "target", ("kuairand-tab-1",))
    actions = {(row["user_id"], row["item_id"]): row["event_type"] for row in _rows(main)}
    assert actions == {("1", "1"): "view", ("1", "2"): "like", ("2", "1"): "view", ("3", "2"): "click"}
    assert {row["tag"] for row in _rows(main, "items")} == {"12,65"}
    assert {row["item_id"] for row in _rows(main, "items")} == {"1", "2"}
    assert {row["follow_user_num_range"] for row in _rows(main, "users")} == {"(10,50]"}
    _assert_ingests_whole(main, tmp_path / "data", 1)


def _taobao_ads(folder: Path) -> Path:
    _write(
        folder / "raw_sample.csv",
        "user,time_stamp,adgroup_id,pid,nonclk,clk",
        "1,1494137644,100,430548_1007,1,0",
        "1,1494137645,101,430548_1007,0,1",
        "2,1494137646,102,430539_1007,1,0",
        "2,1494137647,999,430539_1007,1,0",
    )
    _write(
        folder / "ad_feature.csv",
        "adgroup_id,cate_id,campaign_id,customer,brand,price",
        "100,1999,9,9,55,10.0",
        "101,1999,9,9,NULL,20.0",
        "102,2000,9,9,55,30.0",
    )
    _write(
        folder / "user_profile.csv",
        "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,occupation,"
        "new_user_class_level ",
        "1,0,5,2,5,,3,0,3",
        "2,0,5,2,5,2,3,0,",
    )
    _write(
        folder / "behavior_log.csv",
        "user,time_stamp,btag,cate,brand",
        "1,1493741625,pv,6250,91286",
        "1,1493741626,cart,2000,55",
        "2,1493741627,pv,1999,55",
    )
    return folder


def test_taobao_ads_are_cut_by_category_into_impressions_and_log(tmp_path: Path) -> None:
    """Target: impressions of categories below 2,000; source: the log of the others; an item is (category, brand)."""
    prepared = _load("taobao-ads", _taobao_ads(tmp_path / "in"), tmp_path / "out")
    ads, log = prepared["taobao-ads"], prepared["taobao-log"]
    assert {(row["item_id"], row["click"], row["pid"]) for row in _rows(ads)} == {
        ("1999/55", 0, "430548_1007"),
        ("1999/none", 1, "430548_1007"),
    }
    assert ads.left_out == {"ad not in ad_feature.csv": 1, "category of the source": 1}
    assert {(row["item_id"], row["btag"]) for row in _rows(log)} == {("6250/91286", "pv"), ("2000/55", "cart")}
    assert {row["item_id"]: row["price"] for row in _rows(ads, "items")} == {"1999/55": 10.0, "1999/none": 20.0}
    assert ads.spec.sources == ("taobao-log",)
    assert next(row for row in _rows(ads, "users") if row["user_id"] == "1")["pvalue_level"] is None
    _assert_ingests_whole(ads, tmp_path / "data", 1)


def test_taobao_ads_can_keep_the_log_of_target_categories(tmp_path: Path) -> None:
    """As a second source, named apart because it reaches close to the impressions."""
    prepared = _load("taobao-ads", _taobao_ads(tmp_path / "in"), tmp_path / "out", keep_log_of_target_categories=True)
    assert [row["item_id"] for row in _rows(prepared["taobao-log-near"])] == ["1999/55"]
    assert prepared["taobao-ads"].spec.sources == ("taobao-log", "taobao-log-near")


def _ali_ccp(folder: Path) -> Path:
    """Two users in train and one of them again in test; scenes 10 and 11."""

    def features(**fields: str) -> str:
        return "\x01".join(f"{field.removeprefix('f')}\x02{feature}\x031.0" for field, feature in fields.items())

    def impression(number: int, click: int, buy: int, common: str, **fields: str) -> str:
        return f"{number},{click},{buy},{common},{len(fields)},{features(**fields)}"

    _write(
        folder / "common_features_train.csv",
        f"c1,4,{features(f101='7', f121='70', f124='2', f109_14='999')}",
        f"c2,2,{features(f101='8', f125='5')}",
    )
    _write(folder / "common_features_test.csv", f"c3,2,{features(f101='7', f129='4')}")
    _write(
        folder / "sample_skeleton_train.csv",
        impression(1, 1, 0, "c1", f205="50", f206="6", f207="20", f216="9", f301="10"),
        impression(2, 0, 0, "c1", f205="51", f206="6", f301="11", f508="205"),
        impression(3, 0, 1, "c2", f205="50", f206="6", f301="10"),
        impression(4, 1, 1, "c2", f205="52", f206="7", f301="10"),
        impression(5, 0, 0, "c2", f206="7", f301="10"),
    )
    _write(
        folder / "sample_skeleton_test.csv",
        impression(1, 0, 0, "c3", f205="50", f207="20", f301="10"),
        impression(2, 0, 0, "gone", f205="50", f301="11"),
    )
    return folder


def test_ali_ccp_scenes_are_domains(tmp_path: Path) -> None:
    """Users come of the common features, items and scenes of the impressions; both parts of the files are read."""
    prepared = _load("ali-ccp", _ali_ccp(tmp_path / "in"), tmp_path / "out", minimum_rows=1)
    ten, eleven = prepared["ali-ccp-10"], prepared["ali-ccp-11"]
    assert sorted((row["user_id"], row["item_id"], row["click"], row["event_type"]) for row in _rows(ten)) == [
        ("7", "50", 0, "view"),
        ("7", "50", 1, "click"),
        ("8", "52", 1, "buy"),
    ]
    assert [(row["user_id"], row["item_id"]) for row in _rows(eleven)] == [("7", "51")]
    assert (ten.spec.role, eleven.spec.role, eleven.spec.sources) == ("source", "target", ("ali-ccp-10",))
    assert ten.left_out == {"no item or no scene": 1, "bought without a click": 1, "no user": 1}
    assert {row["item_id"]: (row["category"], row["shop"], row["brand"]) for row in _rows(ten, "items")} == {
        "50": ("6", "20", "9"),
        "52": ("7", None, None),
    }
    people = {row["user_id"]: row for row in _rows(ten, "users")}
    assert (people["7"]["profile_1"], people["7"]["gender"], people["7"]["geography"]) == ("70", "2", "4")
    assert (people["8"]["age"], people["8"]["gender"]) == ("5", None)
    _assert_ingests_whole(ten, tmp_path / "data", 1)


def test_ali_ccp_can_be_read_for_a_share_of_its_users(tmp_path: Path) -> None:
    """Whole users stay or go."""
    folder = tmp_path / "in"
    people = [(f"c{user}", str(user)) for user in range(40)]
    _write(folder / "common_features_train.csv", *(f"{common},1,101\x02{user}\x031.0" for common, user in people))
    _write(
        folder / "sample_skeleton_train.csv",
        *(
            f"{number},0,0,{common},2,205\x02{number}\x031.0\x01301\x02{10 + number % 2}\x031.0"
            for number, common in enumerate(common for common, _ in people * 4)
        ),
    )
    prepared = _load("ali-ccp", folder, tmp_path / "out", user_share=0.5, minimum_rows=1, targets=["11"])
    kept = {name: _distinct(domain, "user_id") for name, domain in prepared.items()}
    users = kept["ali-ccp-10"] | kept["ali-ccp-11"]
    assert 5 < len(users) < 35
    assert sum(domain.rows for domain in prepared.values()) == 4 * len(users)


def test_taobao_behaviour_leaves_out_rows_of_other_years(tmp_path: Path) -> None:
    """The original file has some; they are counted by domain."""
    file = _write(
        tmp_path / "in" / "UserBehavior.csv",
        "1,2268318,2520377,pv,1511544070",
        "1,2333346,252000,buy,1511561733",
        "2,2576651,149192,fav,-2134949234",
        "2,2576651,149192,cart,1511572885",
    )
    prepared = _load("taobao-behaviour", file, tmp_path / "out")
    near, far = prepared["taobao-behaviour-near"], prepared["taobao-behaviour-far"]
    assert (near.rows, far.rows) == (2, 1)
    assert (near.left_out, far.left_out) == ({"dated outside of the nine days": 1}, {})
    assert {row["item_id"]: row["category"] for row in _rows(near, "items")} == {
        "2333346": "252000",
        "2576651": "149192",
    }
    _assert_ingests_whole(near, tmp_path / "data", 1)


REVIEWS = [
    {"reviewerID": "A2SUAM1J3GNN3B", "asin": "0000013714", "overall": 5.0, "unixReviewTime": 1252800000},
    {"reviewerID": "A14VAT5EAX3D9S", "asin": "B00002SWHH", "overall": 2.0, "unixReviewTime": 1363392000},
]


def _amazon_json(folder: Path) -> Path:
    text = "".join(json.dumps(review | {"reviewText": "fine, “really”"}) + "\n" for review in REVIEWS)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reviews_Books_5.json.gz").write_bytes(gzip.compress(text.encode()))
    _write(folder / "CDs_and_Vinyl_5.json", json.dumps(REVIEWS[0]))
    _write(
        folder / "meta_Books.json",
        "{'asin': '0000013714', 'categories': [['Books', 'Music &amp; Hymns']], 'price': 3.5, 'brand': \"O'Neill\"}",
        "{'asin': 'B00000000X', 'categories': [['Books']]}",
    )
    _write(
        folder / "meta_CDs_and_Vinyl.json",
        json.dumps({"asin": "0000013714", "category": ["CDs", "Pop"], "price": "$1,299.00", "brand": ""}),
    )
    return folder


def test_amazon_reviews_of_both_years_are_read_with_their_metadata(tmp_path: Path) -> None:
    """2014 gzip JSON with Python-literal metadata, 2018 JSON with JSON metadata; only rated items are described."""
    prepared = _load("amazon", _amazon_json(tmp_path / "in"), tmp_path / "out")
    books, discs = prepared["amazon-books"], prepared["amazon-cds-and-vinyl"]
    assert (books.spec.role, discs.spec.role) == ("source", "target")
    assert [(r["user_id"], r["item_id"], r["rating"], r["ts"]) for r in _rows(books)] == [
        (r["reviewerID"], r["asin"], r["overall"], r["unixReviewTime"]) for r in REVIEWS
    ]
    assert _rows(books, "items") == [
        {"item_id": "0000013714", "category": "Music & Hymns", "brand": "O'Neill", "price": 3.5}
    ]
    assert _rows(discs, "items") == [{"item_id": "0000013714", "category": "Pop", "brand": None, "price": 1299.0}]


def test_amazon_rating_files_tell_user_from_item_by_their_ids(tmp_path: Path) -> None:
    """2014 writes ``user,item,rating,time`` and 2018 ``item,user,rating,time``, both without a header."""
    folder = tmp_path / "in"
    _write(
        folder / "ratings_Movies_and_TV.csv",
        "A3R5OBKS7OM2IR,0000143502,5.0,1358380800",
        "A3R5OBKS7OM2I2,0000143502,1.0,1",
    )
    _write(folder / "Books.csv", "0001713353,A1C6M8LCIX4M6M,5.0,1123804800")
    prepared = _load("amazon", folder, tmp_path / "out", sources=("Movies_and_TV",), targets=("Books",))
    assert _rows(prepared["amazon-movies-and-tv"])[0]["user_id"] == "A3R5OBKS7OM2IR"
    assert _rows(prepared["amazon-books"])[0]["user_id"] == "A1C6M8LCIX4M6M"
    assert prepared["amazon-books"].items is None
    _assert_ingests_whole(prepared["amazon-books"], tmp_path / "data", 1)


# ---------------------------------------------------------------- what is not as its format says


def _break_line(file: Path, number: int, text: str) -> None:
    lines = file.read_text(encoding="latin-1").splitlines()
    lines[number - 1] = text
    _write(file, *lines, encoding="latin-1")


def _douban(folder: Path) -> Path:
    for part in ("book", "music"):
        _write(folder / f"{part}_ratings.dat", *(f"{user}\t{user + 1}\t4" for user in range(50)))
    return folder


@pytest.mark.parametrize(
    ("name", "build", "file", "line", "text"),
    [
        ("douban", _douban, "music_ratings.dat", 31, "7\tmany\t4"),
        ("douban", _douban, "book_ratings.dat", 12, "7\t4"),
        ("movielens", _movielens, "ratings.dat", 3, "2::3::good::978298413"),
        ("kuairand", _kuairand, "data/log_standard_4_08_to_4_21_1k.csv", 1, "user_id,video_id,time_ms"),
        ("taobao-ads", _taobao_ads, "ad_feature.csv", 3, "101,none,9,9,NULL,20.0"),
        ("taobao-ads", _taobao_ads, "behavior_log.csv", 4, "2,1493741627,pv"),
        ("ali-ccp", _ali_ccp, "sample_skeleton_train.csv", 2, "2,maybe,0,c1,1,205\x0251\x031.0"),
        ("ali-ccp", _ali_ccp, "common_features_test.csv", 1, "c3,2"),
        ("amazon", _amazon_json, "CDs_and_Vinyl_5.json", 1, '{"reviewerID": "A1", "asin":'),
        ("amazon", _amazon_json, "CDs_and_Vinyl_5.json", 1, '{"reviewerID": "A1", "asin": "B", "overall": 5}'),
        ("amazon", _amazon_json, "meta_Books.json", 1, "{'asin': '0000013714', 'price': }"),
    ],
)
def test_a_malformed_line_is_named_with_its_file(
    name: str, build, file: str, line: int, text: str, tmp_path: Path
) -> None:
    """A person finds the place at once."""
    folder = build(tmp_path / "in")
    _break_line(folder / file, line, text)
    with pytest.raises(InvalidData) as refused:
        LOADERS[name](folder, tmp_path / "out")
    assert f"{Path(file).name}, line {line}:" in str(refused.value)
    assert refused.value.details["line"] == line
    assert not (tmp_path / "out" / ".staging").exists()


def test_a_cut_off_gzip_is_named(tmp_path: Path) -> None:
    """A download that broke off is no shorter data set."""
    folder = _amazon_json(tmp_path / "in")
    file = folder / "reviews_Books_5.json.gz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InvalidData, match=r"reviews_Books_5\.json\.gz, line \d+: the file is cut off"):
        LOADERS["amazon"](folder, tmp_path / "out")


def test_food_and_kitchen_name_the_line_of_a_bad_pair(tmp_path: Path) -> None:
    """Neither a missing bar nor an item outside of the map passes."""
    folder = tmp_path / "in"
    _write(folder / "map_item_50.txt", '{"A": [1, 0], "B": [2, 1]}')
    for bad in ("1 1|99 2:99", "1 3|99"):
        _write(folder / "afk_50_preprocessed.txt", "0 1|99 2|99", bad)
        with pytest.raises(InvalidData, match=r"afk_50_preprocessed\.txt, line 2:"):
            LOADERS["food-kitchen"](folder, tmp_path / "out")


def test_a_file_that_is_no_archive_or_parquet_is_named(tmp_path: Path) -> None:
    """Wrong files are refused, not guessed at."""
    _write(tmp_path / "sequences.npz", "not an archive")
    _write(tmp_path / "behaviors.parquet", "not parquet")
    _write(tmp_path / "history.parquet", "not parquet")
    with pytest.raises(InvalidData, match=r"sequences\.npz"):
        LOADERS["kuairand-sequences"](tmp_path, tmp_path / "out")
    with pytest.raises(InvalidData, match=r"behaviors\.parquet"):
        LOADERS["ebnerd"](tmp_path, tmp_path / "out")


@pytest.mark.parametrize("name", sorted(LOADERS))
def test_a_folder_without_the_files_is_refused_with_what_was_sought(name: str, tmp_path: Path) -> None:
    """Every loader says what it looked for and where."""
    (tmp_path / "in").mkdir()
    with pytest.raises(DomainFault, match=r"in\b"):
        LOADERS[name](tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"targets": ("film",)}, "no domain 'film'"),
        ({"sources": ("music",)}, "both source and target"),
        ({"targets": ()}, "at least one target"),
    ],
)
def test_roles_that_make_no_sense_are_refused(options: dict, said: str, tmp_path: Path) -> None:
    """Unknown names, one domain in both roles, nothing to launch."""
    with pytest.raises(DomainFault, match=said):
        LOADERS["douban"](_douban(tmp_path / "in"), tmp_path / "out", **options)
