"""Many targets over one catalogue: registered, trained beside, launched and served, in any order.

    python -m benchmarks.chaos.targets --targets 50

Needs no servers. All targets have the same rows, items and users: each must get versions of its own, and none may fail
for another's sake. Prints what each part took.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from domains.registry.registry import Registry
from domains.simulation.simulator import SimulatedDomain, SimulatorConfig, simulate
from domains.spec import DomainSpec
from orchestrator import use_cases
from orchestrator.settings import Settings

TARGET = "grocery"
SMALL: dict[str, Any] = {
    "epochs": 1,
    "fine_tune_epochs": 1,
    "width": 8,
    "lifelong": 20,
    "batch_size": 512,
    "fine_tune_batch_size": 512,
}
BY = "many targets"


class Home:
    """A home with two sources and as many targets over one catalogue as are asked for."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(home=folder)
        self.registry: Registry = use_cases.open_registry(self.settings)
        made = {one.spec.name: one for one in simulate(SimulatorConfig(events=16_000), folder / "simulated")}
        self.alike = made[TARGET]
        for name in ("video", "shop"):
            self.register(made[name].spec, made[name])

    def register(self, spec: DomainSpec, files: SimulatedDomain) -> None:
        """Register a domain and ingest these files for it."""
        use_cases.register(spec, registry=self.registry, by=BY)
        use_cases.ingest_data(
            spec.name,
            interactions=[files.interactions],
            items=files.items,
            users=files.users,
            registry=self.registry,
            settings=self.settings,
            by=BY,
        )

    def register_targets(self, names: Sequence[str]) -> None:
        """Register targets that differ in nothing but their names."""
        declared = self.alike.spec.model_dump(mode="json", exclude={"domain_features", "schedule"})
        for name in names:
            self.register(DomainSpec.from_mapping({**declared, "name": name}), self.alike)

    def train(self) -> None:
        """Train the shared model, which publishes an untrained version of every target."""
        use_cases.train_shared(registry=self.registry, settings=self.settings, by=BY, **SMALL)

    def launch(self, name: str) -> None:
        """Launch a target and set what comes of it live, whatever its gate says of so little data."""
        asked: dict[str, Any] = {"registry": self.registry, "settings": self.settings}
        version = use_cases.launch(name, **asked, by=BY, **SMALL)
        use_cases.promote(name, version.id, **asked, who=BY, why="a rehearsal of many targets", force=True)


def rehearse(folder: Path, targets: int) -> bool:
    """Do everything and print what it took; says whether every target ended live, with versions of its own."""
    from deployment.engine.snapshot import Snapshot, SnapshotBuilder

    home, names = Home(folder), [f"surface-{number:03d}" for number in range(targets)]
    began = time.monotonic()

    def took(what: str, each: int = 1) -> None:
        nonlocal began
        seconds, began = time.monotonic() - began, time.monotonic()
        print(f"{what}: {seconds:.1f} s" + (f", {seconds / each:.2f} s each" if each > 1 else ""), flush=True)

    home.register_targets(names)
    took(f"{targets} registered and ingested", targets)
    home.train()
    took("shared model trained, every target's untrained version published")
    for name in random.Random(1).sample(names, targets):
        home.launch(name)
    took(f"{targets} launched in a random order", targets)
    levels = use_cases.fallback_levels(home.registry)
    took("fallback levels of all")
    builder = SnapshotBuilder(registry=home.registry, settings=home.settings)
    snapshot = builder.build(Snapshot())
    took("the service loads all")
    builder.build(snapshot)
    took("the service looks again")
    versions = [version.id for name in names for version in home.registry.versions(name)]
    served = {model.version_id for name in names if (model := snapshot.domains[name].model) is not None}
    live = sum(levels[name] == "adapter" for name in names)
    print(f"{live} of {targets} live, {len(set(versions))} versions, {len(served)} served, faults: {snapshot.faults}")
    return live == len(served) == targets and len(set(versions)) == len(versions) and not snapshot.faults


def main() -> int:
    """Read the options and rehearse in a folder that is taken away again; the status says whether all went well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", type=int, default=50)
    options = parser.parse_args()
    os.environ.setdefault("GRAFT_REQUIRED_BASELINES", "popularity")
    os.environ.setdefault("GRAFT_REQUIRED_SEEDS", "1")
    with tempfile.TemporaryDirectory(prefix="graft-targets-") as folder:
        return 0 if rehearse(Path(folder), options.targets) else 1


if __name__ == "__main__":
    raise SystemExit(main())
