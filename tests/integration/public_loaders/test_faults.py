"""Public files that are not as their format says are refused with file and line."""

from pathlib import Path

import pytest

from domains.errors import DomainFault, InvalidData
from domains.public import LOADERS
from tests.integration.public_loaders.fakes import (
    ali_ccp,
    amazon_json,
    douban,
    kuairand,
    movielens,
    taobao_ads,
    write_lines,
)

MADE_UP = {
    "ali-ccp": ali_ccp,
    "amazon": amazon_json,
    "douban": douban,
    "kuairand": kuairand,
    "movielens": movielens,
    "taobao-ads": taobao_ads,
}


def _break_line(file: Path, number: int, text: str) -> None:
    lines = file.read_text(encoding="latin-1").splitlines()
    lines[number - 1] = text
    write_lines(file, *lines, encoding="latin-1")


@pytest.mark.parametrize(
    ("name", "file", "line", "text"),
    [
        ("douban", "music_ratings.dat", 31, "7\tmany\t4"),
        ("douban", "book_ratings.dat", 12, "7\t4"),
        ("movielens", "ratings.dat", 3, "2::3::good::978298413"),
        ("kuairand", "data/log_standard_4_08_to_4_21_1k.csv", 1, "user_id,video_id,time_ms"),
        ("taobao-ads", "ad_feature.csv", 3, "101,none,9,9,NULL,20.0"),
        ("taobao-ads", "behavior_log.csv", 4, "2,1493741627,pv"),
        ("ali-ccp", "sample_skeleton_train.csv", 2, "2,maybe,0,c1,1,205\x0251\x031.0"),
        ("ali-ccp", "common_features_test.csv", 1, "c3,2"),
        ("amazon", "CDs_and_Vinyl_5.json", 1, '{"reviewerID": "A1", "asin":'),
        ("amazon", "CDs_and_Vinyl_5.json", 1, '{"reviewerID": "A1", "asin": "B", "overall": 5}'),
        ("amazon", "meta_Books.json", 1, "{'asin': '0000013714', 'price': }"),
    ],
)
def test_a_malformed_line_is_named_with_its_file(name: str, file: str, line: int, text: str, tmp_path: Path) -> None:
    """A person finds the place at once."""
    folder = MADE_UP[name](tmp_path / "in")
    _break_line(folder / file, line, text)
    with pytest.raises(InvalidData) as refused:
        LOADERS[name](folder, tmp_path / "out")
    assert f"{Path(file).name}, line {line}:" in str(refused.value)
    assert refused.value.details["line"] == line
    assert not (tmp_path / "out" / ".staging").exists()


def test_a_cut_off_gzip_is_named(tmp_path: Path) -> None:
    """A download that broke off is no shorter data set."""
    folder = amazon_json(tmp_path / "in")
    file = folder / "reviews_Books_5.json.gz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InvalidData, match=r"reviews_Books_5\.json\.gz, line \d+: the file is cut off"):
        LOADERS["amazon"](folder, tmp_path / "out")


def test_food_and_kitchen_name_the_line_of_a_bad_pair(tmp_path: Path) -> None:
    """Neither a missing bar nor an item outside of the map passes."""
    folder = tmp_path / "in"
    write_lines(folder / "map_item_50.txt", '{"A": [1, 0], "B": [2, 1]}')
    for bad in ("1 1|99 2:99", "1 3|99"):
        write_lines(folder / "afk_50_preprocessed.txt", "0 1|99 2|99", bad)
        with pytest.raises(InvalidData, match=r"afk_50_preprocessed\.txt, line 2:"):
            LOADERS["food-kitchen"](folder, tmp_path / "out")


def test_a_file_that_is_no_archive_or_parquet_is_named(tmp_path: Path) -> None:
    """Wrong files are refused, not guessed at."""
    write_lines(tmp_path / "sequences.npz", "not an archive")
    write_lines(tmp_path / "behaviors.parquet", "not parquet")
    write_lines(tmp_path / "history.parquet", "not parquet")
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
        LOADERS["douban"](douban(tmp_path / "in"), tmp_path / "out", **options)
