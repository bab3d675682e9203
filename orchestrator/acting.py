"""What one person may change: each verb asks for a role first, and writes that person's name into the audit log.

The one place where roles are enforced. The pages read through a registry that refuses every write, and change things
only here: a page that forgets to ask opens no door.

    viewer   sees everything
    owner    also changes the domains whose spec names them as owner, and those that an admin granted them
    admin    also changes every other domain, the shared model, API keys and users
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from domains.errors import RoleRefused
from domains.ingestion.ingest import IngestReport
from domains.registry.key_verbs import ApiKey
from domains.registry.records import Domain, Promotion, Run
from domains.registry.registry import Registry
from domains.registry.user_verbs import ROLES, Role, User
from domains.spec import DomainSpec
from orchestrator import use_cases
from orchestrator.jobs.runner import OnProgress
from orchestrator.settings import Settings

Verb = TypeVar("Verb", bound=Callable[..., Any])
ANY = ""
"""In place of a domain: the role alone decides."""


@dataclass(frozen=True)
class Actor:
    """Somebody who is known by their login."""

    name: str
    role: Role
    domains: tuple[str, ...] = ()
    """What an owner was granted."""

    def may(self, role: Role, domain: Domain | None = None) -> bool:
        """Whether they have a role, or a higher one; with a domain: and, as its owner, there."""
        if ROLES.index(self.role) < ROLES.index(role):
            return False
        return self.role == "admin" or domain is None or self.name == domain.owner or domain.name in self.domains


def _in_its_domain(_acting: Acting, given: dict[str, Any]) -> str | None:
    return given.get("domain")


def needs(role: Role, of: Callable[[Acting, dict[str, Any]], str | None] = _in_its_domain) -> Callable[[Verb], Verb]:
    """A verb that asks for a role first.

    Args:
        of: finds the domain that a call is about among its arguments, by default the one called ``domain``; None:
            about no domain, which is for an admin; ``ANY``: the role alone decides.
    """

    def wrap(verb: Verb) -> Verb:
        signature = inspect.signature(verb)

        @functools.wraps(verb)
        def asked(acting: Acting, *args: Any, **kwargs: Any) -> Any:
            given = signature.bind(acting, *args, **kwargs).arguments
            acting.require(role, of(acting, given), verb.__name__)
            return verb(acting, *args, **kwargs)

        asked.needs = role  # type: ignore[attr-defined]
        return asked  # type: ignore[return-value]

    return wrap


def every_verb_asks(kind: type) -> type:
    """A class all of whose public verbs ask for a role; one that does not is found when the module is imported."""
    for name, verb in vars(kind).items():
        if callable(verb) and not name.startswith("_") and name != "require" and not hasattr(verb, "needs"):
            raise TypeError(f"{kind.__name__}.{name} asks for no role")
    return kind


def _no_domain(_acting: Acting, _given: dict[str, Any]) -> None:
    return None


def _any(_acting: Acting, _given: dict[str, Any]) -> str:
    return ANY


def _of_run(acting: Acting, given: dict[str, Any]) -> str | None:
    return acting._registry.run(given["run_id"]).domain  # noqa: SLF001 (of this module)


def _of_spec(_acting: Acting, given: dict[str, Any]) -> str | None:
    return str(given["spec"].name)


@every_verb_asks
class Acting:
    """Somebody at work; ``registry`` is one that may be written to."""

    def __init__(self, actor: Actor, *, registry: Registry, settings: Settings) -> None:
        self._actor, self._registry, self._settings = actor, registry, settings

    def require(self, role: Role, domain: str | None, verb: str) -> None:
        """Refuse what the role does not allow, and note it in the audit log.

        Raises:
            UnknownDomain: no such domain.
            RoleRefused: the role does not allow it.
        """
        if domain is None:
            allowed, where = self._actor.may("admin"), ""
        elif domain == ANY:
            allowed, where = self._actor.may(role), ""
        else:
            allowed, where = self._actor.may(role, self._registry.domain(domain)), f" in {domain!r}"
        if not allowed:
            self._refuse(verb, domain or None, where)

    @needs("owner", _any)
    def register(self, spec: DomainSpec) -> Domain:
        """As the use case; an owner registers what they will own, or what an admin granted them by name.

        Raises:
            RoleRefused: the spec names another owner.
        """
        if not self._actor.may("admin") and self._actor.name != spec.owner and spec.name not in self._actor.domains:
            self._refuse(
                "register", None, f" for the owner {spec.owner!r}; set owner: {self._actor.name}", of=spec.name
            )
        return use_cases.register(spec, registry=self._registry, by=self._actor.name)

    @needs("owner", _of_spec)
    def update_spec(self, spec: DomainSpec) -> Domain:
        """As the registry's verb; only an admin gives a domain to another owner.

        Raises:
            RoleRefused: the spec names another owner than before.
        """
        if not self._actor.may("admin") and spec.owner != self._registry.domain(spec.name).owner:
            self._refuse("update_spec", spec.name, f" of another owner ({spec.owner!r})")
        return self._registry.update_spec(spec, by=self._actor.name)

    @needs("owner", _any)
    def keep_upload(self, path: Path, content: bytes | memoryview) -> Path:
        """Write an uploaded file to disk until it is ingested."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    @needs("owner", _any)
    def refuse_path(self, path: str) -> None:
        """Note that somebody named a file outside the folder that may be read."""
        self._registry.note(self._actor.name, "refuse_path", why="outside import_dir", path=path)

    @needs("owner")
    def ingest_data(
        self,
        domain: str,
        *,
        interactions: list[Path],
        items: Path | None,
        users: Path | None,
        on_progress: OnProgress | None = None,
    ) -> IngestReport:
        """As the use case."""
        return use_cases.ingest_data(
            domain,
            interactions=interactions,
            items=items,
            users=users,
            on_progress=on_progress,
            by=self._actor.name,
            **self._known(),
        )

    @needs("owner")
    def start(
        self, kind: str, domain: str | None = None, *, params: dict[str, Any] | None = None, local: bool = False
    ) -> Run:
        """As the use case; a run of no domain, which is the shared model's, is for an admin."""
        return use_cases.start(kind, domain, params=params, local=local, by=self._actor.name, **self._known())

    @needs("owner", _of_run)
    def cancel(self, run_id: str) -> Run:
        """As the use case."""
        return use_cases.cancel(run_id, by=self._actor.name, **self._known())

    @needs("owner")
    def promote(self, domain: str, version_id: str, *, why: str, force: bool = False) -> Promotion:
        """As the use case."""
        return use_cases.promote(domain, version_id, why=why, force=force, who=self._actor.name, **self._known())

    @needs("owner")
    def roll_back(self, domain: str, *, why: str, expect: str | None = None) -> Promotion:
        """As the use case."""
        return use_cases.roll_back(domain, why=why, expect=expect, who=self._actor.name, **self._known())

    @needs("owner")
    def pause(self, domain: str, *, why: str) -> Domain:
        """As the use case."""
        return use_cases.pause(domain, registry=self._registry, who=self._actor.name, why=why)

    @needs("owner")
    def resume(self, domain: str, *, why: str) -> Domain:
        """As the use case."""
        return use_cases.resume(domain, registry=self._registry, who=self._actor.name, why=why)

    @needs("owner")
    def retire(self, domain: str, *, why: str) -> Domain:
        """As the use case."""
        return use_cases.retire(domain, registry=self._registry, who=self._actor.name, why=why)

    @needs("admin", _no_domain)
    def add_key(
        self, name: str, *, domains: list[str], verbs: Sequence[str], per_minute: int = 0
    ) -> tuple[ApiKey, str]:
        """As the registry's verb."""
        return self._registry.add_key(name, domains=domains, verbs=verbs, per_minute=per_minute, by=self._actor.name)

    @needs("admin", _no_domain)
    def rotate_key(self, key: str) -> tuple[ApiKey, str]:
        """As the registry's verb."""
        return self._registry.rotate_key(key, by=self._actor.name)

    @needs("admin", _no_domain)
    def revoke_key(self, key: str, *, why: str = "") -> ApiKey:
        """As the registry's verb."""
        return self._registry.revoke_key(key, by=self._actor.name, why=why)

    @needs("admin", _no_domain)
    def add_user(self, name: str, *, role: Role, password: str | None, domains: list[str]) -> User:
        """As the registry's verb."""
        return self._registry.add_user(name, role=role, password=password, domains=domains, by=self._actor.name)

    @needs("admin", _no_domain)
    def change_user(self, name: str, *, role: Role, domains: list[str]) -> User:
        """As the registry's verb."""
        return self._registry.change_user(name, role=role, domains=domains, by=self._actor.name)

    @needs("admin", _no_domain)
    def remove_user(self, name: str, *, why: str = "") -> User:
        """As the registry's verb."""
        return self._registry.remove_user(name, by=self._actor.name, why=why)

    @needs("admin", _no_domain)
    def audit(self, limit: int = 1000) -> list[dict[str, Any]]:
        """The whole audit log, newest first: it tells of keys and users too."""
        return self._registry.audit(limit=limit)

    @needs("admin", _no_domain)
    def users(self) -> list[User]:
        """Everybody who may sign in or ever might."""
        return self._registry.users()

    @needs("admin", _no_domain)
    def api_keys(self) -> list[ApiKey]:
        """Every API key, never its token."""
        return self._registry.api_keys()

    def _known(self) -> dict[str, Any]:
        return {"registry": self._registry, "settings": self._settings}

    def _refuse(self, verb: str, domain: str | None, where: str, **details: Any) -> None:
        role = self._actor.role
        self._registry.note(self._actor.name, "refuse_role", domain, verb=verb, role=role, **details)
        raise RoleRefused(f"{self._actor.name}, a{'n' * (role[0] in 'ao')} {role}, may not {verb}{where}", verb=verb)
