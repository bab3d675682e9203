"""Secrets are shown nowhere and lie in no file that others can read."""

from __future__ import annotations

import os

import pytest
from pydantic import ValidationError

from feature_repo import definitions
from feature_repo.definitions import FeatureRepo
from orchestrator import use_cases
from orchestrator.credentials import kept_secret
from orchestrator.servers import plan
from orchestrator.settings import Settings

SECRETS = {
    "database_url": "postgresql+psycopg://u:MARKED%40%23@db/x",
    "online_store_address": "redis:6379,password=MARKED",
    "api_key": "graft_MARKED",
    "prefect_auth": "graft:MARKED",
}


def test_settings_are_printed_without_their_secrets(tmp_path):
    """Whole or in a list, by whoever logs them; the environment of Graft's own processes still holds them."""
    settings = Settings(home=tmp_path, **SECRETS)
    assert "MARKED" not in f"{settings} {settings!r} {[settings]}"
    told = settings.as_environment()
    assert told["GRAFT_DATABASE_URL"] == SECRETS["database_url"]
    assert told["GRAFT_PREFECT_AUTH"] == SECRETS["prefect_auth"]


def test_a_wrong_setting_is_named_without_the_values_of_any(monkeypatch):
    """Pydantic shows what it was given unless it is told not to."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(f"GRAFT_{name.upper()}", value)
    monkeypatch.setenv("GRAFT_SERVICE_PORT", "MARKED")
    with pytest.raises(ValidationError) as fault:
        Settings()
    assert "service_port" in str(fault.value)
    assert "MARKED" not in str(fault.value)


def test_commands_carry_no_secret(tmp_path):
    """Arguments are read by every process of the machine."""
    settings = Settings(home=tmp_path, **SECRETS)
    held = plan.environment(settings)
    own = [settings.service_key_file.read_text(), settings.prefect_auth_file.read_text()]
    for server in plan.servers(settings):
        words = " ".join((*server.command, server.address, server.health_url))
        assert "MARKED" not in words
        assert not [secret for secret in own if secret in words]
    assert "MARKED" in held["PREFECT_API_AUTH_STRING"]


@pytest.mark.slow
def test_files_with_secrets_are_for_their_owner_alone(tmp_path):
    """Under the usual umask; Feast's settings hold a password of Redis, the registry holds hashes of passwords."""
    before = os.umask(0o022)
    try:
        settings = Settings(home=tmp_path / "home")
        use_cases.open_registry(settings).close()
        kept_secret(settings.ui_secret_file)
        repo = FeatureRepo(settings.features_dir)
        definitions.apply(repo)
        yaml = settings.features_dir / "feature_store.yaml"
        yaml.chmod(0o644)  # one of before
        definitions.apply(repo)
    finally:
        os.umask(before)
    for path in (settings.home / "registry.db", settings.ui_secret_file, yaml):
        assert path.stat().st_mode & 0o077 == 0, path
    assert settings.home.stat().st_mode & 0o777 == 0o700
