"""Freed memory stays with the process where the C library lets it."""

import subprocess
import sys

import pytest

from models.training import allocator


def test_other_platforms_are_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()


def test_a_c_library_without_the_call_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert not allocator.keep_freed_memory()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc gives freed memory back so eagerly")
@pytest.mark.slow
def test_large_tensors_made_again_and_again_come_to_cost_no_new_pages():
    """Writing 64 MB takes 16,384 page faults; once there is room for it, next to none."""
    script = """
import resource, torch
from models.training.allocator import keep_freed_memory
kept = keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
made = [faults() for _ in range(20)]
print(int(kept), made[0], sorted(made[10:])[5])
"""
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    kept, first, later = map(int, told.split())
    if not kept:
        pytest.skip("this C library has no mallopt")
    assert later * 10 < first
