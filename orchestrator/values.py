"""Frozen values that know how to write and read themselves as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """A frozen value: ``as_dict`` is its only writer, ``from_dict`` its only reader; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """What `as_dict` wrote.

        Raises:
            pydantic.ValidationError: a key is missing, unknown or of another type.
        """
        return cls.model_validate(found)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON of what was given; what was left to its default is left out."""
        return self.model_dump(mode="json", exclude_unset=True)
