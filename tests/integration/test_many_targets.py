"""Several targets over one catalogue: each has versions of its own, and a new shared model takes nothing from them."""

import random

import pyarrow.parquet as pq
import pytest

from deployment.engine.snapshot import Snapshot, SnapshotBuilder
from domains.spec import DomainSpec
from orchestrator import use_cases
from orchestrator.evaluation.report import ZeroShotReport

QUICK = {"epochs": 1, "fine_tune_epochs": 1, "width": 4, "lifelong": 10, "batch_size": 512, "fine_tune_batch_size": 512}
TWINS = ("feed", "search", "basket")
SURFACES = tuple(f"surface-{number:02d}" for number in range(50))
FEW_ROWS = 120


@pytest.fixture(scope="module")
def market(tmp_path_factory, simulated_market):
    """A tiny marketplace with targets over the items of "grocery": three alike are launched, fifty have few rows."""
    home = tmp_path_factory.mktemp("twins")
    settings, registry = simulated_market(home)
    declared = registry.domain("grocery").spec.model_dump(mode="json", exclude={"domain_features", "schedule"})
    files = {part: next((home / "simulated" / "grocery").glob(f"{part}.*")) for part in ("items", "users")}
    interactions = next((home / "simulated" / "grocery").glob("interactions.*"))
    for name in TWINS:
        spec = DomainSpec.from_mapping({**declared, "name": name})
        use_cases.register(spec, registry=registry, by="test")
        asked = {"registry": registry, "settings": settings, "by": "test"}
        use_cases.ingest_data(name, interactions=[interactions], **files, **asked)
    few = home / "few.parquet"
    pq.write_table(pq.read_table(interactions).slice(0, FEW_ROWS), few)
    for name in random.Random(1).sample(SURFACES, len(SURFACES)):
        use_cases.register(DomainSpec.from_mapping({**declared, "name": name}), registry=registry, by="test")
        use_cases.ingest_data(name, interactions=[few], **asked)
    use_cases.train_shared(registry=registry, settings=settings, by="test", **QUICK)
    for name in reversed(TWINS):
        use_cases.launch(name, registry=registry, settings=settings, by="test", **QUICK)
    return settings, registry


def test_every_twin_has_versions_of_its_own_in_any_order(market):
    """Equal weights under two names are two versions, and no launch fails for another's sake."""
    _, registry = market
    versions = [version for name in TWINS for version in registry.versions(name)]
    assert [version.domain for version in versions if version.level == "adapter"] == list(TWINS)
    assert len({version.id for version in versions}) == len(versions)
    assert all(ZeroShotReport.of(version) for version in versions if version.level == "zero_shot")


def test_fifty_targets_over_one_catalogue_are_registered_and_published(market):
    """In any order: each has its rows, a version of its own that was judged, and popularity until more is known."""
    settings, registry = market
    assert {registry.domain(name).counts["rows_added"] for name in SURFACES} == {FEW_ROWS}
    versions = [version for name in SURFACES for version in registry.versions(name)]
    assert {version.domain for version in versions} == set(SURFACES)
    assert len({version.id for version in versions}) == len(versions)
    assert {ZeroShotReport.of(version).decision.verdict for version in versions} == {"hold"}
    levels = use_cases.fallback_levels(registry)
    assert {levels[name] for name in SURFACES} == {"prior"}
    snapshot = SnapshotBuilder(registry=registry, settings=settings).build(Snapshot())
    assert set(SURFACES) <= set(snapshot.domains)
    assert snapshot.faults == {}


def test_an_adapter_of_an_older_shared_model_goes_on_answering(market):
    """A new shared model goes live beside it; the adapter keeps the one that it was trained on."""
    settings, registry = market
    version = next(version for version in registry.versions("feed") if version.level == "adapter")
    use_cases.promote("feed", version.id, registry=registry, settings=settings, who="test", why="a test", force=True)
    newer = use_cases.train_shared(registry=registry, settings=settings, by="test", **QUICK, seed=1)
    assert newer.id != version.backbone_id == registry.version(registry.live("feed").version_id).backbone_id
    snapshot = SnapshotBuilder(registry=registry, settings=settings).build(Snapshot())
    assert snapshot.faults == {}
    assert snapshot.domains["feed"].model.version_id == version.id
    assert snapshot.domains["video"].model.version_id == newer.id
