"""What pages are laid out with: headings, empty states, badges, rows of figures, dialogs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import ParamSpec

import streamlit as st

from ui.components import errors
from ui.components.wording import Label

P = ParamSpec("P")


def heading(title: str, lead: str) -> None:
    """The top of a page: what it is and one line on what it is for."""
    st.title(title, anchor=False)
    st.markdown(f":gray[{lead}]")


def empty(title: str, text: str, *, page: str, link: str) -> None:
    """What a page shows when there is nothing yet: what will appear here, and how to get there."""
    with st.container(border=True, horizontal_alignment="center"):
        st.space("small")
        st.markdown(f"#### {title}", width="content")
        st.markdown(text, width="content")
        if st.button(link, type="primary", key=f"empty-{page}"):
            st.switch_page(page)
        st.space("small")


def badge(label: Label) -> None:
    """A coloured word that explains itself on hover."""
    st.badge(label.text, color=label.colour, help=label.meaning or None)


def figures(values: Mapping[str, str | int]) -> None:
    """Large numbers in a row, each under its title."""
    for column, (title, value) in zip(st.columns(len(values)), values.items(), strict=True):
        column.metric(title, value)


def dialog(title: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """A dialog that shows what goes wrong inside it."""

    def wrap(draw: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(draw)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
            with errors.shown():
                draw(*args, **kwargs)

        return st.dialog(title)(guarded)

    return wrap
