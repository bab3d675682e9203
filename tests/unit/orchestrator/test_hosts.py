"""Which hosts only this machine reaches, and how they stand in URLs."""

import pytest

from orchestrator.hosts import in_url, is_loopback, names_this_machine, seen_from
from orchestrator.settings import Settings


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "[::1]", "localhost", "::ffff:127.0.0.1"])
def test_hosts_of_this_machine(host):
    """Of both families."""
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["", "0.0.0.0", "::", "10.0.0.1", "example.org", "127.evil.example", "localhost.evil", "::ffff:10.0.0.1", "0"],
)
def test_hosts_that_others_may_reach(host):
    """Names included: what they mean is up to whoever answers for them."""
    assert not is_loopback(host)


def test_urls_put_brackets_around_ipv6():
    """Else the port is part of the address."""
    assert in_url("::1") == "[::1]"
    assert in_url("127.0.0.1") == "127.0.0.1"
    settings = Settings(bind_host="::1", service_port=3000)
    assert settings.service_url == "http://[::1]:3000"
    assert settings.ui_url.startswith("http://[::1]:")
    assert settings.prefect_url.startswith("http://[::1]:")


def test_what_a_proxy_passes_on_comes_from_elsewhere():
    """Whatever it claims."""
    assert seen_from("127.0.0.1", {}) == "127.0.0.1"
    assert seen_from(None, {}) == "127.0.0.1"
    assert not is_loopback(seen_from("127.0.0.1", {"x-forwarded-for": "127.0.0.1"}))


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("localhost:3000", True),
        ("[::1]:80", True),
        ("evil.example", False),
        ("", False),
        ("[::1", False),
        ("a@localhost", True),
    ],
)
def test_names_by_which_a_browser_asks(host, own):
    """A page of another site is told by them."""
    assert names_this_machine(host) is own
