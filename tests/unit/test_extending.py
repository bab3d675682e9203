"""The usual additions go through a seam of one package each: docs/guide/extending.md, with a dummy of each kind."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from deployment.messages import RankRequest
from domains.public import LOADERS
from domains.public.reading import loader
from feature_repo import online_stores
from feature_repo.definitions import FeatureRepo
from feature_repo.online_stores import ONLINE_STORES, OnlineStore
from models.metrics import METRICS, Metric
from models.ranker.config import Architecture
from orchestrator.evaluation import rows
from orchestrator.evaluation.measure import METRICS as MEASURED
from orchestrator.settings import Settings
from orchestrator.training.recipe import Recipe

REQUEST = {"user_id": "u1", "items": [{"item_id": "i1"}]}


def test_a_public_loader_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """One function under a decorator in a file of ``domains/public``; the command line reads the same table."""
    monkeypatch.setattr("domains.public.reading.LOADERS", dict(LOADERS))

    @loader("dummy-set")
    def load(path: Path, out_dir: Path, **options: Any) -> list[Any]:
        return [path, out_dir]

    from domains.public import reading

    assert reading.LOADERS["dummy-set"](tmp_path, tmp_path / "out") == [tmp_path, tmp_path / "out"]


def test_an_online_store_is_a_class_in_one_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Settings take its name, and Feast's file gets its section."""

    class DummyStore(OnlineStore):
        def feast_settings(self, *, impatient: bool = False) -> dict[str, Any]:
            return {"type": "dummy", "at": self.address} | ({"wait": 0} if impatient else {})

    monkeypatch.setitem(ONLINE_STORES, "dummy", DummyStore)
    settings = Settings(home=tmp_path, online_store="dummy", online_store_address="here:1")
    repo = FeatureRepo(
        settings.features_dir, online_store=settings.online_store, online_store_address=settings.online_store_address
    )
    assert yaml.safe_load(repo.settings_text())["online_store"] == {"type": "dummy", "at": "here:1"}
    assert online_stores.ONLINE_STORES["dummy"] is DummyStore


def test_a_metric_is_a_row_of_one_table(monkeypatch: pytest.MonkeyPatch):
    """Reports, pages and intervals read its label and its direction from there."""
    halves = Metric(
        "halves",
        "share of halves",
        lambda label, score: float(np.mean(np.asarray(score) == 0.5)),
        greater_is_better=False,
        per_user=False,
        tasks=("ctr",),
    )
    monkeypatch.setitem(METRICS, halves.name, halves)
    assert MEASURED["halves"]([0, 1], [0.5, 1.0], ["a", "b"]) == 0.5
    assert MEASURED["halves"].heading == "share of halves ↓"


def test_a_field_of_the_ranking_request_is_declared_once():
    """The type checks requests and writes the schema; a field that it does not have is refused by name."""

    class Wider(RankRequest):
        device: str | None = None
        """What the user holds."""

    assert Wider.model_validate({**REQUEST, "device": "phone"}).device == "phone"
    assert Wider.model_json_schema()["properties"]["device"]["description"] == "What the user holds."
    with pytest.raises(ValidationError, match="device"):
        RankRequest.model_validate({**REQUEST, "device": "phone"})


def test_a_baseline_is_read_by_its_row(monkeypatch: pytest.MonkeyPatch):
    """What people call it, and what a better one says, stand in one table."""
    assert rows.label("dummy_net") == "dummy net"
    monkeypatch.setitem(rows.ROWS, "dummy_net", rows.Row("dummy network", "own network", "which is only a dummy"))
    assert rows.label("dummy_net") == "dummy network"


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_a_recipe_takes_every_architecture_that_models_name(architecture: str):
    """The name stands once, beside the network."""
    assert Recipe(architecture=architecture).architecture == architecture
    with pytest.raises(ValidationError, match="architecture"):
        Recipe(architecture=f"{architecture}-dummy")
