"""Where tensors live, from what a setting asks for."""

from __future__ import annotations

from typing import Literal

import torch

Wanted = Literal["auto", "cpu", "cuda"]


def device_for(wanted: Wanted) -> str:
    """``cpu`` or ``cuda``; ``auto`` is a GPU where there is one.

    Raises:
        ValueError: a GPU was asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("GRAFT_DEVICE is cuda, but torch finds no GPU here: set it to auto or cpu")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
