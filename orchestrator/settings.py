"""Where Graft runs: one frozen value, built only in entry points (command line, flows, service, pages)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from feature_repo.online_stores import ONLINE_STORES

Baseline = Literal["popularity", "single_domain", "shared_bottom", "full_fine_tune", "scratch"]


def _listed(value: Any) -> Any:
    """``popularity, scratch`` as the environment writes it."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _online_store(name: str) -> str:
    if name not in ONLINE_STORES:
        raise ValueError(f"no online store is called {name!r}; there are {', '.join(ONLINE_STORES)}")
    return name


class Settings(BaseSettings):
    """Read from the environment: ``GRAFT_HOME=/data/graft graft up``. Nothing here says what to train."""

    model_config = SettingsConfigDict(env_prefix="GRAFT_", frozen=True, extra="ignore", use_attribute_docstrings=True)

    home: Path = Path(".graft")
    """Folder that holds everything Graft writes: registry, events, features, artifacts, logs."""
    database_url: str = ""
    """Registry database; empty means SQLite inside the home folder. PostgreSQL: postgresql+psycopg://user@host/name."""
    online_store: Annotated[str, AfterValidator(_online_store)] = "sqlite"
    """Feast's online store: sqlite or redis."""
    online_store_address: str = ""
    """Where that store answers; empty for its usual place. Redis: host:port[,password=...]."""
    bind_host: str = "127.0.0.1"
    """Interface that every server binds to."""
    service_port: int = 3000
    """Port of the prediction service."""
    service_workers: int = Field(default=1, ge=1)
    """Processes of the prediction service, each with all domains; more than cores makes every request slower."""
    ui_port: int = 8501
    """Port of the web UI."""
    prefect_port: int = 4200
    """Port of the Prefect server."""
    prefect_api_url: str = ""
    """Prefect server to use; empty means the one that `graft up` starts."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where tensors live; auto takes a GPU when there is one."""
    frozen_cache_mb: int = Field(default=1024, ge=0)
    """Memory in MB in which fine-tuning may keep what the frozen shared model makes of rows; 0 for none."""
    threads: int = Field(default=0, ge=0)
    """Threads for training; 0 means one per core. The service always uses one per worker."""
    required_baselines: Annotated[tuple[Baseline, ...], NoDecode, BeforeValidator(_listed)] = (
        "popularity",
        "single_domain",
        "shared_bottom",
        "full_fine_tune",
        "scratch",
    )
    """What every launch is compared with, separated by commas; neither a spec nor a launch can leave one out."""
    required_seeds: int = Field(default=3, ge=1, le=20)
    """Seeds under which a launch fine-tunes and trains its baselines, at least."""
    price_per_processor_hour: float = Field(default=0.0, ge=0)
    """What an hour of one processor costs, for the reports; 0 where nobody knows."""
    currency: str = ""
    """The money of that price, such as EUR."""
    keep_predictions_days: float = Field(default=0.0, ge=0)
    """Days that the log of answers and feedback goes back; what is older is deleted. 0 keeps all."""

    def as_environment(self) -> dict[str, str]:
        """The variables that make another process start with these settings."""
        return {
            f"GRAFT_{name.upper()}": ",".join(value) if isinstance(value, tuple) else str(value)
            for name, value in self.model_dump().items()
        }

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
        """Checkpoints of runs in progress, one folder a run."""
        return self.home / "runs"

    @property
    def logs_dir(self) -> Path:
        return self.home / "logs"

    @property
    def prefect_url(self) -> str:
        return self.prefect_api_url or f"http://{self.bind_host}:{self.prefect_port}/api"

    @property
    def service_url(self) -> str:
        return f"http://{self.bind_host}:{self.service_port}"

    @property
    def ui_url(self) -> str:
        return f"http://{self.bind_host}:{self.ui_port}"
