"""Every way in which the network reads a history goes the whole way: trained, launched, certified, served."""

import numpy as np
import pytest

from deployment.engine import scorer
from deployment.engine.snapshot import Snapshot, SnapshotBuilder
from deployment.messages import Candidate
from domains.events.domain_data import DomainData
from domains.events.histories import Histories
from domains.registry.registry import Registry
from feature_repo.online import OnlineFeatures, UserFeatures
from models.ranker import adapters, checkpoint
from orchestrator import use_cases
from orchestrator.data.dataset import Workspace
from orchestrator.data.model_store import Artifacts
from orchestrator.data.online import feature_repo
from orchestrator.data.scoring import score_rows
from orchestrator.evaluation.report import Certificate
from orchestrator.settings import Settings

QUICK = {"epochs": 1, "width": 8, "lifelong": 20, "batch_size": 512}
FINE = {"fine_tune_epochs": 1, "fine_tune_batch_size": 512}
OLD, NEW = "grocery", "live"
NOW_US = 1_900_000_000_000_000
CASES = {
    "dacdr": {"architecture": "dacdr"},
    "lcn": {"architecture": "lcn", "contrastive_weight": 0.1},
    "dacdr+lcn": {"architecture": "dacdr+lcn", "contrastive_weight": 0.1, "user_embedding": True, "bf16": True},
    "domain_over_pyramid": {
        "architecture": "domain_over_pyramid",
        "pyramid": "LCN-500-100",
        "contrastive_weight": 0.1,
        "source_weighting": "weighed",
    },
}


@pytest.fixture(scope="module")
def market(tmp_path_factory, simulated_market) -> tuple[Settings, Registry]:
    """A tiny marketplace, ingested."""
    return simulated_market(tmp_path_factory.mktemp("market"))


def a_user(settings: Settings, name: str) -> UserFeatures:
    """A user of the domain with a long history, as a request reads him from the feature store."""
    data, store = DomainData(settings.data_dir, name), Histories.open(settings.data_dir).source
    users = np.unique(data.interactions()["user"].to_numpy())
    start, stop = store.window(users, np.full(len(users), np.iinfo(np.int64).max), 2000)
    user_id = data.user_vocabulary.name(int(users[np.argmax(stop - start)]))
    found = OnlineFeatures(feature_repo(settings)).read_user(user_id, name)
    assert found is not None
    assert len(found.history) > 5
    return found


def answers(snapshot: Snapshot, settings: Settings, name: str) -> scorer.Scores:
    """What the serving scorer gives for twelve items of the domain."""
    domain = snapshot.domains[name]
    items = [Candidate(item_id=item) for item in sorted(domain.item_index)[:12]]
    return scorer.score(domain, items, user=a_user(settings, name), now_us=NOW_US)


@pytest.mark.parametrize("architecture", CASES)
def test_an_interest_trains_launches_certifies_attaches_and_serves(architecture, market):
    """The new domain's version answers by its own weights, and an old domain's answers stay equal to the bit."""
    settings, registry = market
    choices = {**QUICK, **CASES[architecture]}
    backbone = use_cases.train_shared(
        registry=registry, settings=settings, by="test", domains=["video", "shop"], **choices
    )
    fine = FINE | {"bf16": choices.get("bf16", False)}
    use_cases.launch(OLD, registry=registry, settings=settings, by="test", **fine)
    old = max(registry.versions(OLD, "adapter"), key=lambda version: version.created_at)
    use_cases.promote(
        OLD, old.id, registry=registry, settings=settings, who="test", why="past the gate, for the test", force=True
    )
    builder = SnapshotBuilder(registry=registry, settings=settings)
    before = answers(builder.build(Snapshot()), settings, OLD)
    assert (before.served_by, before.model_version) == ("adapter", old.id)

    version = use_cases.launch(NEW, registry=registry, settings=settings, by="test", **fine)
    certificate = Certificate.of(version)
    assert certificate.ok
    assert certificate.before == certificate.after
    assert OLD in certificate.probe_rows
    assert certificate.trained_parameters < certificate.all_parameters / 2
    assert version.config["architecture"] == architecture, "a version says what it is built of"
    store = Artifacts(settings.artifacts_dir)
    ranker = checkpoint.load_backbone(store.path(backbone.artifact))
    assert ranker.config.architecture == architecture
    assert (ranker.config.contrast is not None) == (choices.get("contrastive_weight", 0) > 0)
    slot = adapters.attach(ranker, checkpoint.load_adapter(store.path(version.artifact)))

    use_cases.promote(
        NEW, version.id, registry=registry, settings=settings, who="test", why="past the gate", force=True
    )
    snapshot = builder.build(Snapshot())
    served = answers(snapshot, settings, NEW)
    assert (served.served_by, served.model_version, served.reason) == ("adapter", version.id, None)
    assert np.ptp(served.score) > 0
    assert np.array_equal(answers(snapshot, settings, OLD).score, before.score)
    # The version attached by hand to its shared model gives what the service gives.
    workspace = Workspace(settings, tuple(registry.domains()))
    model = snapshot.domains[NEW].model
    rows = workspace.examples(model.encoder, NEW).take(np.arange(200))
    batch_builder = workspace.batch_builder(model.encoder, [NEW])
    by_hand = score_rows(ranker, batch_builder, rows, slot)
    assert np.array_equal(by_hand, score_rows(model.ranker, batch_builder, rows, model.slot))


def test_a_launch_cannot_ask_for_another_network_than_the_shared_models(market):
    """The choice belongs to shared training; the message says how to make it there."""
    settings, registry = market
    if registry.live(None) is None:
        use_cases.train_shared(registry=registry, settings=settings, by="test", leave_out=[NEW], **QUICK)
    held = registry.version(registry.live(None).version_id).config["architecture"]
    other = "lcn" if held != "lcn" else "dacdr"
    with pytest.raises(ValueError, match=rf"graft train --set architecture={other}"):
        use_cases.launch(NEW, registry=registry, settings=settings, by="test", architecture=other)
