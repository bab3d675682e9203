"""What answers in a domain, and what changes it: a launch's verdict, promote, roll back, pause, resume, retire."""

from __future__ import annotations

import contextlib

from domains.errors import PromotionRefused, StalePromotion, UnknownVersion
from domains.lifecycle import FallbackLevel, State
from domains.registry.records import Domain, Live, Promotion, Version
from domains.registry.registry import Registry
from orchestrator.evaluation.report import Decision, decision_of
from orchestrator.settings import Settings


def promote(
    name: str,
    version_id: str | None = None,
    *,
    registry: Registry,
    settings: Settings,
    who: str,
    why: str,
    force: bool = False,
) -> Promotion:
    """Set a version live that its gate let pass: the challenger, or else the newest trained one, unless one is named.

    With ``force`` also one that the gate refused or nothing has judged: it needs a reason, and is marked for good, also
    where it is live already. A paused domain stays paused.

    Raises:
        UnknownVersion: the domain has none to promote.
        PromotionRefused: it did not pass and is not forced with a reason, or it belongs to another domain.
        StalePromotion: another version went live meanwhile.
        IllegalTransition: the domain has no data yet, or is retired.
        ArtifactDamaged: its files are not what was published, or what it scores are no numbers; force or not.
    """
    from orchestrator.data import version_check

    domain = registry.domain(name)
    live = registry.live(name)
    version = _chosen(domain, version_id, registry)
    refusal = _refusal(version)
    if refusal and not force:
        raise PromotionRefused(
            f"version {version.id[:12]} may not go live: " + "; ".join(refusal), domain=name, reasons=refusal
        )
    if refusal and not why.strip():
        raise PromotionRefused(f"version {version.id[:12]} is forced only with a reason: why", domain=name, field="why")
    version_check.check(version, registry=registry, settings=settings)
    expect = None if live is None else live.version_id
    return registry.promote(name, version.id, expect=expect, who=who, why=why, force=force and bool(refusal))


def offer(name: str, version_id: str, decision: Decision, *, registry: Registry, by: str) -> None:
    """Let a version that its gate let pass wait for a person to promote it; one that is live already waits no more.

    Raises:
        IllegalTransition: the domain was retired meanwhile.
    """
    live = registry.live(name)
    answers = live is not None and live.version_id == version_id
    registry.offer(name, None if answers else version_id, by=by, why="; ".join(decision.reasons))


def refuse(name: str, decision: Decision, *, registry: Registry, by: str) -> None:
    """Let nothing wait after a launch that the gate refused, and take what was borrowed down: popularity answers then.

    What was trained for the domain and is live stays. Safe to repeat.
    """
    why = "; ".join(decision.reasons)
    registry.offer(name, None, by=by, why=why)
    while (live := registry.live(name)) is not None and live.level == "zero_shot":
        # Whoever promotes something else at the same moment has decided: that stays.
        with contextlib.suppress(StalePromotion):
            registry.withdraw(name, who=by, why=f"{decision.verdict}: {why}", expect=live.version_id)


def roll_back(
    name: str, *, registry: Registry, settings: Settings, who: str, why: str, expect: str | None = None
) -> Promotion:
    """Return to the version that was live before; ``expect`` and errors are those of the registry's verb.

    Raises:
        PromotionRefused: the gate has not let the earlier version pass, and nobody ever forced it.
        ArtifactDamaged: the files of the earlier version are not what was published.
    """
    from orchestrator.data import version_check

    if (earlier := registry.earlier(name)) is not None:
        version = registry.version(earlier)
        refusal = _refusal(version)
        if refusal and earlier not in registry.forced(name):
            raise PromotionRefused(
                f"version {earlier[:12]}, live before, may not answer again: {'; '.join(refusal)};"
                " pause the domain, or promote that version by force",
                domain=name,
                reasons=refusal,
            )
        version_check.check(version, registry=registry, settings=settings)
    return registry.roll_back(name, who=who, why=why, expect=expect)


def pause(name: str, *, registry: Registry, who: str, why: str) -> Domain:
    """Let popularity answer in a domain until a person resumes it, whatever is promoted or retrained meanwhile.

    Raises:
        UnknownDomain: no such domain.
        IllegalTransition: it has no data yet, or is retired.
    """
    return registry.move(name, State.PAUSED, by=who, why=why)


def resume(name: str, *, registry: Registry, who: str, why: str) -> Domain:
    """End a pause: what is live answers again; errors are those of ``pause``."""
    return registry.resume(name, by=who, why=why)


def retire(name: str, *, registry: Registry, who: str, why: str) -> Domain:
    """Close a domain for good: its endpoint stops answering, and its name is not given again.

    Raises:
        UnknownDomain: no such domain.
    """
    return registry.move(name, State.RETIRED, by=who, why=why)


def fallback_level(name: str, *, registry: Registry) -> FallbackLevel | None:
    """The fallback level that a domain answers at now; None of a retired one.

    A source domain has no live version of its own: its adapter is part of the live shared model.

    Raises:
        UnknownDomain: no such domain.
    """
    domain = registry.domain(name)
    learnt = _learnt(registry) if domain.role == "source" else frozenset()
    return _level(domain, registry.live(name), learnt)


def fallback_levels(registry: Registry) -> dict[str, FallbackLevel | None]:
    """The fallback level of every domain by its name, in four reads however many there are."""
    lives, learnt = {live.domain: live for live in registry.lives()}, _learnt(registry)
    return {domain.name: _level(domain, lives.get(domain.name), learnt) for domain in registry.domains()}


def _level(domain: Domain, live: Live | None, learnt: frozenset[str]) -> FallbackLevel | None:
    if domain.state is State.RETIRED:
        return None
    if domain.state is State.PAUSED:
        return "prior"
    if live is None:
        return "adapter" if domain.role == "source" and domain.name in learnt else "prior"
    return live.level or "adapter"


def _learnt(registry: Registry) -> frozenset[str]:
    """The domains that the live shared model was trained on."""
    shared = registry.live(None)
    return frozenset() if shared is None else frozenset(registry.version(shared.version_id).metrics)


def _chosen(domain: Domain, version_id: str | None, registry: Registry) -> Version:
    """The version that is to go live."""
    if version_id is not None:
        version = registry.version(version_id)
        if version.domain != domain.name:
            refused = f"version {version.id[:12]} belongs to {version.domain!r}, not to {domain.name!r}"
            raise PromotionRefused(refused, domain=domain.name)
        return version
    if domain.challenger is not None:
        return registry.version(domain.challenger)
    trained = [version for version in registry.versions(domain.name, "adapter") if version.level == "adapter"]
    if not trained:
        raise UnknownVersion(
            f"domain {domain.name!r} has no trained version to promote; launch it first", domain=domain.name
        )
    return max(trained, key=lambda candidate: candidate.created_at)


def _refusal(version: Version) -> list[str]:
    """Why a version may not go live; empty where its gate let it pass."""
    decision = decision_of(version)
    if decision is None:
        return ["nothing has judged it; launch the domain"]
    return [] if decision.promote else list(decision.reasons) or [f"its gate says {decision.verdict}"]
