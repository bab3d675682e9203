"""A PostgreSQL server for tests: Debian's binaries, a folder of its own, a free port on loopback."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest


def _binaries() -> Path | None:
    """Debian keeps the servers of each major version out of PATH."""
    on_path = shutil.which("postgres")
    installed = [Path(on_path).parent] if on_path else []
    installed += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    return next((folder for folder in reversed(installed) if (folder / "initdb").exists()), None)


def _account() -> dict[str, object]:
    """PostgreSQL refuses root: run it as an account that owns nothing else of ours."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    pytest.skip("PostgreSQL refuses root, and there is no other account to run it as")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a running server, without a database name; stopped and erased after the session."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed")
    account = _account()
    # Not pytest's own folder: that is closed to other accounts.
    home = Path(tempfile.mkdtemp(prefix="graft-postgres-"))
    if account:
        os.chown(home, int(str(account["user"])), int(str(account["group"])))
    data = home / "data"
    initialise = [
        binaries / "initdb",
        "-D",
        data,
        "-U",
        "graft",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale=C",
        "--no-sync",
    ]
    done = subprocess.run(initialise, cwd=home, capture_output=True, text=True, check=False, **account)
    assert done.returncode == 0, done.stderr
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Nothing here outlives the machine, so nothing waits for the disk.
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": home,
        "fsync": "off",
        "max_connections": 200,
    }
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            [binaries / "postgres", "-D", data, *options], cwd=home, stdout=log, stderr=log, **account
        )
    try:
        _wait(server, port, home / "log")
        yield f"postgresql://graft@127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGINT)  # ends the sessions that are still open, unlike SIGTERM
        server.wait(timeout=30)
        shutil.rmtree(home)


def _wait(server: subprocess.Popen, port: int, log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="graft", dbname="postgres").close()
        except psycopg.OperationalError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"PostgreSQL did not answer within 30 s:\n{log.read_text()}")


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """SQLAlchemy URL of a fresh, empty database; dropped after the test."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(f"{postgres_server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield f"{postgres_server}/{name}".replace("postgresql://", "postgresql+psycopg://")
    with psycopg.connect(f"{postgres_server}/postgres", autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
