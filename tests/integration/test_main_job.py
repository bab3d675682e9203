"""The main job in one process: from files on disk to a certified, compared and promoted adapter."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from domains.errors import (
    DomainAlreadyRegistered,
    NoLiveVersion,
    NotEnoughData,
    PromotionRefused,
    UnknownDomain,
    UnknownVersion,
)
from domains.lifecycle import State
from domains.registry.registry import Registry
from domains.simulation.simulator import SimulatorConfig, simulate
from domains.spec import DomainSpec
from models.ranker import adapters, checkpoint
from orchestrator import use_cases
from orchestrator.cli import app
from orchestrator.data.dataset import Workspace
from orchestrator.data.encoding import FeatureEncoder
from orchestrator.data.model_store import Artifacts
from orchestrator.errors import ArtifactDamaged
from orchestrator.evaluation.report import Certificate, ColdStartReport, ZeroShotReport
from orchestrator.settings import Settings
from orchestrator.training import fit
from orchestrator.training.baselines import TRAINED
from orchestrator.training.recipe import Recipe

QUICK = {"epochs": 1, "fine_tune_epochs": 2, "width": 8, "lifelong": 20, "batch_size": 512}


def a_workplace(home: Path) -> tuple[Settings, Registry]:
    settings = Settings(home=home)
    return settings, use_cases.open_registry(settings)


def fill(settings: Settings, registry: Registry, **config) -> None:
    """Register and ingest a simulated marketplace with a gate that a tiny one can be judged by."""
    for simulated in simulate(SimulatorConfig(**config), settings.home / "simulated"):
        declared = simulated.spec
        if declared.role == "target":
            too_many = 10**6 if declared.name == "grocery" else 3
            gate = {"baseline": "zero_shot", "minimum_cold_users": too_many, "maximum_prediction_bias": 9.0}
            declared = DomainSpec.from_mapping({**declared.model_dump(mode="json"), "gate": gate})
        use_cases.register(declared, registry=registry, by="test")
        use_cases.ingest_data(
            declared.name,
            interactions=[simulated.interactions],
            items=simulated.items,
            users=simulated.users,
            truth=simulated.truth,
            registry=registry,
            settings=settings,
            by="test",
        )


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """A tiny marketplace whose domain "live" was launched on a shared model that was trained without it."""
    settings, registry = a_workplace(tmp_path_factory.mktemp("launched"))
    fill(settings, registry, size="tiny")
    backbone = use_cases.train_shared(registry=registry, settings=settings, by="test", leave_out=["live"], **QUICK)
    before = registry.live("live")
    version = use_cases.launch("live", registry=registry, settings=settings, by="test", **QUICK, baselines=TRAINED)
    return settings, registry, backbone, before, version


def test_no_target_answers_from_weights_that_nothing_let_pass(launched):
    """Shared training publishes no adapter; the shared model answers in a target only where it beat popularity."""
    _, registry, backbone, _, _ = launched
    for domain in registry.domains():
        versions = [version for version in registry.versions(domain.name) if version.created_by == "test"]
        assert domain.role == "target" or versions == []
        for version in versions:
            judged = ZeroShotReport.of(version)
            if judged is None:
                assert ColdStartReport.of(version) is not None
                continue
            assert version.backbone_id == backbone.id
            assert judged.decision.promote == (judged.gain is not None and judged.gain.low > 0)
            was_live = [move for move in registry.promotions(domain.name) if move.to_version == version.id]
            assert bool(was_live) == judged.decision.promote
    assert registry.live("grocery") is None
    [asked_too_much] = registry.versions("grocery")
    assert "gate asks for 1000000" in ZeroShotReport.of(asked_too_much).decision.reasons[0]


def test_a_launch_trains_a_small_part_and_certifies_the_rest(launched):
    """Every frozen tensor keeps its hash, and every other domain its predictions to the bit."""
    certificate = Certificate.of(launched[-1])
    assert certificate.ok
    assert certificate.before == certificate.after
    assert certificate.frozen_tensors > 20
    assert certificate.predictions_moved == []
    assert set(certificate.probe_rows) >= {"video", "shop"}
    assert certificate.trained_parameters < certificate.all_parameters / 4


def test_a_report_carries_the_plain_rows_and_the_best_reachable_with_intervals(launched):
    """No table without train mean, popularity and item mean, nor the baselines asked for; intervals enclose values."""
    report = ColdStartReport.of(launched[-1])
    plain = {"train_mean", "popularity", "item_mean", "item_user_bias", "declared_columns"}
    plain |= {"zero_shot", "adapter", "best_reachable"}
    assert {*plain, *TRAINED} == set(report.rows)
    assert set(report.gain) == set(report.rows) - {"adapter"}
    for row in report.rows.values():
        assert row["auc"].low <= row["auc"].value <= row["auc"].high
    assert report.rows["best_reachable"]["logloss"].value < report.rows["adapter"]["logloss"].value
    assert report.leaks == []


def test_a_version_of_another_domain_cannot_be_promoted(launched):
    """Each domain's endpoint serves its own adapter."""
    settings, registry, *_ = launched
    other = registry.versions("grocery")[0].id
    with pytest.raises(PromotionRefused, match="belongs to 'grocery'"):
        use_cases.promote("live", other, registry=registry, settings=settings, who="test", why="mix-up")


def test_a_contrastive_weight_puts_the_contrast_into_training(launched):
    """The recipe's weight takes effect: the network holds CRP's encoders, and learns other weights with it."""
    settings, registry, *_ = launched
    workspace = Workspace(settings, tuple(registry.domains()))
    trained = [
        fit.fit(workspace, Recipe(**QUICK, contrastive_weight=weight), ("video", "shop", "grocery"))[0]
        for weight in (0.0, 0.1)
    ]
    assert trained[0].config.contrast is None
    assert trained[1].config.contrast is not None
    assert adapters.backbone_hash(trained[0]) != adapters.backbone_hash(trained[1])
    first, second = (ranker.embeddings.source_items.rows.weight for ranker in trained)
    assert not torch.equal(first, second)


def test_promotion_refuses_what_the_gate_refused_and_says_why(launched, monkeypatch):
    """Grocery's gate asks for a million cold users: the version is kept with its report, and does not go live."""
    settings, registry, *_ = launched
    second = use_cases.launch("grocery", registry=registry, settings=settings, by="test", **{**QUICK, "seed": 5})
    assert ColdStartReport.of(second).decision.verdict == "hold"
    with pytest.raises(PromotionRefused, match="gate asks for 1000000"):
        use_cases.promote("grocery", second.id, registry=registry, settings=settings, who="test", why="try")
    with pytest.raises(PromotionRefused, match="only with a reason"):
        use_cases.promote("grocery", second.id, registry=registry, settings=settings, who="test", why=" ", force=True)
    assert (registry.live("grocery"), registry.domain("grocery").challenger) == (None, None)
    move = use_cases.promote(
        "grocery", second.id, registry=registry, settings=settings, who="ann", why="a demo", force=True
    )
    assert (move.kind, registry.domain("grocery").state) == ("force", State.LIVE)
    _, page = use_cases.report_page("grocery", second.id, registry=registry)
    assert "Set live against the gate" in page
    monkeypatch.setenv("GRAFT_HOME", str(settings.home))
    shown = CliRunner().invoke(app, ["domains", "show", "grocery"]).output
    assert "FORCED" in shown
    assert "set live against the gate by ann: a demo" in shown


def test_a_retrain_goes_live_by_itself_when_its_gate_lets_it_pass_and_not_otherwise(launched):
    """Nobody is there to promote after a scheduled run: the gate decides."""
    settings, registry, *_ = launched
    for name, state in (("reading", State.DATA_READY), ("grocery", State.PAUSED)):
        before = registry.live(name)
        if state is State.PAUSED:
            registry.move(name, state, by="ann", why="complaints")
        version = use_cases.launch(
            name, registry=registry, settings=settings, by="schedule", kind="retrain", **{**QUICK, "seed": 9}
        )
        passed = ColdStartReport.of(version).decision.promote
        live = registry.live(name)
        if passed:
            assert live.version_id == version.id
        else:  # what was live stays only if a gate, or a person, had let it pass
            assert live == before or (live is None and registry.version(before.version_id).level == "zero_shot")
        assert registry.domain(name).state is (State.LIVE if passed and state is not State.PAUSED else state)
    assert not passed, "grocery's gate asks for a million cold users"


def test_running_a_finished_run_again_changes_nothing(launched):
    """A retry of the whole run publishes the same hash and moves no pointer."""
    settings, registry, *_, version = launched
    run = next(run for run in registry.runs("live") if run.kind == "launch-domain")
    generation = registry.generation()
    again = use_cases.launch("live", registry=registry, settings=settings, by="test", run_id=run.id, **run.params)
    assert again.id == version.id
    live = registry.live("live")
    assert live is None or live.version_id != version.id or registry.generation() == generation


def test_a_tampered_or_foreign_adapter_does_not_load(launched, tmp_path):
    """One changed weight, or another backbone, is refused by name."""
    settings, _registry, backbone, _, version = launched
    store = Artifacts(settings.artifacts_dir)
    ranker = checkpoint.load_backbone(store.path(backbone.artifact))
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in store.path(version.artifact).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors["tokens"] = tensors["tokens"] + 1e-3
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(checkpoint.CorruptCheckpoint, match=r"model\.safetensors"):
        checkpoint.load_into(ranker, folder)
    with pytest.raises(adapters.AdapterMismatch, match="trained on backbone"):
        checkpoint.load_into(ranker, store.path(version.artifact), backbone="f" * 64)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "encoder.json"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_damaged_version_does_not_go_live_and_publishing_again_repairs_it(launched, file, shared, tmp_path):
    """Forced or not, and where the shared model that it rests on is the damaged one; the pointer stays."""
    settings, registry, backbone, _, version = launched
    store, before = Artifacts(settings.artifacts_dir), registry.live("live")
    harmed = backbone if shared else version
    finished = tmp_path / "finished"
    shutil.copytree(store.path(harmed.artifact), finished, ignore=shutil.ignore_patterns("files.json", "model.yaml"))
    known = {"registry": registry, "settings": settings, "who": "test"}
    content = bytearray((store.path(harmed.artifact) / file).read_bytes())
    content[len(content) // 2] ^= 1
    (store.path(harmed.artifact) / file).write_bytes(content)
    with pytest.raises(ArtifactDamaged, match=file):
        use_cases.promote("live", version.id, **known, why="a test", force=True)
    assert registry.live("live") == before
    store.publish(harmed.kind, finished, harmed.id)
    assert use_cases.promote("live", version.id, **known, why="a test", force=True).to_version == version.id
    if before is None:
        registry.withdraw("live", who="test", why="as it was")
    elif before.version_id != version.id:
        use_cases.roll_back("live", **known, why="as it was")


def test_a_version_that_scores_no_numbers_does_not_go_live(launched, tmp_path):
    """Its files are what was published, and say nothing."""
    settings, registry, backbone, _, version = launched
    folder = tmp_path / "adapter"
    tensors, config = checkpoint.load(Artifacts(settings.artifacts_dir).path(version.artifact))
    content = checkpoint.save(folder, {name: tensor * float("nan") for name, tensor in tensors.items()}, config)
    FeatureEncoder.load(Artifacts(settings.artifacts_dir).path(version.artifact)).save(folder)
    known = {"registry": registry, "settings": settings}
    tag = Artifacts(settings.artifacts_dir).publish("adapter", folder, content)
    broken = registry.add_version(replace(version, id=content, artifact=tag, backbone_id=backbone.id))
    with pytest.raises(ArtifactDamaged, match="no finite number"):
        use_cases.promote("live", broken.id, **known, who="test", why="a test", force=True)


def test_a_roll_back_to_a_damaged_version_is_refused(launched):
    """What answers now goes on."""
    settings, registry, _, _, version = launched
    known = {"registry": registry, "settings": settings, "who": "test", "why": "a test"}
    use_cases.promote("live", version.id, **known, force=True)
    other = next(one for one in registry.versions("live") if one.id != version.id and one.level == "zero_shot")
    registry.promote("live", other.id, expect=version.id, who="test", why="a test", force=True)
    file = Artifacts(settings.artifacts_dir).path(version.artifact) / "model.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:-1])
    with pytest.raises(ArtifactDamaged, match=r"model\.safetensors"):
        use_cases.roll_back("live", **known)
    assert registry.live("live").version_id == other.id
    file.write_bytes(good)
    assert use_cases.roll_back("live", **known).to_version == version.id


def test_a_launch_before_any_shared_model_says_so(tmp_path):
    """The message names the step to run first."""
    settings, registry = a_workplace(tmp_path)
    fill(settings, registry, events=4000)
    with pytest.raises(NoLiveVersion, match="train-shared"):
        use_cases.launch("live", registry=registry, settings=settings, by="test", **QUICK)
    assert registry.runs("live")[0].state == "failed"


def test_unknown_names_and_empty_domains_are_refused_by_name(tmp_path):
    """A typo, a domain without data and a domain without versions each get their own error."""
    settings, registry = a_workplace(tmp_path)
    with pytest.raises(UnknownDomain, match="nowhere"):
        use_cases.launch("nowhere", registry=registry, settings=settings, by="test")
    with pytest.raises(NotEnoughData, match="no domain has data yet"):
        use_cases.train_shared(registry=registry, settings=settings, by="test")
    spec = DomainSpec.from_mapping(
        {
            "name": "empty",
            "role": "target",
            "task": "ctr",
            "owner": "team",
            "interactions": {"user": "u", "item": "i", "label": "y"},
        }
    )
    use_cases.register(spec, registry=registry, by="test")
    with pytest.raises(UnknownVersion, match="launch it first"):
        use_cases.promote("empty", registry=registry, settings=settings, who="test", why="too early")
    other = DomainSpec.from_mapping({**spec.model_dump(mode="json"), "owner": "another team"})
    with pytest.raises(DomainAlreadyRegistered):
        use_cases.register(other, registry=registry, by="another team")


KILLED = """
    import sys
    from pathlib import Path
    from domains.registry.registry import Registry
    from orchestrator import use_cases
from orchestrator.cli import app
    from orchestrator.settings import Settings

    settings = Settings(home=Path(sys.argv[1]))
    registry = Registry(settings.registry_url)
    quick = {quick!r}
    if sys.argv[2] == "train":
        use_cases.train_shared(
            registry=registry, settings=settings, by="test", run_id="run-train", leave_out=["live"], **quick
        )
    else:
        use_cases.launch("live", registry=registry, settings=settings, by="test", run_id="run-launch", **quick)
"""


@pytest.mark.timeout(240)
def test_kill_minus_nine_at_any_moment_of_training_and_launch_ends_in_the_same_versions(tmp_path):
    """Each run is killed again and again at a later moment, then finishes with the hash of a run never killed."""
    wanted = {}
    quick = {**QUICK, "checkpoint_every_steps": 5, "epochs": 2}
    settings, registry = a_workplace(tmp_path / "whole")
    fill(settings, registry, events=6000)
    wanted["train"] = use_cases.train_shared(
        registry=registry, settings=settings, by="test", leave_out=["live"], **quick
    ).id
    wanted["launch"] = use_cases.launch("live", registry=registry, settings=settings, by="test", **quick).id

    settings, registry = a_workplace(tmp_path / "killed")
    fill(settings, registry, events=6000)
    script = textwrap.dedent(KILLED).replace("{quick!r}", repr(quick))
    for what in ("train", "launch"):
        # Moments spread over start-up, the steps and the publishing at the end.
        for seconds in (3.0, 4.0, 5.0, 6.0):
            process = subprocess.Popen(
                [sys.executable, "-c", script, str(settings.home), what],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd=Path(__file__).parents[2],
            )
            deadline = time.monotonic() + seconds
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if what == "train":
            version = use_cases.train_shared(
                registry=registry, settings=settings, by="test", run_id="run-train", leave_out=["live"], **quick
            )
        else:
            version = use_cases.launch(
                "live", registry=registry, settings=settings, by="test", run_id="run-launch", **quick
            )
        assert version.id == wanted[what]
    assert registry.run("run-launch").state == "succeeded"
