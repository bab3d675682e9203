"""What blocks a launch and what the sources bring is said before any training."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from domains.errors import NotEnoughData
from domains.events.readiness import Observed, Readiness, assess, judge, stability_index
from domains.events.rehearsal import rehearse
from domains.events.splits import SPLIT_SEED, cold_users
from domains.ingestion.ingest import ingest
from domains.simulation.simulator import SimulatorConfig, simulate
from domains.spec import DomainSpec

USERS = 401  # 400 and the unknown one


def _spec(**changed: object) -> DomainSpec:
    declared: dict = {
        "name": "live",
        "role": "target",
        "task": "ctr",
        "owner": "team-live",
        "sources": ["video"],
        "interactions": {"user": "user_id", "item": "item_id", "time": "ts", "label": "click"},
        "items": {"id": "item_id", "features": {"category": "category"}},
        "gate": {"minimum_cold_users": 30, "cold_share": 0.2},
    }
    return DomainSpec.from_mapping(declared | changed)


def _observed(users: range = range(1, 201), *, each: int = 2, prior: int = 0, clicks: float = 0.3) -> Observed:
    """A domain in which each of ``users`` has ``each`` events on two items."""
    of_user, before = np.zeros(USERS, dtype=np.int64), np.zeros(USERS, dtype=np.int64)
    of_user[users.start : users.stop], before[users.start : users.stop] = each, prior
    events = each * len(users)
    return Observed(
        events_of_user=of_user,
        prior_events=before,
        events_of_item=np.array([0, events // 2, events - events // 2]),
        label=np.array([0.0, 1.0]),
        label_events=np.array([events - round(events * clicks), round(events * clicks)]),
        item_features={"category": np.array([None, "sport", "news"], dtype=object)},
    )


TARGET = _observed()
VIDEO = _observed(range(51, 351), each=5, prior=5)


def _judged(target: Observed = TARGET, video: Observed = VIDEO, **changed: object) -> Readiness:
    return judge(_spec(**changed), target, {"video": video})


def test_a_domain_with_enough_of_everything_is_ready() -> None:
    """Nothing is missing, and the overlap is counted over users."""
    found = _judged()
    assert found.ready
    assert found.missing == []
    assert (found.events, found.users, found.items) == (400, 200, 2)
    (video,) = found.sources
    assert (video.users, video.shared_users, video.shared_share) == (300, 150, 0.75)
    assert (found.users_with_history, found.waiting_users) == (150, 150)
    assert set(found.history_quantiles.values()) == {5.0}


EMPTY = replace(
    TARGET,
    events_of_user=np.zeros(USERS, dtype=np.int64),
    events_of_item=np.zeros(3, dtype=np.int64),
    label=np.zeros(0),
    label_events=np.zeros(0, dtype=np.int64),
)


@pytest.mark.parametrize(
    ("target", "video", "said"),
    [
        (EMPTY, VIDEO, "no interactions yet"),
        (TARGET, EMPTY, "none of its source domains (video) has data"),
        (_observed(clicks=0.0), VIDEO, "the same label"),
        (_observed(clicks=1.0), VIDEO, "the same label"),
        (_observed(clicks=0.1), VIDEO, "only 40 clicks; at least 50"),
        (_observed(clicks=0.9), VIDEO, "only 40 events without a click"),
        (TARGET, _observed(range(191, 351), prior=5), "only 10 of its 200 users have source history"),
        (TARGET, _observed(range(51, 351), prior=0), "only 0 of its 200 users have source history"),
        (replace(TARGET, item_features=None), VIDEO, "no items file was given"),
    ],
)
def test_what_blocks_a_launch_is_said(target: Observed, video: Observed, said: str) -> None:
    """One reason each, as a sentence with the count."""
    found = _judged(target, video)
    assert not found.ready
    assert len(found.missing) == 1
    assert said in found.missing[0]


def test_the_need_for_cold_users_follows_the_gate() -> None:
    """30 cold users at a share of .2 take 150 users with history; at .1 they take 300."""
    assert _judged(gate={"minimum_cold_users": 30, "cold_share": 0.2}).ready
    assert "300 are needed" in _judged(gate={"minimum_cold_users": 30, "cold_share": 0.1}).missing[0]


def test_ratings_are_judged_as_ratings() -> None:
    """A hundred ratings that differ are enough; equal ones are not."""
    rating = {"task": "rating", "gate": {"metric": "mae"}}
    columns = {"user": "user_id", "item": "item_id", "time": "ts", "label": "stars", "label_range": [1, 5]}
    varied = replace(TARGET, label=np.array([3.0, 4.0]))
    assert _judged(varied, interactions=columns, **rating).ready
    equal = replace(TARGET, label=np.array([4.0]), label_events=np.array([400]))
    assert "all 400 ratings are the same" in _judged(equal, interactions=columns, **rating).missing[0]


def test_events_without_labels_block_a_target_and_not_a_source() -> None:
    """A log of views has one label by nature: histories are made of it, and nothing to tell apart."""
    all_positive = replace(TARGET, label=np.array([1.0]), label_events=np.array([400]))
    unlabelled = {"interactions": {"user": "user_id", "item": "item_id", "time": "ts"}}
    assert "each event is a positive" in _judged(all_positive, **unlabelled).missing[0]
    found = judge(_spec(role="source", sources=[], gate={}, **unlabelled), all_positive, {})
    assert found.ready
    assert "each event is a positive" in found.notes


def test_a_source_needs_data_but_no_source_of_its_own() -> None:
    """A source domain is ready once it has events with both labels."""
    found = judge(_spec(role="source", sources=[], gate={}), TARGET, {})
    assert found.ready
    assert found.sources == []


def test_label_and_feature_shift_are_measured_by_events() -> None:
    """The mean label differs by .2; categories in equal shares do not shift, in unequal shares they do."""
    tilted = replace(VIDEO, label_events=np.array([1350, 150]), events_of_item=np.array([0, 1400, 100]))
    alike, shifted = _judged().sources[0], _judged(video=tilted).sources[0]
    assert shifted.label_shift == pytest.approx(0.2)
    assert alike.feature_shift["category"] == pytest.approx(0, abs=0.01)
    assert shifted.feature_shift["category"] > 0.25
    assert any("category is strongly shifted" in note for note in _judged(video=tilted).notes)


def test_numeric_features_shift_by_the_sources_deciles_and_missing_values_count() -> None:
    """The same numbers do not shift; moved or missing ones do."""
    rng = np.random.default_rng(0)
    price, events = rng.normal(size=1001), np.full(1001, 3)

    def shift(here: np.ndarray) -> float:
        def with_prices(observed: Observed, values: np.ndarray) -> Observed:
            return replace(observed, events_of_item=events, item_features={"price": values})

        return _judged(with_prices(TARGET, here), with_prices(VIDEO, price)).sources[0].feature_shift["price"]

    assert shift(price) == pytest.approx(0, abs=1e-9)
    assert shift(rng.normal(size=1001)) < 0.1
    assert shift(price + 2) > 0.25
    assert shift(np.where(rng.random(1001) < 0.5, np.nan, price)) > 0.25


@given(arrays(np.int64, 6, elements=st.integers(0, 1000)), arrays(np.int64, 6, elements=st.integers(0, 1000)))
def test_the_stability_index_is_symmetric_never_negative_and_zero_for_equals(a: np.ndarray, b: np.ndarray) -> None:
    """Empty bins and empty histograms included."""
    assert stability_index(a, b) == pytest.approx(stability_index(b, a))
    assert stability_index(a, b) >= 0
    assert stability_index(a, a) == 0
    assert np.isfinite(stability_index(a, b))


def test_the_answer_is_plain_json() -> None:
    """It is stored with a run and shown by the UI."""
    told = json.loads(json.dumps(_judged().as_dict()))
    assert told["ready"] is True
    assert told["sources"][0]["name"] == "video"


def test_ingested_domains_are_assessed_from_disk(tmp_path: Path) -> None:
    """Counts agree with the files: users shared, and history only from before a user's first event in the target."""
    written = {d.spec.name: d for d in simulate(SimulatorConfig(size="tiny"), tmp_path / "simulated")}
    live = written["live"]
    assert not assess(live.spec, tmp_path / "data").ready
    for number, name in enumerate(("video", "shop", "live"), start=1):
        one = written[name]
        ingest(
            one.spec,
            number=number,
            interactions=[one.interactions],
            items=one.items,
            users=one.users,
            data_dir=tmp_path / "data",
        )
    found = assess(live.spec, tmp_path / "data")

    rows = {name: pq.read_table(written[name].interactions) for name in ("video", "shop", "live")}
    first = rows["live"].group_by("user_id").aggregate([("ts", "min")])
    sources = pa.concat_tables([rows["video"], rows["shop"]]).select(["user_id", "ts"])
    joined = sources.join(first, keys="user_id").to_pandas()
    counted = joined[joined.ts_min.isna() | (joined.ts < joined.ts_min)]
    here = set(first["user_id"].to_pylist())
    assert found.users == len(here)
    assert found.users_with_history == len(here & set(counted.user_id))
    assert found.waiting_users == len(set(joined.user_id) - here)
    assert found.history_quantiles["50%"] == counted.user_id.value_counts().quantile(0.5)
    video = next(source for source in found.sources if source.name == "video")
    assert video.shared_users == len(here & set(rows["video"]["user_id"].to_pylist()))
    assert {"category", "style", "minutes", "age_band"} <= video.feature_shift.keys()


def test_a_spec_that_names_no_source_borrows_from_those_there_are(tmp_path: Path) -> None:
    """The caller says which sources exist; a spec that names some takes only those."""
    written = {d.spec.name: d for d in simulate(SimulatorConfig(events=2_000), tmp_path / "simulated")}
    for number, name in enumerate(("video", "shop"), start=1):
        one = written[name]
        ingest(one.spec, number=number, interactions=[one.interactions], items=one.items, data_dir=tmp_path / "data")
    open_to_all = written["live"].spec.model_copy(update={"sources": ()})
    named = written["live"].spec.model_copy(update={"sources": ("shop",)})
    for spec, expected in ((open_to_all, ["video", "shop"]), (named, ["shop"])):
        found = assess(spec, tmp_path / "data", sources=["video", "shop"])
        assert [source.name for source in found.sources] == expected


DAY_US = 86_400_000_000


@st.composite
def _rows(draw: st.DrawFn) -> dict:
    """Rows of a target and the first times of users in its sources, from sound to hopeless."""
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    users, rows = draw(st.integers(2, 400)), draw(st.integers(1, 1_500))
    user = random.integers(1, users + 1, rows)
    days = draw(st.sampled_from([0, 1, 3, 60]))
    time_us = 1_700_000_000_000_000 + (random.integers(0, days + 1, rows) * DAY_US if days else np.zeros(rows, int))
    if draw(st.booleans()):  # users come for a while and leave
        time_us = time_us + user * DAY_US
    label = (random.random(rows) < draw(st.sampled_from([0.0, 0.02, 0.3, 1.0]))).astype(float)
    if draw(st.booleans()):  # clicks first, then what was not clicked
        label = (time_us <= np.quantile(time_us, draw(st.sampled_from([0.5, 0.8])))).astype(float)
    known = random.random(users + 1) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    first = np.where(known, draw(st.sampled_from([0, 1_700_000_000_000_000 + 10 * DAY_US])), np.iinfo(np.int64).max)
    return {"user": user, "time_us": time_us, "label": label, "first_source_us": first}


@given(_rows(), st.sampled_from([1, 5, 30]), st.sampled_from([0.1, 0.2, 0.6]), st.booleans())
def test_what_is_called_ready_can_be_split_taught_and_judged(
    rows: dict, fewest: int, share: float, timed: bool
) -> None:
    """A rehearsal that finds nothing missing is never followed by "only so many cold users", nor by one label."""
    columns = {"user": "u", "item": "i", "label": "y", **({"time": "t"} if timed else {})}
    spec = _spec(interactions=columns, gate={"minimum_cold_users": fewest, "cold_share": share})
    found = rehearse(spec, **rows)
    try:
        split = cold_users(
            rows["user"],
            rows["first_source_us"][rows["user"]] < rows["time_us"],
            rows["time_us"] if timed else None,
            share=share,
            validation_share=0.1,
            seed=SPLIT_SEED,
        )
    except NotEnoughData as fault:
        said = str(fault)
    else:
        said = None
    if said is not None:
        assert found.missing == [said]
        return
    judging = np.intersect1d(rows["user"][split.test], split.cold_users)
    assert found.cold_users == len(judging)
    launches = len(split.train) >= 50 and np.ptp(rows["label"][split.train]) > 0
    decides = len(judging) >= fewest and np.ptp(rows["label"][split.test]) > 0
    assert (found.missing == []) == (launches and decides)


def test_a_rehearsal_says_what_is_missing() -> None:
    """Users who leave before the last fifth of the time, labels in order, one time for all."""
    random = np.random.default_rng(0)
    user = np.sort(random.integers(1, 400, 4_000))
    rows = {
        "user": user,
        "time_us": 1_700_000_000_000_000 + np.arange(4_000) * DAY_US,
        "label": (random.random(4_000) < 0.3).astype(float),
        "first_source_us": np.zeros(401, np.int64),
    }
    leaving = rehearse(_spec(), **rows)
    assert "cold users would judge" in leaving.missing[0]
    assert "the gate asks for 30" in leaving.missing[0]
    ordered = rehearse(_spec(), **{**rows, "user": random.permutation(user), "label": np.repeat([1.0, 0.0], 2_000)})
    assert any("cold users who would judge have label 0" in sentence for sentence in ordered.missing)
    at_once = rehearse(_spec(), **{**rows, "time_us": np.full(4_000, 1_700_000_000_000_000)})
    assert at_once.missing == []
    assert "one time" in at_once.notes[0]
    never = rehearse(_spec(), **{**rows, "first_source_us": np.full(401, np.iinfo(np.int64).max)})
    assert "of the 0 users with source history" in never.missing[0]
    by_user = _spec(gate={"metric": "gauc"})
    mixed = random.permutation(user)
    one_each = rehearse(by_user, **{**rows, "user": mixed, "label": (mixed % 3 == 0).astype(float)})
    assert any("gauc is not defined" in sentence for sentence in one_each.missing)
