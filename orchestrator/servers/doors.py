"""What must hold before the servers open: who can reach them is asked who they are; and the policy, on record."""

from __future__ import annotations

from domains.registry.registry import Registry
from orchestrator import use_cases
from orchestrator.credentials import os_user, provider_settings
from orchestrator.errors import ServersUnavailable
from orchestrator.hosts import is_loopback
from orchestrator.settings import Settings

POLICY = ("required_baselines", "required_seeds", "bind_host", "import_dir")
"""Settings that decide what may go live and who may come in."""


def refuse_open_doors(settings: Settings, *, ui: bool) -> None:
    """On an interface wider than loopback everything that answers must know who asks.

    Raises:
        ServersUnavailable: there is no API key for the service, or no user for the pages.
    """
    if is_loopback(settings.bind_host):
        return
    registry = use_cases.open_registry(settings)
    where = f"the setting bind_host ({settings.bind_host}) is wider than loopback"
    if all(key.revoked_at for key in registry.api_keys()):
        raise ServersUnavailable(f"{where} and there is no API key; `graft keys add` makes one")
    known = provider_settings(settings.home) is not None or any(user.removed_at is None for user in registry.users())
    if ui and not known:
        raise ServersUnavailable(
            f"{where} and nobody can sign in to the pages; `graft users add` lets somebody, --no-ui leaves them out"
        )


def warning(settings: Settings) -> str | None:
    """What a person must know of the interface; None on loopback."""
    if is_loopback(settings.bind_host):
        return None
    return (
        f"passwords and API keys reach {settings.bind_host} unencrypted: put a proxy that ends TLS in front, and bind "
        "to loopback if it runs on this machine"
    )


def note_policy(registry: Registry, settings: Settings) -> None:
    """Put the settings that decide what may go live into the audit log, if they differ from the last ones there."""
    after = settings.model_dump(mode="json", include=set(POLICY))
    last = next(iter(registry.audit(limit=1, what="change_policy")), None)
    before = None if last is None else last["details"]["after"]
    if before != after:
        registry.note(os_user(), "change_policy", before=before, after=after)
