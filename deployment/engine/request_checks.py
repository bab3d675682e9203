"""What is wrong with parts of a ranking request, found before it is scored: each fault costs its own field alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from deployment.engine.scorer import LiveDomain
from deployment.messages import Candidate, FieldWarning, RankRequest

MOST_WARNINGS = 20
"""Warnings that an answer lists; the last one then says how many there were."""
_NUMBER = re.compile(r"\s*([+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?)?\s*", re.ASCII)
_LARGEST_WHOLE = 2**63 - 1


class _Warnings:
    def __init__(self) -> None:
        self._listed: list[FieldWarning] = []
        self._count = 0

    def add(self, field: str, message: str) -> None:
        self._count += 1
        if len(self._listed) < MOST_WARNINGS:
            self._listed.append(FieldWarning(field=field, message=message))

    def listed(self) -> list[FieldWarning]:
        if self._count > MOST_WARNINGS:
            rest = self._count - MOST_WARNINGS + 1
            self._listed[-1] = FieldWarning(field="", message=f"and {rest} more")
        return self._listed


def checked(domain: LiveDomain, request: RankRequest) -> tuple[RankRequest, list[FieldWarning]]:
    """The request without what cannot be used, and what that was.

    A feature value that cannot be used, or whose name nobody knows, is as if it had not been sent: what is stored
    counts. Of a candidate that comes twice the first is kept.
    """
    warnings = _Warnings()
    changed: dict[str, Any] = {}
    for name in ("user", "context"):
        values = getattr(request, name)
        if values:
            changed[name] = _usable(values, _kinds(domain, name), name, warnings)
    kinds = _kinds(domain, "items") if any(candidate.features for candidate in request.items) else {}
    items, seen = [], set()
    for at, candidate in enumerate(request.items):
        if candidate.item_id in seen:
            warnings.add(f"items.{at}.item_id", "comes twice; the first is ranked")
            continue
        seen.add(candidate.item_id)
        if candidate.features:
            usable = _usable(candidate.features, kinds, f"items.{at}.features", warnings)
            items.append(Candidate.model_construct(item_id=candidate.item_id, features=usable))
        else:
            items.append(candidate)
    if warnings.listed():
        changed["items"] = items
        return request.model_copy(update=changed), warnings.listed()
    return request, []


def _kinds(domain: LiveDomain, place: str) -> Mapping[str, str]:
    """Names and kinds of the features that the domain declares or its model reads."""
    declared = domain.features.get(place, {})
    if domain.model is None:
        return declared
    book = {"user": domain.model.user_book, "context": domain.model.context_book, "items": domain.model.item_book}
    return {field.name: field.kind for field in book[place].fields} | dict(declared)


def _usable(values: Mapping[str, Any], kinds: Mapping[str, str], place: str, warnings: _Warnings) -> dict[str, Any]:
    usable = {}
    for name, value in values.items():
        problem = _problem(value, kinds.get(name))
        if problem is None:
            usable[name] = value
        else:
            plain = name.encode("ascii", "backslashreplace").decode()[:80]
            warnings.add(f"{place}.{plain}", problem)
    return usable


def _problem(value: Any, kind: str | None) -> str | None:
    """Why a feature's value cannot be used; None where it can."""
    problem = None
    if kind is None:
        problem = "is no feature of this domain"
    elif value is None:
        pass
    elif isinstance(value, bool):
        problem = "must be a number" if kind == "number" else None
    elif isinstance(value, int):
        problem = "is too large a number" if abs(value) > _LARGEST_WHOLE else None
    elif isinstance(value, float):
        problem = None if math.isfinite(value) else "must be a finite number"
    elif isinstance(value, str):
        problem = _text_problem(value, kind)
    else:
        problem = "must be text, a number, true, false or null"
    return problem


def _text_problem(value: str, kind: str) -> str | None:
    if kind == "number":
        # What a caller holds as text may be a number all the same; an infinite one is none.
        number = _NUMBER.fullmatch(value)
        return None if number and (not number[1] or math.isfinite(float(number[1]))) else "must be a number"
    return None if value.isascii() or _is_unicode(value) else "is not valid text"


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
