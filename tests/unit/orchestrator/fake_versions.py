"""A target with versions of every kind, which no network made, in a registry in memory."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from domains.registry.records import Version
from domains.registry.registry import Registry
from domains.spec import DomainSpec
from orchestrator.evaluation.report import Decision, ZeroShotReport
from tests.unit.ui.fake_domains import REPORT

NAME = "live-rooms"
SHIP = Decision(promote=True, verdict="ship", reasons=["it beats popularity"])
HOLD = Decision(promote=False, verdict="hold", reasons=["too few cold users"])
DO_NOT_BORROW = Decision(promote=False, verdict="do not borrow", reasons=["popularity is better"])
LEVELS = {"z": "zero_shot", **dict.fromkeys("uhab", "adapter")}
"""One untrained version that passed, then trained ones, the newest last: unjudged, held back, and two that passed."""
_MADE = datetime(2026, 1, 1, tzinfo=UTC)


def declared(**other: object) -> DomainSpec:
    """The target's spec."""
    spec = {"name": NAME, "role": "target", "task": "ctr", "owner": "team-live"}
    return DomainSpec.from_mapping({**spec, "interactions": {"user": "u", "item": "i", "label": "click"}, **other})


def registry_of_a_target() -> Registry:
    """The target as it is registered, without data, and its versions."""
    registry = Registry("sqlite://")
    registry.migrate()
    registry.register_domain(declared(), by="ann")
    registry.add_version(Version(id="shared", kind="backbone", artifact="tag:shared"))
    zero_shot = ZeroShotReport(metric="auc", baseline="popularity", cold_users=90, examples=900, decision=SHIP)
    decisions = {"h": HOLD, "a": SHIP, "b": SHIP}
    for number, (id, level) in enumerate(LEVELS.items()):
        common = {"domain": NAME, "backbone_id": "shared", "level": level, "artifact": f"tag:{id}"}
        version = Version(id=id, kind="adapter", created_at=_MADE + timedelta(hours=number), **common)
        if level == "zero_shot":
            version = replace(version, report=zero_shot.as_dict())
        elif id in decisions:
            version = replace(version, report=REPORT.model_copy(update={"decision": decisions[id]}).as_dict())
        registry.add_version(version)
    return registry
