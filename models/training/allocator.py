"""Memory that a step frees stays in the process, for the next step to use.

A training step on long histories makes and frees tensors of many megabytes. By default the C library gives such memory
back at once and asks for it anew, and the kernel hands every page over cleared: that can be half of the step. Programs
of Graft call `keep_freed_memory` when they start.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys

# Names of glibc's malloc.h, and what they are set to. -1 is never to trim: any number a call can name is below the
# gigabytes that a step on 2,000 events frees.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_SETTINGS = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 << 20))


def keep_freed_memory() -> bool:
    """Have malloc keep what is freed; returns whether this C library does. Only memory asked for later is affected."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # a C library other than glibc
        return False
    accepted = [mallopt(name, value) == 1 for name, value in _SETTINGS]
    return all(accepted)


def give_freed_memory_back() -> None:
    """Hand freed memory to the kernel once, where this C library can."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
