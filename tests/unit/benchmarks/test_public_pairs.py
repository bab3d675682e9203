"""Benchmarks of clicks on original public files: offered where the files lie, tasks without test labels."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import multi_domain_ctr as clicks
from benchmarks.public_pairs import offered
from benchmarks.two_domains import PAIRS, pair_of
from domains.errors import InvalidData


def test_click_settings_are_offered_where_their_files_lie(amazon_reviews, tmp_path):
    """Metadata of a category is no review file of it, and a folder without any set is refused by name."""
    assert offered(amazon_reviews, clicks.SETTINGS, pair_of) == ["amazon-movies-and-cds"]
    with pytest.raises(InvalidData, match="douban/"):
        offered(tmp_path, clicks.SETTINGS, pair_of)


def test_original_reviews_become_clicks_of_two_domains(amazon_reviews, tmp_path):
    """Both categories are judged, cold and warm apart; the rows asked about hold no label."""
    task = clicks.open_task(amazon_reviews, tmp_path, "amazon-movies-and-cds", 0)
    assert {"movies", "CDs", "movies warm", "CDs warm"} <= set(task.segments)
    assert set(np.unique(task.label)) == {0.0, 1.0}
    assert (task.segments["movies"] ^ task.segments["CDs"]).all()


@pytest.mark.slow
def test_scenes_without_times_become_domains_that_lend_alike(tmp_path, monkeypatch):
    """Ali-CCP: clicks as logged, a domain for each scene under its own name, no history that holds an asked row."""
    folder, random = tmp_path / "ali_ccp", np.random.default_rng(0)
    folder.mkdir()
    (folder / "common_features_train.csv").write_text("".join(f"c{u},1,101\x02{u}\x031.0\n" for u in range(60)))
    (folder / "sample_skeleton_train.csv").write_text(
        "".join(
            f"{row},{int(random.random() < 0.3)},0,c{random.integers(60)},2,"
            f"205\x02{random.integers(40)}\x031.0\x01301\x02{10 + random.integers(2)}\x031.0\n"
            for row in range(2_600)
        )
    )
    whole = replace(PAIRS["ali-ccp-twentieth"], options={})
    monkeypatch.setitem(PAIRS, "ali-ccp-twentieth", whole)
    assert offered(tmp_path, clicks.SETTINGS, pair_of) == ["ali-ccp-twentieth"]
    task = clicks.open_task(tmp_path, tmp_path / "out", "ali-ccp-twentieth", 0)
    assert {f"ali-ccp-{scene} {kind}" for scene in (10, 11) for kind in ("warm", "cold")} <= set(task.segments)
    workspace, asked = task.given.workspace, task.given.asked[0]
    encoder = workspace.fit_encoder(task="ctr", slots=task.given.slots, lifelong=20, short=5, with_users=False)
    batch = workspace.batch_builder(encoder, task.given.slots).batch(asked, 0)
    events = int((batch.lifelong.stop - batch.lifelong.start).max())
    assert 0 < events <= max(np.bincount(np.concatenate([rows.user for rows in task.given.train])))
