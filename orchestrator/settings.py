"""Where and how Graft runs: one frozen value, built only in entry points (command line, flows, service, pages)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from domains.registry.database import check_url
from feature_repo.online_stores import ONLINE_STORES
from orchestrator.credentials import read_secret
from orchestrator.hosts import in_url

Port = Annotated[int, Field(ge=1, le=65_535)]
Baseline = Literal["popularity", "single_domain", "shared_bottom", "full_fine_tune", "scratch"]


def _split(value: Any) -> Any:
    """Split ``popularity, scratch``, as an environment variable has it."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value


def _folder(path: Path) -> Path:
    # Where the databases inside are named by URL, a question mark would end the name.
    if "?" in str(path) or not str(path).isprintable():
        raise ValueError("must name a folder, in printable characters and without a question mark")
    return path


def _not_empty(value: Any) -> Any:
    if value == "":  # as a path it would be the current folder
        raise ValueError("must name a folder")
    return value


def _database(url: str) -> str:
    if url:
        check_url(url)
    return url


def _host(name: str) -> str:
    if not re.fullmatch(r"[0-9A-Za-z_.:-]*[0-9A-Za-z_:]", name):
        raise ValueError("must be the name or the address of one of this machine's interfaces, such as 127.0.0.1")
    return name


def _store_address(address: str) -> str:
    if not address.isprintable() or " " in address:
        raise ValueError("must be host:port[,password=...], without spaces")
    return address


def _http_url(url: str) -> str:
    if url and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s]*)?", url):
        raise ValueError("must be a URL such as http://host:4200/api; its user and password are set apart")
    return url


def _token(key: SecretStr) -> SecretStr:
    if not re.fullmatch("[!-~]*", key.get_secret_value()):
        raise ValueError("must be ASCII characters without spaces")
    return key


def _user_and_password(pair: SecretStr) -> SecretStr:
    if pair.get_secret_value() and not re.fullmatch(r"[^:\s]+:\S+", pair.get_secret_value()):
        raise ValueError("must be of the form user:password, without spaces")
    return pair


def _short_text(text: str) -> str:
    if len(text) > 16 or not text.isprintable():
        raise ValueError("must be at most 16 printable characters")
    return text


def _online_store(name: str) -> str:
    if name not in ONLINE_STORES:
        raise ValueError(f"no online store is called {name!r}; there are {', '.join(ONLINE_STORES)}")
    return name


def _as_text(value: Any) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple):
        return ",".join(value)
    return "" if value is None else str(value)


class Settings(BaseSettings):
    """Read from the environment: ``GRAFT_HOME=/data/graft graft up``. What to train is said by specs and recipes."""

    model_config = SettingsConfigDict(
        env_prefix="GRAFT_",
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # a database URL holds a password
    )

    home: Annotated[Path, BeforeValidator(_not_empty), AfterValidator(_folder)] = Path(".graft")
    """Folder of everything that Graft writes: registry, events, features, artifacts, logs."""
    import_dir: Annotated[Path | None, BeforeValidator(_none_if_empty)] = None
    """Folder whose files the pages of the UI may read, links out of it excluded; empty: they take uploads alone."""
    database_url: Annotated[str, AfterValidator(_database)] = Field(default="", repr=False)
    """Registry database; empty means SQLite inside the home folder. PostgreSQL: postgresql+psycopg://user@host/name."""
    online_store: Annotated[str, AfterValidator(_online_store)] = "sqlite"
    """Feast's online store: sqlite or redis."""
    online_store_address: Annotated[str, AfterValidator(_store_address)] = Field(default="", repr=False)
    """Where that store answers; empty for its usual place. Redis: host:port[,password=...]."""
    bind_host: Annotated[str, AfterValidator(_host)] = "127.0.0.1"
    """Interface that every server binds to."""
    service_port: Port = 3000
    """Port of the prediction service."""
    service_workers: int = Field(default=1, ge=1, le=1024)
    """Processes of the prediction service, each serving all domains; more of them than cores slows every request."""
    api_key: Annotated[SecretStr, AfterValidator(_token)] = SecretStr("")
    """API key that `graft rank` and the pages of the UI send to the prediction service; empty for the stack's own,
    kept in the file `service-key` of the home folder."""
    service_keep_alive_s: int = Field(default=75, ge=1, le=86_400)
    """Seconds that the service keeps an idle connection open: longer than a proxy before it keeps its own, or the proxy
    meets closed ones."""
    ui_port: Port = 8501
    """Port of the web UI."""
    prefect_port: Port = 4200
    """Port of the Prefect server."""
    prefect_api_url: Annotated[str, AfterValidator(_http_url)] = ""
    """API of the Prefect server to use; empty means the one that `graft up` starts."""
    prefect_auth: Annotated[SecretStr, AfterValidator(_user_and_password)] = SecretStr("")
    """The `user:password` that Prefect's API asks for (basic authentication); empty for the server that `graft up`
    starts, which gets one of its own, kept in the file `prefect-auth` of the home folder."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that training computes on; auto takes a GPU when there is one."""
    frozen_cache_mb: int = Field(default=1024, ge=0)
    """Memory in MB for the frozen-activation cache of fine-tuning; 0 turns the cache off."""
    threads: int = Field(default=0, ge=0, le=1024)
    """Threads that training computes with, shared among the processes of a run; 0 leaves the number to OMP_NUM_THREADS
    (`graft up` sets it to 1 unless it is set), or else to the number of cores. The service uses one per worker."""
    required_baselines: Annotated[tuple[Baseline, ...], NoDecode, BeforeValidator(_split)] = (
        "popularity",
        "single_domain",
        "shared_bottom",
        "full_fine_tune",
        "scratch",
    )
    """Baselines that every launch is compared with, separated by commas; no spec and no launch can leave one out."""
    required_seeds: int = Field(default=3, ge=1, le=20)
    """Number of seeds that a launch fine-tunes and trains its baselines under, at least."""
    price_per_processor_hour: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Price of one processor for an hour, for the costs in reports; 0 when unknown."""
    currency: Annotated[str, AfterValidator(_short_text)] = ""
    """Currency of that price, such as EUR."""
    keep_predictions_days: float = Field(default=30.0, ge=0, le=36_500)
    """Days that the log of answers and feedback is kept; 0 keeps it for ever."""
    keep_predictions_rows: int = Field(default=20_000_000, ge=0)
    """Rows of that log, one for each of an answer's first 20 positions and for each feedback; beyond it the oldest
    hours go first (20 million take about 6 GB); 0 sets no bound."""
    keep_runs_days: float = Field(default=30.0, ge=0, le=36_500)
    """Days that the folder of a finished run is kept, and its record unless it is among the newest; 0 keeps all."""
    keep_versions: int = Field(default=10, ge=0)
    """Versions of a domain, and of the shared model, whose files are kept beside those in use; 0 keeps all of them."""
    keep_audit_days: float = Field(default=1095.0, ge=0, le=36_500)
    """Days that the audit log is kept; less than a year counts as one, 0 keeps it for ever."""
    log_mb: int = Field(default=20, ge=1)
    """Size in MB at which the log of a server is moved aside."""
    log_files: int = Field(default=5, ge=0)
    """Older logs that are kept of each server."""

    def as_environment(self) -> dict[str, str]:
        """Environment variables that give another process these settings."""
        return {f"GRAFT_{name.upper()}": _as_text(value) for name, value in self.model_dump().items()}

    @property
    def registry_url(self) -> str:
        return self.database_url or f"sqlite:///{self.home.absolute() / 'registry.db'}"

    @property
    def data_dir(self) -> Path:
        """Validated events, items and users of every domain."""
        return self.home / "data"

    @property
    def features_dir(self) -> Path:
        """Feast's offline Parquet, registry and SQLite online store."""
        return self.home / "features"

    @property
    def artifacts_dir(self) -> Path:
        """BentoML's home: its model store holds every version."""
        return self.home / "bentoml"

    @property
    def runs_dir(self) -> Path:
        """Checkpoints and results of runs, one folder per run."""
        return self.home / "runs"

    @property
    def logs_dir(self) -> Path:
        return self.home / "logs"

    @property
    def servers_file(self) -> Path:
        """What `graft up` runs on this machine."""
        return self.home / "servers.json"

    @property
    def prefect_patience_s(self) -> float:
        """How long a run that is started waits for a Prefect server that is looked after, and so is being restarted."""
        return 60.0 if self.prefect_api_url or self.servers_file.exists() else 0.0

    @property
    def prefect_url(self) -> str:
        return self.prefect_api_url or f"http://{in_url(self.bind_host)}:{self.prefect_port}/api"

    @property
    def service_key_file(self) -> Path:
        """Where the stack keeps the key of its own processes to the prediction service: every verb, every domain."""
        return self.home / "service-key"

    @property
    def service_headers(self) -> dict[str, str]:
        """What identifies this process to the prediction service; nothing where it has no key."""
        key = self.api_key.get_secret_value() or read_secret(self.service_key_file)
        return {"Authorization": f"Bearer {key}"} if key else {}

    @property
    def ui_secret_file(self) -> Path:
        """Where the pages keep the secret that signs their sessions; another secret ends them all."""
        return self.home / "ui-secret"

    @property
    def prefect_auth_file(self) -> Path:
        """Where the stack keeps the secret of the Prefect server that it starts."""
        return self.home / "prefect-auth"

    @property
    def prefect_credentials(self) -> str:
        """``user:password`` for Prefect's API; empty where it asks for none."""
        own = "" if self.prefect_api_url else read_secret(self.prefect_auth_file)
        return self.prefect_auth.get_secret_value() or (f"graft:{own}" if own else "")

    @property
    def prefect_api(self) -> str:
        """Prefect's API with the credentials in the URL: for ``prefect_client``, never for a person to see."""
        user, _, password = self.prefect_credentials.partition(":")
        scheme, _, rest = self.prefect_url.partition("://")
        return f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{rest}" if user else self.prefect_url

    @property
    def service_url(self) -> str:
        return f"http://{in_url(self.bind_host)}:{self.service_port}"

    @property
    def ui_url(self) -> str:
        return f"http://{in_url(self.bind_host)}:{self.ui_port}"
