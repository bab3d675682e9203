"""Which servers there are: how each is started, at what address it answers, and its environment."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import socket
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from orchestrator import prefect_client
from orchestrator.credentials import kept_secret
from orchestrator.errors import ServersUnavailable, Unavailable
from orchestrator.settings import Settings


@dataclass(frozen=True)
class Server:
    """How to start one server and how to check its health."""

    name: str
    command: tuple[str, ...]
    health_url: str = ""
    """Answers 200 when the server is healthy."""
    check: Callable[[], bool] = lambda: True
    """What else must hold for it to be healthy."""
    port: int | None = None
    port_setting: str = ""
    address: str = ""
    """The address that a person opens, if there is one."""
    hands_over: bool = False
    """Whether processes that it leaves when it is killed go on answering until the next one takes their place."""
    made_of: str = ""
    """A digest of its command, the settings and the code: a process that was started alike can be taken over."""

    def responds(self) -> bool:
        """Whether anything answers where it should, be it that it is not ready."""
        return not self.health_url or _quietly(lambda: _asked(self.health_url, 5.0) > 0)

    def healthy(self) -> bool:
        """Whether it is healthy now."""
        return (not self.health_url or answers(self.health_url)) and self.check()


def environment(settings: Settings) -> dict[str, str]:
    """Environment of every server: these settings, no usage statistics, and one thread per process unless set.

    Makes the secrets of the stack where it has none yet: of Prefect's API, if it starts that server, and its own key to
    the prediction service.
    """
    home = settings.home.absolute()
    if not settings.prefect_api_url:
        kept_secret(settings.prefect_auth_file)
    kept_secret(settings.service_key_file)
    guard = settings.prefect_credentials
    return {
        **os.environ,
        **settings.as_environment(),
        "GRAFT_HOME": str(home),
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_API_URL": settings.prefect_url,
        **({"PREFECT_SERVER_API_AUTH_STRING": guard, "PREFECT_API_AUTH_STRING": guard} if guard else {}),
        # Its own pages need no other origin; with Prefect's default any page in a person's browser may ask.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": settings.prefect_url.removesuffix("/api"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        **_prefect_forgets(settings),
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "orchestrator,domains,models,feature_repo",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        # How often the worker asks for runs: with the default of 10 s a short run would mostly wait.
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_CLI_PROMPT": "false",
        "DO_NOT_TRACK": "1",
        "BENTOML_HOME": str(settings.artifacts_dir.absolute()),
        "BENTOML_DO_NOT_TRACK": "True",
        "FEAST_USAGE": "False",
        "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false",
        "STREAMLIT_SERVER_HEADLESS": "true",
        "STREAMLIT_SERVER_FILE_WATCHER_TYPE": "none",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1", "localhost", settings.bind_host])),
        "PYTHONUNBUFFERED": "1",
    }


def _prefect_forgets(settings: Settings) -> dict[str, str]:
    """Prefect's own database keeps flow runs for ever by default, and events for a week."""
    if not settings.keep_runs_days:
        return {}
    name = "PREFECT_SERVER_SERVICES_DB_VACUUM"
    seconds = max(3600, int(settings.keep_runs_days * 86_400))  # Prefect takes no shorter time
    return {f"{name}_ENABLED": "events,flow_runs", f"{name}_RETENTION_PERIOD": str(seconds)}


def servers(settings: Settings, *, ui: bool = True, worker: str = "") -> list[Server]:
    """The servers in the order in which they start; without Prefect's if the settings name an outside one.

    Args:
        worker: the name under which the worker reports to Prefect; by default one that no worker had before.
    """
    host, python = settings.bind_host, sys.executable
    planned = []
    if not settings.prefect_api_url:
        planned.append(
            Server(
                "prefect",
                (python, "-m", "prefect", "server", "start", "--host", host, "--port", str(settings.prefect_port)),
                f"{settings.prefect_url}/health",
                port=settings.prefect_port,
                port_setting="prefect_port",
                address=settings.prefect_url.removesuffix("/api"),
            )
        )
    planned.append(service(settings))
    if ui:
        planned.append(
            Server(
                "ui",
                (
                    *(python, "-m", "streamlit", "run", str(_ui_script())),
                    *("--server.address", host, "--server.port", str(settings.ui_port)),
                ),
                f"{settings.ui_url}/_stcore/health",
                port=settings.ui_port,
                port_setting="ui_port",
                address=settings.ui_url,
            )
        )
    name = worker or new_worker_name()
    planned.append(
        Server(
            "worker",
            (
                *(python, "-m", "prefect", "worker", "start", "--type", "process"),
                *("--pool", prefect_client.WORK_POOL, "--name", name, "--install-policy", "never"),
            ),
            check=lambda: _quietly(lambda: prefect_client.worker_online(name, api_url=settings.prefect_api)),
        )
    )
    return [replace(server, made_of=_made_of(server, settings, name)) for server in planned]


def new_worker_name() -> str:
    """A name under which no worker has reported to Prefect yet."""
    return f"worker-{uuid.uuid4().hex[:8]}"


def worker_name(plan: list[Server]) -> str:
    """The name under which the planned worker reports to Prefect; empty where none is planned."""
    found = [server.command for server in plan if "--name" in server.command]
    return found[0][found[0].index("--name") + 1] if found else ""


def service(settings: Settings) -> Server:
    """The prediction service, on the interface of the settings."""
    return Server(
        "service",
        (
            *(sys.executable, "-m", "deployment.http.serve"),
            *("--host", settings.bind_host, "--port", str(settings.service_port)),
        ),
        f"{settings.service_url}/readyz",
        hands_over=True,
        port=settings.service_port,
        port_setting="service_port",
        address=settings.service_url,
    )


def refuse_busy_ports(plan: list[Server], settings: Settings) -> None:
    """Check every port before anything starts.

    Raises:
        ServersUnavailable: one is taken; the message names the port, the server and the setting that changes it.
    """
    for server in plan:
        if server.port is None:
            continue
        with socket.socket(socket.AF_INET6 if ":" in settings.bind_host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.bind_host, server.port))
            except OSError as fault:
                variable = f"GRAFT_{server.port_setting.upper()}"
                raise ServersUnavailable(
                    f"port {server.port} for the {server.name} is taken on {settings.bind_host}; free it or choose "
                    f"another with the setting {server.port_setting} ({variable}={server.port + 1} graft up)"
                ) from fault


def answers(url: str) -> bool:
    """Whether a server at the address says that it is healthy."""
    return _quietly(lambda: _asked(url, 2.0) == 200)


def _asked(url: str, timeout_s: float) -> int:
    return httpx.get(url, timeout=timeout_s, trust_env=False).status_code


def _quietly(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except (httpx.HTTPError, Unavailable):
        return False


def _made_of(server: Server, settings: Settings, worker: str) -> str:
    told = {name: value for name, value in os.environ.items() if name.startswith(("OMP_", "PREFECT_", "BENTOML_"))}
    told |= {**settings.as_environment(), "GRAFT_HOME": str(settings.home.absolute())}
    said = [[word for word in server.command if word != worker], sorted(told.items()), _code()]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


@functools.cache
def _code() -> float:
    """When a module of Graft was last changed: servers that run older code are not taken over."""
    root = Path(__file__).parents[2]
    packages = [found for found in root.glob("*/__init__.py") if (found.parent / "py.typed").exists()]
    return max(file.stat().st_mtime for package in packages for file in package.parent.rglob("*.py"))


def _ui_script() -> Path:
    found = importlib.util.find_spec("ui")
    if found is None or found.origin is None:
        raise ServersUnavailable("the package ui is not installed; start with --no-ui")
    return Path(found.origin).with_name("door.py")
