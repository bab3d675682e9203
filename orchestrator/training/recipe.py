"""What to train and how: one frozen value, stored with every run and every version it makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.ranker.config import Architecture

RATING = {
    "architecture": "dacdr",
    "wide_features": "many",
    "head": (64, 32),
    "width": 16,
    "epochs": 3,
    "learning_rate": 1e-3,
    "fine_tune_epochs": 3,
    "fine_tune_learning_rate": 1e-3,
    "fine_tune_batch_size": 1024,
}
"""Where ratings differ from clicks: warm users are few, so the network is small and stops early."""

OF_THE_SHARED_MODEL = (
    "architecture",
    "pyramid",
    "width",
    "wide_features",
    "head",
    "lifelong",
    "short",
    "user_embedding",
    "contrastive_weight",
    "source_weighting",
)
"""Choices that shared training makes and a launch takes over: what the network is built of and learns by."""


class Recipe(BaseModel):
    """Choices of a training run. The defaults are what evidence favoured; docs/experiments.md has the losers."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_task(cls, values: Any) -> Any:
        return {**RATING, **values} if isinstance(values, dict) and values.get("task") == "rating" else values

    domains: tuple[str, ...] = ()
    """Source domains that shared training learns from, and targets that it asks where sources are weighed; empty means
    all that have data and share the task."""
    leave_out: tuple[str, ...] = ()
    """Domains to keep out of shared training. Targets teach it nothing: leaving one out matters where sources are
    weighed, for it is not asked then."""
    task: Literal["ctr", "rating"] = "ctr"
    """Clicks or ratings; a shared model has one head."""
    architecture: Architecture = "dacdr+lcn"
    """How the source history is read: cross-attention, lifelong pyramid, both views side by side, or cross-attention
    over the events that the pyramid selects, beside the pyramid's view. All but the first read the latest events of
    both sides as well."""
    pyramid: Literal["auto", "LCN-200-50", "LCN-500-100", "none"] = "auto"
    """Events that the pyramid's second and third level read, where the architecture has a pyramid. By itself it is
    LCN-200-50, but none beside cross-attention over histories so short that it would leave nothing out."""
    width: int = Field(default=32, ge=4, le=512)
    """Embedding width."""
    lifelong: int = Field(default=100, ge=1, le=2000)
    """Source events that a row may see."""
    short: int = Field(default=24, ge=1, le=200)
    """Latest events in the short views."""
    wide_features: Literal["auto", "few", "many"] = "auto"
    """What the wide part reads, on which every architecture builds: a few features whose weights descent learns, or
    many whose weights are solved for in closed form. ``auto`` is many for ratings and for clicks made of ratings."""
    head: tuple[int, ...] = (256, 128)
    """Widths of the head. Beside many wide features little is left to learn, from fewer users: a small one will do."""
    user_embedding: bool = False
    """Give each user a row of their own beside the history; helps warm users only."""
    epochs: int = Field(default=3, ge=1)
    batch_size: int = Field(default=1024, ge=8)
    learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    patience: int = Field(default=1, ge=0)
    """Epochs without a better validation score before training stops."""
    source_weighting: Literal["uniform", "weighed"] = "uniform"
    """How source rows count in shared training: all alike, or each by what it gives the targets (CCTL)."""
    contrastive_weight: float = Field(default=0.0, ge=0)
    """Weight of LCN's cross representation production; 0 leaves it out."""
    fine_tune_epochs: int = Field(default=8, ge=1)
    fine_tune_learning_rate: float = Field(default=3e-3, gt=0)
    fine_tune_items: bool = True
    """Whether fine-tuning moves the rows of the domain's own items; without, a few thousand numbers are all it has."""
    fine_tune_batch_size: int = Field(default=256, ge=8)
    baselines: tuple[Literal["single_domain", "shared_bottom", "full_fine_tune", "scratch"], ...] = ()
    """Baselines to train for a launch's report, beside those that the policy and the domain's gate name."""
    baseline_source_rows: int = Field(default=100_000, ge=1)
    """Rows of each source that the shared-bottom baseline learns from, at most, so that a launch takes minutes."""
    seeds: int = Field(default=1, ge=1, le=20)
    """How often a launch fine-tunes and trains its baselines, under seeds that follow each other, where that is more
    than the policy asks; the version offered is always the first seed's."""
    bf16: bool = False
    """Make the products of training in bfloat16; weights, losses, optimisers and all scores stay float32."""
    seed: int = 0
    checkpoint_every_steps: int = Field(default=200, ge=1)
    processes: int = Field(default=1, ge=1, le=64)
    """Processes that share the work of shared training, each with its part of every batch and of the large tables."""

    @model_validator(mode="after")
    def _weighed_in_one_process(self) -> Self:
        if self.source_weighting == "weighed" and self.processes > 1:
            raise ValueError(
                "source_weighting=weighed trains in one process: choose source_weighting=uniform or processes=1"
            )
        return self

    @model_validator(mode="after")
    def _selects_before_it_reads(self) -> Self:
        if self.architecture == "domain_over_pyramid" and self.pyramid == "none":
            raise ValueError(
                "architecture=domain_over_pyramid reads what a pyramid selects: choose one, or architecture=dacdr+lcn"
            )
        return self

    @classmethod
    def of_launch(
        cls, task: str, asked: Mapping[str, Any], shared: Mapping[str, Any], *, before: Mapping[str, Any] | None = None
    ) -> Self:
        """What a launch does: what is asked of it, on a shared model that was trained by the recipe ``shared``.

        Args:
            before: choices of the version that this one is to follow, which hold where nothing else is asked.

        Raises:
            ValueError: it asks for a network that the shared model is not.
        """
        built = {name: shared[name] for name in OF_THE_SHARED_MODEL if name in shared}
        for name in built.keys() & asked.keys():
            if asked[name] != built[name]:
                raise ValueError(
                    f"{name}={asked[name]} is a choice of the shared model, which was trained with {built[name]}; "
                    f"train it anew (graft train --set {name}={asked[name]}) or leave the choice out of the launch"
                )
        inherited = {name: value for name, value in (before or {}).items() if name in cls.model_fields}
        return cls.model_validate({**inherited, "task": task, **asked, **built})
