"""Errors as one sentence each, and tables of what to correct; the log has the rest."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import streamlit as st

from orchestrator.errors import as_json
from ui.components import wording

logger = logging.getLogger(__name__)


@contextmanager
def shown() -> Iterator[None]:
    """Show whatever goes wrong inside instead of raising it."""
    try:
        yield
    except Exception as error:
        show(error)


def show(error: Exception) -> None:
    """One clear sentence, with the error's code and the field it is about."""
    body = as_json(error)["error"]
    if body["code"] == "internal":
        logger.exception("page failed", exc_info=error)
        body = {"code": "internal", "message": "Something failed on Graft's side; see the log of the UI."}
    problems = body.get("details", {}).get("problems")
    if problems and len(problems) > 1:
        show_problems(problems, code=body["code"])
        return
    message = str(body["message"]).strip().replace("\n", "  \n")
    message = message[:1].upper() + message[1:]
    field = f" · field `{body['field']}`" if body.get("field") else ""
    st.error(f"{message}  \n`{body['code']}`{field}")


def show_problems(problems: Sequence[dict[str, Any]], *, code: str) -> None:
    """How many things to correct, and a table of them with line and field."""
    st.error(f"{wording.plural(len(problems), 'thing')} to correct  \n`{code}`")
    has_lines = any(problem.get("line") for problem in problems)
    # A plain table: it wraps long sentences, which the interactive one cuts.
    st.table(
        [
            {
                **({"Line": str(problem.get("line") or "–")} if has_lines else {}),
                "Field": f"`{problem['field']}`" if problem.get("field") else "whole file",
                "What to correct": problem["message"],
            }
            for problem in problems
        ],
        border="horizontal",
        hide_index=True,
    )
