"""Names and addresses of interfaces: which of them only this machine reaches, and how each stands in a URL."""

from __future__ import annotations

import ipaddress
from collections.abc import Container
from urllib.parse import urlsplit

PASSED_ON = ("x-forwarded-for", "forwarded", "x-real-ip")
"""Headers by which a proxy says for whom it asks."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what binds to a host; a name other than ``localhost`` may mean anything."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    # A socket for both families shows 127.0.0.1 as ::ffff:127.0.0.1.
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def in_url(host: str) -> str:
    """A host as a URL writes it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def seen_from(address: str | None, headers: Container[str]) -> str:
    """Where a request comes from; what a proxy passed on comes from elsewhere, whatever the proxy's own address is.

    Args:
        address: the other end of the connection; None for a socket in the file system, which is this machine's.
        headers: the request's, by their names in small letters.
    """
    if any(name in headers for name in PASSED_ON):
        return "a proxy"
    return address or "127.0.0.1"


def names_this_machine(host: str) -> bool:
    """Whether the ``Host`` that a browser sends is a name of this machine alone.

    Any other may be somebody else's, pointed here by their name server so that their page counts as ours.
    """
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False
