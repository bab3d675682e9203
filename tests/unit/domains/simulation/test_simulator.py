"""The simulated marketplace: bit-reproducible, of known truth, with cold users and one source that lies."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from domains.simulation import simulator
from domains.simulation.marketplace import MARKETPLACE, SimulatorConfig
from domains.simulation.simulator import SimulatedDomain, best_reachable_auc, simulate
from domains.spec import DomainSpec


@pytest.fixture(scope="module")
def marketplace(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SimulatedDomain]:
    """One tiny marketplace, by domain name."""
    written = simulate(SimulatorConfig(size="tiny", seed=7), tmp_path_factory.mktemp("tiny"))
    return {domain.spec.name: domain for domain in written}


def _hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.*"))
    }


def _column(path: Path, name: str) -> np.ndarray:
    return pq.read_table(path, columns=[name])[name].to_numpy(zero_copy_only=False)


def _observed_auc(probability: np.ndarray, clicked: np.ndarray) -> float:
    order = probability[clicked == 1][:, None] - probability[clicked == 0][None, :]
    return float((order > 0).mean() + (order == 0).mean() / 2)


def test_the_same_seed_writes_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    """Every file is equal by hash, so a report can name a data set by its config alone."""
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        simulate(SimulatorConfig(events=2_000, seed=seed), tmp_path / name)
    first, again, other = (_hashes(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    rows = {name for name in first if "interactions" in name or "truth" in name}
    assert len(rows) == 2 * len(MARKETPLACE)
    assert all(first[name] != other[name] for name in rows)


def test_a_domain_keeps_its_items_and_tastes_when_another_domain_is_added(tmp_path: Path) -> None:
    """Each part draws from a stream of its own name."""
    config = SimulatorConfig(events=5_000)
    alone = replace(
        config, events=2_000, users=config.total_users, domains=(replace(MARKETPLACE[0], events_share=1.0),)
    )
    simulate(config, tmp_path / "all")
    simulate(alone, tmp_path / "alone")
    assert _hashes(tmp_path / "all" / "video") == _hashes(tmp_path / "alone" / "video")


def test_chunks_bound_the_memory_and_keep_time_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that span many chunks are as many as asked for, sorted by time, inside the simulated days."""
    monkeypatch.setattr(simulator, "CHUNK_EVENTS", 300)
    config = SimulatorConfig(events=10_000)
    written = simulate(config, tmp_path)
    assert sum(domain.events for domain in written) == 10_000
    for domain in written:
        ts = _column(domain.interactions, "ts")
        assert (np.diff(ts) >= 0).all()
        assert config.start_us <= ts[0]
        assert ts[-1] < config.start_us + config.days * simulator.DAY_US


def test_each_spec_is_a_valid_page_that_names_the_columns_of_its_files(marketplace: dict[str, SimulatedDomain]) -> None:
    """What the spec declares is in the files, and the YAML reads back equal."""
    for domain in marketplace.values():
        assert DomainSpec.from_yaml(domain.directory / "spec.yaml") == domain.spec
        columns = domain.spec.interactions
        declared = {columns.user, columns.item, columns.time, columns.label, columns.action, *columns.context}
        assert declared == set(pq.read_schema(domain.interactions).names)
        assert domain.spec.items is not None
        assert domain.spec.users is not None
        items, users = pyarrow.csv.read_csv(domain.items), pyarrow.csv.read_csv(domain.users)
        assert set(items.column_names) == {domain.spec.items.id, *domain.spec.items.features}
        assert set(users.column_names) == {domain.spec.users.id, *domain.spec.users.features}


def test_there_are_honest_sources_a_lying_one_and_targets_that_borrow(marketplace: dict[str, SimulatedDomain]) -> None:
    """Sources video, shop and lies; targets live, grocery and reading, each with its own domain features."""
    roles = {name: domain.spec.role for name, domain in marketplace.items()}
    assert [name for name, role in roles.items() if role == "source"] == ["video", "shop", "lies"]
    targets = [domain.spec for domain in marketplace.values() if domain.spec.role == "target"]
    assert [spec.name for spec in targets] == ["live", "grocery", "reading"]
    assert all(set(spec.sources) <= set(roles) and spec.sources for spec in targets)
    assert len({tuple(domain.spec.domain_features.items()) for domain in marketplace.values()}) == len(roles)


def test_every_item_and_user_of_the_rows_is_in_the_catalogue(marketplace: dict[str, SimulatedDomain]) -> None:
    """No row names an id that its files do not know, and truth stands row by row beside the interactions."""
    for domain in marketplace.values():
        rows, truth = pq.read_table(domain.interactions), pq.read_table(domain.truth)
        for name, catalogue in (("item_id", domain.items), ("user_id", domain.users)):
            known = set(pyarrow.csv.read_csv(catalogue)[name].to_pylist())
            assert set(pc.unique(rows[name]).to_pylist()) <= known
        for name in ("user_id", "item_id", "ts"):
            assert rows[name].equals(truth[name])


def test_clicks_follow_their_written_probability_in_honest_domains_only(
    marketplace: dict[str, SimulatedDomain],
) -> None:
    """The truth ranks an honest domain's clicks as well as it can; the lying source ranks them backwards."""
    for name, domain in marketplace.items():
        probability, clicked = _column(domain.truth, "probability"), _column(domain.interactions, "click")
        reached = _observed_auc(probability, clicked)
        if name == "lies":
            assert reached < 0.45
        else:
            assert reached == pytest.approx(best_reachable_auc(probability), abs=0.04)
            assert clicked.mean() == pytest.approx(probability.mean(), abs=0.03)


def test_the_liar_cannot_be_told_by_its_click_rate(marketplace: dict[str, SimulatedDomain]) -> None:
    """Taste is reversed around the same bias, so only what follows taste gives it away."""
    rates = {name: _column(domain.interactions, "click").mean() for name, domain in marketplace.items()}
    honest = [rate for name, rate in rates.items() if name != "lies"]
    assert min(honest) - 0.1 < rates["lies"] < max(honest) + 0.1


def test_targets_have_cold_users_with_source_history(marketplace: dict[str, SimulatedDomain]) -> None:
    """A good part of a target's users arrive in the last fifth of time, and bring source events of before."""
    config = SimulatorConfig(size="tiny", seed=7)
    arrival = config.start_us + int(0.8 * config.days * simulator.DAY_US)
    shopped = set(_column(marketplace["video"].interactions, "user_id"))
    for name in ("live", "grocery", "reading"):
        users, ts = (_column(marketplace[name].interactions, column) for column in ("user_id", "ts"))
        cold = set(users) - set(users[ts < arrival])
        assert len(cold) > 0.25 * len(set(users))
        assert len(cold & shopped) > 0.8 * len(cold)
        assert ts[0] >= config.start_us + int(0.5 * config.days * simulator.DAY_US)


def test_items_and_users_have_a_popularity_tail(marketplace: dict[str, SimulatedDomain]) -> None:
    """The busiest tenth holds far more than a tenth of the events."""
    for column in ("item_id", "user_id"):
        count = np.sort(np.unique(_column(marketplace["video"].interactions, column), return_counts=True)[1])[::-1]
        assert count[: len(count) // 10].sum() > 0.25 * count.sum()


def test_the_catalogue_shows_taste_but_not_perfectly(tmp_path: Path) -> None:
    """A user's click rate in a category at the source foretells clicks in that category at a target, with noise."""
    written = {d.spec.name: d for d in simulate(SimulatorConfig(events=100_000), tmp_path)}
    rates = {}
    for name in ("video", "live"):
        rows, items = pq.read_table(written[name].interactions), pyarrow.csv.read_csv(written[name].items)
        rows = rows.join(items.select(["item_id", "category"]), keys="item_id")
        grouped = rows.group_by(["user_id", "category"]).aggregate([("click", "mean"), ("click", "count")])
        grouped = grouped.filter(pc.greater_equal(grouped["click_count"], 4)).drop_columns("click_count")
        rates[name] = grouped.rename_columns(["user_id", "category", name])
    both = rates["video"].join(rates["live"], keys=["user_id", "category"], join_type="inner")
    correlation = np.corrcoef(both["video"].to_numpy(), both["live"].to_numpy())[0, 1]
    assert 0.1 < correlation < 0.8


def test_best_reachable_auc_is_that_of_a_hand_count() -> None:
    """Rows .2 and .8: pairs weigh .8 * .8 right and .2 * .2 wrong, and a row against itself is a tie."""
    right, wrong, tie = 0.8 * 0.8, 0.2 * 0.2, 0.2 * 0.8 * 2
    assert best_reachable_auc(np.array([0.2, 0.8])) == pytest.approx((right + tie / 2) / (right + wrong + tie))
    assert best_reachable_auc(np.full(5, 0.3)) == pytest.approx(0.5)


def test_the_best_reachable_auc_leaves_room_above_chance_and_below_certainty(
    marketplace: dict[str, SimulatedDomain],
) -> None:
    """Clicks are as hard to foretell as real ones."""
    for domain in marketplace.values():
        assert 0.72 < best_reachable_auc(_column(domain.truth, "probability")) < 0.85


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"size": "huge"}, "unknown size"), ({"events": 10}, "at least 1,000"), ({"latent": 7}, "even")],
)
def test_a_config_that_makes_no_sense_is_refused(wrong: dict, said: str) -> None:
    """Sizes must be known or given, and large enough to hold every domain."""
    with pytest.raises(ValueError, match=said):
        SimulatorConfig(**wrong)
