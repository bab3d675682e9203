"""Which version answers: promotions, versions that do not load, and what a swap shares."""

from __future__ import annotations

import gc
import os
import shutil

import pytest

from orchestrator.data.model_store import Artifacts
from tests.integration.service.fakes import ask, eventually, with_one_bit_turned


def test_a_promotion_is_picked_up_and_rolled_back_without_a_restart(market, serving, client):
    """The pointer in the registry is all that moves."""
    user, items = market.user(), market.items("live")
    adapter, zero_shot = market.versions()["adapter"], market.versions()["zero_shot"]
    market.set_live("live", adapter)
    eventually(lambda: ask(client, user, items).json()["model_version"] == adapter)
    assert ask(client, user, items).json()["served_by"] == "adapter"
    market.registry.roll_back("live", who="tests", why="back")
    eventually(lambda: ask(client, user, items).json()["model_version"] == zero_shot)


@pytest.mark.parametrize("harm", ["bytes", "missing", "another domain's"])
def test_a_broken_version_keeps_the_one_before(market, serving, client, harm):
    """A tampered adapter does not load; what answered goes on, the status says why, repairing it is enough."""
    user, items = market.user(), market.items("live")
    adapter = market.versions()["adapter"]
    weights = Artifacts(market.settings.artifacts_dir).path(market.registry.version(adapter).artifact)
    file = weights / "model.safetensors"
    good = file.read_bytes()
    good_config = (weights / "config.json").read_bytes()
    if harm == "bytes":
        file.write_bytes(with_one_bit_turned(good))
    elif harm == "missing":
        file.unlink()
    else:
        version = market.registry.live("grocery").version_id
        other = Artifacts(market.settings.artifacts_dir).path(market.registry.version(version).artifact)
        shutil.copy(other / "model.safetensors", file)
        shutil.copy(other / "config.json", weights / "config.json")
    market.set_live("live", adapter)
    eventually(lambda: bool(serving.snapshot.faults))
    assert ask(client, user, items).json()["model_version"] == market.versions()["zero_shot"]
    [fault] = [domain["fault"] for domain in client.get("/v1/domains").json()["domains"] if domain["name"] == "live"]
    assert adapter[:12] in fault
    file.write_bytes(good)
    (weights / "config.json").write_bytes(good_config)
    eventually(lambda: ask(client, user, items).json()["model_version"] == adapter)
    assert not serving.snapshot.faults


def test_a_swap_shares_what_did_not_change(market, serving):
    """One backbone in memory for all its domains, and no other domain is loaded anew by a promotion."""
    before = serving.snapshot.domains
    market.set_live("live", market.versions()["adapter"])
    eventually(lambda: serving.snapshot.domains["live"].served_by == "adapter")
    after = serving.snapshot.domains
    assert after["grocery"].model is before["grocery"].model
    assert after["live"].model.ranker.head is after["grocery"].model.ranker.head
    assert len(before["live"].model.ranker.domains) == len(after["live"].model.ranker.domains)


def test_promotions_leave_no_file_open(market, serving, client):
    """Twenty flips, without the help of the garbage collector, which a service hardly ever runs."""
    user, items, versions, registry = market.user(), market.items("live"), market.versions(), market.registry

    def flip(turn: int) -> None:
        wanted = versions["adapter" if turn % 2 else "zero_shot"]
        live = registry.live("live")
        if live.version_id != wanted:
            registry.promote("live", wanted, expect=live.version_id, who="tests", why="a flip")
        eventually(lambda: ask(client, user, items).json()["model_version"] == wanted)

    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    for turn in range(4):
        flip(turn)
    gc.collect()
    gc.disable()
    try:
        before = open_files()
        for turn in range(20):
            flip(turn)
        assert open_files() <= before + 4
    finally:
        gc.enable()
