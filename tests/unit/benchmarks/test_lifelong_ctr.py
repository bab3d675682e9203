"""The lifelong benchmark on made sequences: rows made of positives, nothing of the future, a table that goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.baselines import LIFELONG, SELF_SUPERVISED
from benchmarks.item_vectors import item_vectors
from benchmarks.lifelong_ctr import FOLDER, Given, before, measure, methods, open_task, prepare
from benchmarks.lifelong_networks import networks
from benchmarks.logged_clicks import DAY_US, TAUGHT_DAYS, cut
from benchmarks.results_table import Task
from benchmarks.sampled_negatives import NEVER, TESTED, draw
from domains.errors import InvalidData
from orchestrator.data.batches import Examples
from orchestrator.data.dataset import Workspace

CODES = np.array([0, 1, 4, 7, 8, 9, 11])
PER_CODE = 30


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sequences.npz: users of two tastes, every item of one code."""
    folder = tmp_path_factory.mktemp("lifelong")
    (folder / FOLDER).mkdir()
    random = np.random.default_rng(0)
    arrays = {}
    for part, users in {"training": 30, "evaluation": 10, "testing": 10}.items():
        place = random.choice(len(CODES), (users, 70), p=[0.3, 0.05, 0.15, 0.05, 0.05, 0.35, 0.05])
        taste = random.integers(0, 2, (users, 1))
        item = place * PER_CODE + taste * (PER_CODE // 2) + random.integers(0, PER_CODE // 2, place.shape)
        arrays |= {f"{part}_item": item.astype(np.int32), f"{part}_tab": CODES[place].astype(np.int8)}
    np.savez(folder / FOLDER / "sequences.npz", **arrays)
    return folder


@pytest.fixture(scope="module")
def workspace(made: Path) -> Workspace:
    return prepare(made, made / "out")


@pytest.fixture(scope="module")
def task(workspace: Workspace) -> Task:
    return open_task(workspace, "matched", 0, people=40)


def steps(users: int, each: int, items: int) -> Examples:
    """Steps of users who take random items."""
    random = np.random.default_rng(1)
    rows = users * each
    return Examples(
        domain="d",
        number=1,
        user=np.repeat(np.arange(1, users + 1), each),
        item=random.integers(1, items, rows),
        time_us=np.tile(np.arange(each), users),
        label=np.ones(rows, np.float32),
        value=np.ones(rows, np.float32),
        context=np.zeros((rows, 0), np.int64),
        weight=np.ones(rows, np.float32),
        offset=np.zeros(rows, np.float32),
    )


@pytest.mark.parametrize("negatives", ["matched", "uniform"])
def test_rows_go_forward_in_time_and_negatives_are_what_the_user_had_not_taken(negatives: str) -> None:
    """Train before validation before test, for every user; a step's rows share its moment."""
    taken = steps(40, 9, 50)
    parts = draw(taken, catalogue=50, negatives=negatives, per_positive=3, taught=2, seed=0)  # type: ignore[arg-type]
    for user in range(1, 41):
        times = [part.time_us[part.user == user] for part in (parts.train, parts.validation, parts.test)]
        assert set(times[0]) == {4, 5}
        assert set(times[1]) == {6}
        assert set(times[2]) == {7, 8}
        assert parts.first_us[user] == 4
        assert parts.first_test_us[user] == 9 - TESTED
        had = set(taken.item[taken.user == user])
        mine = parts.test.user == user
        assert had.isdisjoint(parts.test.item[mine & (parts.test.label == 0)])
        early = set(taken.item[(taken.user == user) & (taken.time_us < 6)])
        assert early.isdisjoint(parts.train.item[(parts.train.user == user) & (parts.train.label == 0)])


def test_matched_negatives_come_from_the_positives_of_their_own_part() -> None:
    """So an item that only the test knows gives nothing away."""
    parts = draw(steps(40, 9, 2000), catalogue=2000, negatives="matched", per_positive=3, taught=2, seed=0)
    for part in (parts.train, parts.validation, parts.test):
        assert set(part.item[part.label == 0]) <= set(part.item[part.label == 1])
        assert (part.label == 1).mean() == pytest.approx(0.25, abs=0.01)


def test_a_seed_draws_users_and_negatives() -> None:
    """The same seed the same rows, another seed others."""
    one, again, other = (
        draw(steps(40, 9, 200), catalogue=200, negatives="matched", per_positive=2, taught=2, seed=seed, people=20)
        for seed in (3, 3, 4)
    )
    assert np.array_equal(one.test.item, again.test.item)
    assert len(np.unique(one.test.user)) == len(np.unique(other.test.user)) == 20
    assert not np.array_equal(np.unique(one.test.user), np.unique(other.test.user))


def test_item_vectors_lie_near_where_the_same_people_took_both() -> None:
    """Unit vectors; zero for an item that nobody took."""
    user = np.repeat(np.arange(40), 6)
    item = np.concatenate([np.random.default_rng(u).permutation(10)[:6] + 10 * (u % 2) for u in range(40)])
    vectors = item_vectors(user, item, 21, 4, seed=0)
    assert np.linalg.norm(vectors[:20], axis=1) == pytest.approx(1, abs=1e-5)
    assert not vectors[20].any()
    near = vectors[:10] @ vectors[:10].T
    assert near.mean() > (vectors[:10] @ vectors[10:20].T).mean() + 0.5


def test_a_case_tells_no_answers_and_nothing_of_the_future(task: Task) -> None:
    """Asked rows have no label, come after all that teaches of their user, and see what lies before them."""
    given: Given = task.given
    assert np.isnan(given.asked.label).all()
    assert not given.asked.value.any()
    assert given.asked.offset.max() == 0
    rows = given.setup.training_set
    for part, _ in [*rows.train, *rows.validation]:
        assert part.time_us.max() < NEVER
        for user in np.unique(given.asked.user):
            mine = part.user == user
            assert not mine.any() or part.time_us[mine].max() < given.asked.time_us[given.asked.user == user].min()
    batch = given.setup.batch_builder.batch(given.asked, given.setup.slot)
    for events in (batch.lifelong, batch.short_target):
        assert events is not None
        shown = events.time[events.row].masked_fill(~events.mask(), -1)
        assert bool((shown.amax(1) < batch.time).all())


def test_what_is_counted_was_taken_before_a_users_own_moment() -> None:
    """Neither counts nor vectors know a tested step."""
    moment = np.full(3, 35_000_000)
    moment[1] = NEVER
    time_us, user = np.array([1, 34_999_999, 35_000_000, 50_000_000]), np.array([2, 2, 2, 1])
    kept = before(user, np.arange(4), time_us, moment)
    assert kept.item.tolist() == [0, 1, 3]


def test_every_claim_has_a_row() -> None:
    """All lifelong baselines with and without CRP, every self-supervised loss that items without features allow."""
    names = [name for one in methods() for name in one.names]
    assert len(names) == len(set(names))
    for baseline in LIFELONG:
        assert {baseline, f"{baseline} + CRP"} <= set(names)
    assert {f"LCN + {loss}" for loss in SELF_SUPERVISED if loss != "SSL"} <= set(names)
    assert len({one.fingerprint for one in methods()}) == len(names)


@pytest.mark.slow
def test_a_stopped_table_goes_on_and_judges_every_kind_of_row(made: Path, workspace: Workspace) -> None:
    """One network of each kind; a second run trains none anew."""
    rows = ["co-occurrence", "item vectors alone", "both + CRP", "LCN + CRP, w/o LAP", "SIM Soft + CRP", "LCN + CLRec"]
    out = made / "out"
    table = measure(made, out, seeds=1, models=rows, people=40)
    assert {result.model for result in table.results()} == set(rows)
    assert all(0 <= result.metrics["auc"] <= 1 for result in table.results())
    before = (out / "results.jsonl").read_bytes()
    measure(made, out, seeds=1, models=rows, people=40)
    assert (out / "results.jsonl").read_bytes() == before
    page = (out / "lifelong-ctr.md").read_text()
    assert "both + CRP" in page
    assert "Consistency" in page


def test_networks_start_from_the_given_vectors(task: Task) -> None:
    """Ours and a baseline alike."""
    from benchmarks.lifelong_networks import built

    setup = task.given.setup
    own = setup.training_set.encoder.source_rows_total
    known = np.abs(setup.vectors).sum(1) > 0
    ranker = built(networks()["dacdr+lcn"], setup, setup.recipe)
    baseline = built(networks()["TWIN"], setup, setup.recipe)
    mine = np.concatenate(
        [ranker.embeddings.source_items.rows.weight.detach(), ranker.owned(setup.slot).items.rows.weight.detach()]  # type: ignore
    )
    assert len(mine) == len(setup.vectors)
    assert own < len(mine)
    for table in (mine, baseline.inputs.items.rows.weight.detach().numpy()):  # type: ignore[union-attr]
        assert np.allclose(table[known], setup.vectors[known])


def test_logged_impressions_are_cut_by_days() -> None:
    """The last day is the test, the day before chooses, six teach; what is older only fills histories."""
    random = np.random.default_rng(2)
    logged = replace(steps(30, 40, 50), time_us=random.integers(0, 10 * DAY_US, 1200), label=random.random(1200) < 0.2)
    parts = cut(logged, seed=0, people=20)
    end = logged.time_us.max()
    days = [(end - part.time_us) // DAY_US for part in (parts.test, parts.validation, parts.train)]
    assert [(int(age.min()), int(age.max())) for age in days] == [(0, 0), (1, 1), (2, 1 + TAUGHT_DAYS)]
    assert len(np.unique(parts.train.user)) <= 20
    for user in np.unique(parts.test.user):
        assert parts.first_test_us[user] == parts.test.time_us[parts.test.user == user].min()
        assert parts.first_us[user] <= parts.first_test_us[user]
    assert set(np.unique(parts.test.user)) != set(np.unique(cut(logged, seed=1, people=20).test.user))


@pytest.mark.slow
def test_original_impressions_fill_the_same_table(tmp_path: Path) -> None:
    """Taobao's files as they come, in small: baselines and ours, with clicks and non-clicks as logged."""
    folder, random = tmp_path / "taobao_ads", np.random.default_rng(3)
    folder.mkdir()
    last, people, ads = 1_494_700_000, 40, 30
    header = "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,occupation"
    shown = [
        (random.integers(1, people), last - int(random.integers(0, 8 * 86_400)), random.integers(0, ads))
        for _ in range(900)
    ]
    files = {
        "ad_feature": [
            "adgroup_id,cate_id,campaign_id,customer,brand,price",
            *(f"{ad},{ad},1,1,{ad % 7},{ad}.0" for ad in range(ads)),
        ],
        "user_profile": [header, *(f"{user},1,2,{user % 2},3,,3,0" for user in range(1, people))],
        "raw_sample": [
            "user,time_stamp,adgroup_id,pid,nonclk,clk",
            *(f"{user},{at},{ad},430548_1007,{1 - (user + ad) % 2},{(user + ad) % 2}" for user, at, ad in shown),
        ],
        "behavior_log": [
            "user,time_stamp,btag,cate,brand",
            *(
                f"{random.integers(1, people)},{last - random.integers(0, 20 * 86_400)},pv,{6000 + item},{item % 5}"
                for item in random.integers(0, 40, 1500)
            ),
        ],
    }
    for name, lines in files.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    rows = ["popularity", "item vectors alone", "dacdr+lcn", "TWIN"]
    table = measure(tmp_path, tmp_path / "out", settings=["taobao-ads"], seeds=1, models=rows)
    assert table.settings() == ["taobao-ads"]
    assert {result.model for result in table.results()} == set(rows)
    assert all(0 <= result.metrics["auc"] <= 1 for result in table.results())
    with pytest.raises(InvalidData, match="log_standard"):
        measure(tmp_path, tmp_path / "out", settings=["kuairand"], seeds=1)
