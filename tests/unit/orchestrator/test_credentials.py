"""Secrets that the stack makes for itself: private files, made once, absent from every text."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator import prefect_client
from orchestrator.credentials import kept_secret, read_secret
from orchestrator.errors import FlowsUnavailable
from orchestrator.servers import plan
from orchestrator.settings import Settings


def test_a_secret_is_made_once_and_for_its_owner_alone(tmp_path):
    """Racing processes agree on one, whatever the umask."""
    before = os.umask(0)
    try:
        with ThreadPoolExecutor(8) as pool:
            secrets = set(pool.map(lambda _: kept_secret(tmp_path / "home" / "key"), range(32)))
    finally:
        os.umask(before)
    assert len(secrets) == 1
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["key"]
    assert (tmp_path / "home" / "key").stat().st_mode & 0o777 == 0o600
    assert len(secrets.pop()) >= 43
    assert read_secret(tmp_path / "none") == ""


def test_the_servers_are_given_the_credentials_of_prefect(tmp_path):
    """The stack's own server gets a secret; an outside one the setting's, and never ours."""
    own = plan.environment(Settings(home=tmp_path))
    assert own["PREFECT_SERVER_API_AUTH_STRING"] == own["PREFECT_API_AUTH_STRING"]
    assert own["PREFECT_API_AUTH_STRING"] == Settings(home=tmp_path).prefect_credentials
    assert own["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:4200"
    outside = Settings(home=tmp_path, prefect_api_url="https://prefect.example/api")
    assert outside.prefect_credentials == ""
    assert "PREFECT_API_AUTH_STRING" not in plan.environment(outside)
    named = outside.model_copy(update={"prefect_auth": Settings(prefect_auth="me:p@ss:w#rd/%").prefect_auth})
    assert plan.environment(named)["GRAFT_PREFECT_AUTH"] == "me:p@ss:w#rd/%"
    assert named.prefect_api == "https://me:p%40ss%3Aw%23rd%2F%25@prefect.example/api"
    assert "p@ss" not in repr(named)


def test_no_error_shows_the_credentials(tmp_path):
    """Neither of a server that is away nor its cause."""
    settings = Settings(home=tmp_path, prefect_auth="me:p@ss:w#rd", prefect_port=1)
    with pytest.raises(FlowsUnavailable, match=r"127\.0\.0\.1:1") as caught:
        prefect_client.state("x", api_url=settings.prefect_api)
    assert "p@ss" not in str(caught.value)
    assert "p%40ss" not in str(caught.value)
