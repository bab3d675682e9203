"""The public data sets that lie beside the checkout become specs and rows that ingest takes whole."""

from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.integration.public_loaders.fakes import assert_ingests_whole, distinct, load, rows_of


@pytest.mark.real_data
def test_douban_has_its_published_counts_and_shared_users(public_data: Path, tmp_path: Path) -> None:
    """Book 96,041 ratings and music 69,709; 1,566 users rate in both."""
    prepared = load("douban", public_data / "douban", tmp_path)
    book, music = prepared["douban-book"], prepared["douban-music"]
    assert (book.rows, music.rows) == (96_041, 69_709)
    assert (book.spec.role, music.spec.role, music.spec.sources) == ("source", "target", ("douban-book",))
    assert len(distinct(book, "user_id")) == 2_110
    assert len(distinct(book, "item_id")) == 6_777
    assert len(distinct(music, "user_id")) == 1_672
    assert len(distinct(music, "item_id")) == 5_567
    assert len(distinct(book, "user_id") & distinct(music, "user_id")) == 1_566
    assert_ingests_whole(music, tmp_path / "data", 1)


@pytest.mark.real_data
def test_douban_can_be_turned_round_and_taken_unfiltered(public_data: Path, tmp_path: Path) -> None:
    """The direction of transfer and the cut are options; clicks are ratings above 3."""
    prepared = load("douban", public_data / "douban", tmp_path, targets=("book",), task="ctr", unfiltered=True)
    assert prepared["douban-book"].rows == 227_251
    assert prepared["douban-book"].spec.sources == ("douban-music",)
    assert prepared["douban-book"].spec.interactions.positive_above == 3


@pytest.mark.real_data
def test_amazon_heterogeneous_items_belong_to_their_first_code(public_data: Path, tmp_path: Path) -> None:
    """Code 1 has 180,248 ratings, 2 has 13,940, 3 has 817; 3,875 users rate in both 1 and 2."""
    folder = public_data / "amazon_movie_tv"
    prepared = load("amazon-heterogeneous", folder, tmp_path, sources=("1", "3"))
    one, two, three = (prepared[f"amazon-category-{code}"] for code in (1, 2, 3))
    assert (one.rows, two.rows, three.rows) == (180_248, 13_940, 817)
    assert len(distinct(one, "user_id") & distinct(two, "user_id")) == 3_875
    assert all(row["brand"] is not None for row in rows_of(two, "items"))
    assert_ingests_whole(two, tmp_path / "data", 1)


@pytest.mark.real_data
def test_food_and_kitchen_share_all_users_and_shuffle_the_ties_of_a_day(public_data: Path, tmp_path: Path) -> None:
    """83,663 + 89,885 rows of 7,144 users; within a day ascending ids no longer give the order away."""
    prepared = load("food-kitchen", public_data / "food_kitchen", tmp_path)
    food, kitchen = prepared["amazon-food"], prepared["amazon-kitchen"]
    assert (food.rows, kitchen.rows) == (83_663, 89_885)
    assert len(distinct(food, "user_id")) == len(distinct(kitchen, "user_id")) == 7_144
    assert (len(rows_of(food, "items")), len(rows_of(kitchen, "items"))) == (11_837, 16_258)
    table = pq.read_table(food.interactions)
    user, item, ts = (table[name].to_numpy().astype(np.int64) for name in ("user_id", "item_id", "ts"))
    same_user = user[1:] == user[:-1]
    assert (ts[1:] >= ts[:-1])[same_user].all()
    ties = same_user & (ts[1:] == ts[:-1])
    assert (item[1:] > item[:-1])[ties].mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.real_data
def test_game_and_video_share_only_the_low_user_numbers(public_data: Path, tmp_path: Path) -> None:
    """Game 157,721 rows and 12,319 items, Video 158,984 and 8,751; 212 and 216 cold test users."""
    prepared = load("game-video", public_data / "game_video", tmp_path)
    game, video = prepared["amazon-game"], prepared["amazon-video"]
    assert (game.rows, video.rows) == (157_721, 158_984)
    assert (len(distinct(game, "item_id")), len(distinct(video, "item_id"))) == (12_319, 8_751)
    shared = distinct(game, "user_id") & distinct(video, "user_id")
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
    prepared = load("kuairand-sequences", public_data / "kuairand_sequences", tmp_path)
    users: set[str] = set()
    for code in (9, 4):
        domain = prepared[f"kuairand-code-{code}"]
        assert domain.rows + domain.left_out["unknown item"] == (tab == code).sum()
        users |= distinct(domain, "user_id")
    assert len(users) <= 5_101
    table = pq.read_table(prepared["kuairand-code-9"].interactions, filters=[("user_id", "==", "training-1")])
    assert table["item_id"].to_pylist() == [str(item) for item in second_user]
    assert (np.diff(table["ts"].to_numpy()) > 0).all()


@pytest.mark.real_data
def test_ebnerd_impressions_become_one_row_per_shown_article(public_data: Path, tmp_path: Path) -> None:
    """10,848 exposures; as many clicks as the impressions list."""
    folder = public_data / "ebnerd_fixture"
    prepared = load("ebnerd", folder, tmp_path)
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
    assert sum(row["click"] for row in rows_of(front)) == clicks
    assert front.spec.sources == ("ebnerd-reading",)
    assert prepared["ebnerd-reading"].rows > 0
