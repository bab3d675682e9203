"""Any sequence of events against a small model of one domain: its state, what answers, what it rests on, what waits."""

from unittest.mock import patch
from uuid import uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from domains.errors import (
    DomainAlreadyRegistered,
    DomainFault,
    IllegalTransition,
    NoLiveVersion,
    PromotionRefused,
    StalePromotion,
)
from domains.lifecycle import State
from orchestrator import traffic, use_cases
from orchestrator.data import version_check
from orchestrator.settings import Settings
from tests.unit.orchestrator.fake_versions import (
    DO_NOT_BORROW,
    HOLD,
    LEVELS,
    NAME,
    SHIP,
    declared,
    registry_of_a_target,
)

PASSED, REFUSED = "zab", "uh"
WHO = {"who": "ann", "why": "said so"}


class Domain(RuleBasedStateMachine):
    """``rests`` is what is live, above what each roll back returns to; the domain's state follows from the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = registry_of_a_target()
        self.known = {"registry": self.registry, "settings": Settings()}
        self.has_data = self.paused = self.retired = False
        self.rests: list[str] = []
        self.waits: str | None = None
        self.forced: set[str] = set()
        self.runs: list[str] = []
        self.unchecked = patch.object(version_check, "check")  # nothing lies in a store here
        self.unchecked.start()

    def teardown(self) -> None:
        self.unchecked.stop()
        self.registry.close()

    @property
    def live(self) -> str | None:
        return self.rests[-1] if self.rests else None

    @property
    def open(self) -> bool:
        """Whether anything may go live."""
        return self.has_data and not self.retired

    def refused(self, fault: type[DomainFault], attempt: object, *args: object, **named: object) -> None:
        with pytest.raises(fault):
            attempt(*args, **named)

    def goes_live(self, version: str) -> None:
        if version != self.live:
            self.rests.append(version)
        if LEVELS[version] == "adapter":
            self.waits = None

    @rule(same=st.booleans())
    def register_again(self, same: bool) -> None:
        spec = declared() if same else declared(owner="somebody")
        if self.retired or not same:
            self.refused(DomainAlreadyRegistered, use_cases.register, spec, registry=self.registry, by="ann")
        else:
            use_cases.register(spec, registry=self.registry, by="ann")

    @rule()
    def ingest(self) -> None:
        if self.retired:
            asked = {"interactions": [], "by": "ann", **self.known}
            self.refused(IllegalTransition, use_cases.ingest_data, NAME, **asked)
            return
        self.registry.record_ingest(NAME, uuid4().hex, {"rows_added": 1})
        self.has_data = True

    @rule()
    def train_shared(self) -> None:
        self.registry.promote(None, "shared", expect=None, **WHO)

    @rule(kind=st.sampled_from(["launch-domain", "retrain"]))
    def a_run_begins(self, kind: str) -> None:
        """It may be killed: then it has no end."""
        self.runs.append(self.registry.start_run(kind, NAME, params={}, by="ann").id)

    @precondition(lambda self: self.runs)
    @rule(end=st.sampled_from(["cancelled", "failed"]))
    def a_run_ends(self, end: str) -> None:
        self.registry.finish_run(self.runs.pop(), state=end)

    @rule(version=st.sampled_from("ab"))
    def a_launch_ships(self, version: str) -> None:
        offer = {"registry": self.registry, "by": "ann"}
        if self.retired and version != self.live:
            self.refused(IllegalTransition, traffic.offer, NAME, version, SHIP, **offer)
            return
        traffic.offer(NAME, version, SHIP, **offer)
        self.waits = None if version == self.live else version

    @rule(decision=st.sampled_from([HOLD, DO_NOT_BORROW]))
    def a_launch_is_refused(self, decision: object) -> None:
        traffic.refuse(NAME, decision, registry=self.registry, by="ann")
        self.waits = None
        if self.live == "z":
            self.rests = []

    @rule(version=st.sampled_from("ab"), began_with=st.sampled_from([None, *LEVELS]))
    def a_retrain_ships(self, version: str, began_with: str | None) -> None:
        asked = {"expect": began_with, "who": "schedule", "why": ""}
        if self.live not in (began_with, version):
            self.refused(StalePromotion, self.registry.promote, NAME, version, **asked)
        elif not self.open:
            self.refused(IllegalTransition, self.registry.promote, NAME, version, **asked)
        else:
            self.registry.promote(NAME, version, **asked)
            self.goes_live(version)

    @rule(version=st.sampled_from([None, *LEVELS]), force=st.booleans())
    def promote(self, version: str | None, force: bool) -> None:
        chosen = version or self.waits or "b"
        against = chosen in REFUSED
        if against and not force:
            self.refused(PromotionRefused, traffic.promote, NAME, version, **WHO, **self.known)
        elif not self.open:
            self.refused(IllegalTransition, traffic.promote, NAME, version, force=force, **WHO, **self.known)
        else:
            traffic.promote(NAME, version, force=force, **WHO, **self.known)
            self.goes_live(chosen)
            self.forced |= {chosen} if against else set()

    @rule()
    def roll_back(self) -> None:
        if self.retired:
            self.refused(IllegalTransition, traffic.roll_back, NAME, **WHO, **self.known)
        elif len(self.rests) < 2:
            self.refused(NoLiveVersion, traffic.roll_back, NAME, **WHO, **self.known)
        else:
            self.rests.pop()
            assert traffic.roll_back(NAME, **WHO, **self.known).to_version == self.live

    @rule()
    def withdraw(self) -> None:
        self.registry.withdraw(NAME, **WHO)
        self.rests = []

    @rule(verb=st.sampled_from([traffic.pause, traffic.resume]))
    def pause_or_resume(self, verb: object) -> None:
        if not self.open:
            self.refused(IllegalTransition, verb, NAME, registry=self.registry, **WHO)
        else:
            verb(NAME, registry=self.registry, **WHO)
            self.paused = verb is traffic.pause

    @precondition(lambda self: len(self.registry.audit()) > 20)  # late, as nothing follows it
    @rule()
    def retire(self) -> None:
        traffic.retire(NAME, registry=self.registry, **WHO)
        self.retired, self.waits = True, None

    @invariant()
    def agrees(self) -> None:
        level = LEVELS.get(self.live or "")
        state = State.LIVE if level == "adapter" else State.DATA_READY
        state = State.RETIRED if self.retired else State.PAUSED if self.paused else state
        state = state if self.has_data or self.retired else State.REGISTERED
        domain, live = self.registry.domain(NAME), self.registry.live(NAME)
        assert (domain.state, domain.challenger) == (state, self.waits)
        assert (live.version_id if live else None) == self.live
        answers = None if self.retired else "prior" if self.paused else level or "prior"
        assert traffic.fallback_level(NAME, registry=self.registry) == answers
        assert set(self.registry.forced(NAME)) == self.forced


TestDomain = Domain.TestCase
TestDomain.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
