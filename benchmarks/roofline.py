"""What a training step needs at least where it runs: its products and gathers at the speeds that the device reaches.

    python -m benchmarks.training --device cuda

times steps on the GPU beside that arithmetic; where there is none it says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.workload import WIDTH, Ours, Shape, Workload, shared


@dataclass(frozen=True)
class Ceilings:
    """What a device reaches: floating-point operations a second of a large product, bytes a second of a gather."""

    products: float
    gather: float

    def floor(self, step: Ours) -> tuple[float, float]:
        """Milliseconds that one step's products need, and the rows of its histories.

        Products are what torch counts; rows are read once, and their gradients written once. Takes a step.
        """
        with FlopCounterMode(display=False) as counted:
            step.step()
        rows = 2 * step.batch.lifelong.item.numel() * WIDTH * 4
        return counted.get_total_flops() / self.products * 1e3, rows / self.gather * 1e3


def ceilings(device: str = "cpu") -> Ceilings:
    """Measured now, the best of a few tries each."""
    size, count = (1024, 128_000) if device == "cpu" else (8192, 4_000_000)
    left, right = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    table = torch.randn(200_000, WIDTH, device=device)
    rows = torch.randint(0, 200_000, (count,), device=device)
    out = torch.empty(count, WIDTH, device=device)
    product = 2 * size**3 / seconds(lambda: torch.mm(left, right), device, tries=8)
    return Ceilings(
        product, out.numel() * 4 / seconds(lambda: torch.index_select(table, 0, rows, out=out), device, tries=8)
    )


def seconds(work: Callable[[], Any], device: str, *, tries: int) -> float:
    """The best of a few tries: processor time on a CPU, time until the device is done elsewhere."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    took = []
    for _ in range(tries):
        began = clock()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        took.append(clock() - began)
    return min(took)


def on_gpu(shapes: list[Shape]) -> Iterator[str]:
    """A line per shape: what a step takes on the GPU, in float32 and bfloat16, beside its floor."""
    if not torch.cuda.is_available():
        yield "roofline skipped: torch finds no GPU here"
        return
    limits = ceilings("cuda")
    yield f"{torch.cuda.get_device_name()}: {limits.products / 1e12:.1f} TFLOP/s, gather {limits.gather / 1e9:.0f} GB/s"
    for shape in shapes:
        step = shared(Workload(shape), "dacdr+lcn", device="cuda")
        products, rows = limits.floor(step)
        took = [seconds(step.step, "cuda", tries=10) * 1e3]
        step.config = replace(step.config, bf16=True)
        took.append(seconds(step.step, "cuda", tries=10) * 1e3)
        yield (
            f"roofline L={shape.length} {took[0]:.1f} ms a step, {took[0] / (products + rows):.1f}x its floor "
            f"(products {products:.2f} ms, rows {rows:.2f} ms); bfloat16 {took[1]:.1f} ms"
        )
