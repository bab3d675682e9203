"""How fast training is: beside the models that a user would pick instead, beside itself, beside the machine's ceilings.

    python -m benchmarks.training [--goals P1,P4] [--json FILE] [--quick] [--device cuda]

prints a line per goal, such as ``P1 L=500 2.79x gate 2.0x ok`` (or MISS, or skipped with the reason). Installs nothing:
a peer that is not there is skipped, and ``pip install -e '.[bench]'`` brings them.

ModelZoo take turns in one process on one thread, both with the allocator set as Graft's programs set it, ids
Zipf-distributed. Figures are medians of the process' CPU time, which a busy machine bends less than the clock; wall
time stands beside them in the JSON. Ours is the composed ranker (DACDR and LCN) in the product's own loop with its
default settings, on batches that the product's batch builder made: up to 8 rows of a user share a history. "alone" is
the same with every row's history its own.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import gc
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch

from benchmarks import fuxictr_models
from benchmarks.roofline import ceilings, on_gpu
from benchmarks.workload import WIDTH, FineTuning, Shape, Workload, shared, whole_on_target
from models.training.allocator import give_freed_memory_back, keep_freed_memory

SESSION = 8
LENGTHS = (50, 500, 2000)
MANY_ITEMS = 5_000_000
EPOCHS_OF_A_LAUNCH = 3  # a recipe allows eight, and stops after the first that is no better


class Trainer(Protocol):
    """Something that can take a training step."""

    def step(self) -> None: ...


@dataclass
class Line:
    """One goal as measured. ``value`` is a ratio or a share; ``most`` says that it must not exceed the gate."""

    goal: str
    case: str
    value: float | None
    gate: float
    unit: str = "x"
    most: bool = False
    why: str = ""
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """ok, MISS or skipped."""
        if self.value is None:
            return "skipped"
        return "ok" if (self.value <= self.gate if self.most else self.value >= self.gate) else "MISS"

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.goal} {self.case} skipped: {self.why}"
        sign = "<= " if self.most else ""
        told = ", ".join(f"{name} {figure:.0f} ms" for name, figure in self.detail.get("cpu_ms", {}).items())
        told = "; ".join(part for part in (told, self.why) if part)
        digits = 2 if self.unit == "x" else 1
        head = f"{self.goal} {self.case} {self.value:.{digits}f}{self.unit} gate {sign}{self.gate:.1f}{self.unit}"
        return f"{head} {self.verdict}" + (f"   [{told}]" if told else "")


@dataclass(frozen=True)
class Took:
    """Median milliseconds of a step."""

    cpu: float
    wall: float


def race(trainers: Mapping[str, Trainer], rounds: int) -> dict[str, Took]:
    """Let trainers take turns; the first round does not count."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in trainers}
    for turn in range(rounds + 1):
        for name, trainer in trainers.items():
            gc.collect()
            cpu, wall = time.process_time(), time.perf_counter()
            trainer.step()
            if turn:
                times[name].append(((time.process_time() - cpu) * 1e3, (time.perf_counter() - wall) * 1e3))
    return {
        name: Took(*(statistics.median(column) for column in zip(*each, strict=True))) for name, each in times.items()
    }


class Bench:
    """The goals, one method each; ``rounds`` and ``batch`` say how much to measure."""

    def __init__(self, *, batch: int, rounds: int) -> None:
        self.batch, self.rounds = batch, rounds
        self._won: dict[int, dict[str, Took]] = {}

    def shape(self, length: int, **changes: Any) -> Shape:
        """The usual shape with a history of this length."""
        return Shape(length, **{"batch": self.batch, "session": SESSION, **changes})

    def beside_peers(self, length: int) -> dict[str, Took]:
        """Ours and FuxiCTR's at one length, raced once."""
        if length not in self._won:
            work, alone = Workload(self.shape(length)), Workload(self.shape(length, session=1))
            trainers: dict[str, Trainer] = {
                "ours": shared(work, "dacdr+lcn"),
                "dacdr": shared(work, "dacdr"),
                "alone": shared(alone, "dacdr+lcn"),
                "dacdr alone": shared(alone, "dacdr"),
            }
            if fuxictr_models.missing("fuxictr") is None:
                batch = next(alone.batches())
                for name in ("SIM", "SDIM"):
                    trainers[name] = fuxictr_models.FuxiCtr(name, items=work.shape.items, width=WIDTH, batch=batch)
            self._won[length] = race(trainers, self.rounds if length < 2000 else max(2, self.rounds // 2))
        return self._won[length]

    def p1(self) -> Iterator[Line]:
        """Training beside SIM."""
        for length, gate in zip(LENGTHS, (2.0, 2.0, 2.5), strict=True):
            yield self._beside("P1", "SIM", length, gate)

    def p2(self) -> Iterator[Line]:
        """Training beside SDIM, the cheapest of the fuxictr_models."""
        for length in LENGTHS:
            yield self._beside("P2", "SDIM", length, 1.1)

    def _beside(self, goal: str, peer: str, length: int, gate: float) -> Line:
        if reason := fuxictr_models.missing("fuxictr"):
            return Line(goal, f"L={length}", None, gate, why=reason)
        took = self.beside_peers(length)
        ratio = {name: took[peer].cpu / took[name].cpu for name in ("ours", "dacdr", "alone", "dacdr alone")}
        others = ", ".join(f"{name} {value:.2f}x" for name, value in ratio.items() if name != "ours")
        shown = {name: took[name] for name in ("ours", peer)}
        return Line(goal, f"L={length}", ratio["ours"], gate, why=others, detail=_figures(shown) | {"ratio": ratio})

    def p3_p4(self) -> Iterator[Line]:
        """A table of five million rows: beside SIM, and beside our own step on a small table."""
        gc.collect()
        give_freed_memory_back()  # of earlier goals, that it is not counted as taken
        free = psutil.virtual_memory().available >> 30
        length = 50
        few, many = Workload(self.shape(length)), Workload(self.shape(length, items=MANY_ITEMS))
        trainers: dict[str, Trainer] = {"200k rows": shared(few, "dacdr+lcn"), "5M rows": shared(many, "dacdr+lcn")}
        reason = fuxictr_models.missing("fuxictr")
        if reason is None and free < 14:
            reason = f"SIM's dense Adam on 5M rows needs 14 GB of memory, {free} GB are free"
        if reason is None:
            alone = Workload(self.shape(length, items=MANY_ITEMS, session=1))
            batch = next(alone.batches())
            trainers["SIM"] = fuxictr_models.FuxiCtr("SIM", items=MANY_ITEMS, width=WIDTH, batch=batch)
        took = race(trainers, self.rounds)
        own, small = took["5M rows"], took["200k rows"]
        if "SIM" in took:
            figures = _figures({"ours": own, "SIM": took["SIM"]})
            yield Line("P3", "5M rows L=50", took["SIM"].cpu / own.cpu, 5.0, detail=figures)
        else:
            yield Line("P3", "5M rows L=50", None, 5.0, why=reason or "")
        yield Line("P4", "5M over 200k rows L=50", own.cpu / small.cpu, 2.0, most=True, detail=_figures(took))

    def p5(self) -> Iterator[Line]:
        """Peak memory beside SIM, each in a process of its own, imports not counted."""
        if reason := fuxictr_models.missing("fuxictr"):
            yield Line("P5", "L=500", None, 0.5, why=reason)
            return
        peak = {name: _peak_of(name, self.batch) for name in ("ours", "alone", "SIM")}
        told = ", ".join(f"{name} {value:.0f} MB" for name, value in peak.items())
        why = f"{told}; alone {peak['alone'] / peak['SIM']:.2f}x"
        yield Line("P5", "L=500", peak["ours"] / peak["SIM"], 0.5, most=True, why=why, detail={"peak_mb": peak})

    def p6(self) -> Iterator[Line]:
        """A step beside the time that its products and gathers alone need at the measured ceilings."""
        limits = ceilings()
        for length, gate in zip(LENGTHS, (4.0, 5.5, 7.5), strict=True):
            told, ratio, figures = [], {}, {}
            for name, session in (("ours", SESSION), ("alone", 1)):
                ours = shared(Workload(self.shape(length, session=session)), "dacdr+lcn")
                took = race({name: ours}, self.rounds)[name]
                products, rows = limits.floor(ours)
                ratio[name], figures[name] = took.cpu / (products + rows), took
                told.append(f"{name} floor {products + rows:.0f} ms ({products * limits.products / 1e12:.1f} GFLOP)")
            speeds = f"{limits.products / 1e9:.0f} GFLOP/s, {limits.gather / 1e9:.1f} GB/s"
            why = f"{', '.join(told)}; alone {ratio['alone']:.2f}x; {speeds}"
            yield Line("P6", f"L={length}", ratio["ours"], gate, most=True, why=why, detail=_figures(figures))

    def p7(self) -> Iterator[Line]:
        """Fine-tuning an adapter beside training everything on the same rows, and beside SIM's step.

        By the step, as the goal has it; and counted with what a launch makes of all rows before its first epoch, spread
        over the steps of a few epochs.
        """
        work = Workload(self.shape(500), batches=4)
        tuned = FineTuning(work, "dacdr+lcn")
        trainers: dict[str, Trainer] = {"step": tuned, "whole": whole_on_target(work, "dacdr+lcn")}
        reason = fuxictr_models.missing("fuxictr")
        if reason is None:
            batch = next(Workload(self.shape(500, session=1)).batches())
            trainers["SIM"] = fuxictr_models.FuxiCtr("SIM", items=work.shape.items, width=WIDTH, batch=batch)
        took = race(trainers, self.rounds)
        ahead = tuned.ahead / EPOCHS_OF_A_LAUNCH
        took["fine-tune"] = Took(took["step"].cpu + ahead, took["step"].wall + ahead)
        why = f"step {took['step'].cpu:.0f} ms and {ahead:.0f} ms for the pass before, over {EPOCHS_OF_A_LAUNCH} epochs"
        for peer, gate, case, ours in (
            ("whole", 1.4, "own whole step", "step"),
            ("whole", 1.4, "own whole step, with the pass before", "fine-tune"),
            ("SIM", 3.5, "SIM, with the pass before", "fine-tune"),
        ):
            if peer in took:
                figures = _figures({name: took[name] for name in (ours, peer)})
                yield Line("P7", f"L=500 beside {case}", took[peer].cpu / took[ours].cpu, gate, why=why, detail=figures)
            else:
                yield Line("P7", f"L=500 beside {case}", None, gate, why=reason or "")

    def p8(self) -> Iterator[Line]:
        """What of a step goes into making its batch, were it made in line."""
        work = Workload(self.shape(500), batches=max(4, self.rounds))
        took = race({"step": shared(work, "dacdr+lcn")}, self.rounds)["step"]
        made: list[float] = []
        for epoch in range(3):
            batches = work.batches(epoch=epoch)
            next(batches)  # an epoch's first comes with its order
            began = time.process_time()
            count = sum(1 for _ in batches)
            made.append((time.process_time() - began) / count * 1e3)
        batch = statistics.median(made)
        figures = _figures({"step": took}) | {"batch_ms": batch}
        share = 100 * batch / (batch + took.cpu)
        yield Line("P8", "L=500", share, 2.0, unit="%", most=True, why=f"batch {batch:.1f} ms", detail=figures)


GOALS: dict[str, Callable[[Bench], Iterator[Line]]] = {
    "P1": Bench.p1,
    "P2": Bench.p2,
    "P3": Bench.p3_p4,
    "P4": Bench.p3_p4,
    "P5": Bench.p5,
    "P6": Bench.p6,
    "P7": Bench.p7,
    "P8": Bench.p8,
}


def _figures(took: dict[str, Took]) -> dict[str, Any]:
    return {
        "cpu_ms": {name: each.cpu for name, each in took.items()},
        "wall_ms": {name: each.wall for name, each in took.items()},
    }


def _peak_of(name: str, batch: int) -> float:
    """Megabytes that training by this trainer adds at most to a process, measured in one of its own."""
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.training", "--peak", name, "--batch", str(batch)],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(told.stdout.split()[-1])


def _print_peak(name: str, batch: int) -> None:
    work = Workload(Shape(500, batch=batch, session=SESSION if name == "ours" else 1))
    one = next(work.batches())
    if name == "SIM":
        fuxictr_models.missing("fuxictr")  # imports it
    gc.collect()
    before = psutil.Process().memory_info().rss
    # The workload itself took more for a moment than it holds now: what counts is the peak from here on.
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")
    trainer: Trainer = (
        fuxictr_models.FuxiCtr("SIM", items=work.shape.items, width=WIDTH, batch=one)
        if name == "SIM"
        else shared(work, "dacdr+lcn")
    )
    for _ in range(3):
        trainer.step()
    print((_peak_rss() - before) / 1e6)


def _peak_rss() -> int:
    """Bytes that this process has held at most; where the kernel says it, without what its parent held at the fork."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    """Measure and print; status 1 if a gate is missed."""
    parser = argparse.ArgumentParser(description="Print how fast training is, a line per goal.")
    parser.add_argument("--goals", default=",".join(GOALS), help="such as P1,P4")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--quick", action="store_true", help="small batches, few rounds: shows that it runs")
    parser.add_argument(
        "--device", default="cpu", choices=("cpu", "cuda"), help="cuda: steps beside the GPU's roofline"
    )
    parser.add_argument("--batch", type=int, default=2048, help=argparse.SUPPRESS)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    kept = keep_freed_memory()
    if asked.peak:
        _print_peak(asked.peak, asked.batch)
        return 0
    names = [name.strip().upper() for name in asked.goals.split(",") if name.strip()]
    if unknown := [name for name in names if name not in GOALS]:
        parser.error(f"no goal {', '.join(unknown)}; there are {', '.join(GOALS)}")
    bench = Bench(batch=256 if asked.quick else asked.batch, rounds=2 if asked.quick else 5)
    if asked.device == "cuda":
        for told in on_gpu([bench.shape(length) for length in LENGTHS]):
            print(told, flush=True)
        return 0
    print(f"one thread, batch {bench.batch}, D={WIDTH}, allocator {'set' if kept else 'as it is'}; medians of CPU time")
    lines = []
    for measure in dict.fromkeys(GOALS[name] for name in names):
        for line in measure(bench):
            if line.goal in names:
                lines.append(line)
                print(line, flush=True)
    if asked.json:
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
        goals = [vars(line) | {"verdict": line.verdict} for line in lines]
        report = {"batch": bench.batch, "rounds": bench.rounds, "machine": machine, "load": os.getloadavg()}
        asked.json.write_text(json.dumps(report | {"goals": goals}, indent=2))
    return int(any(line.verdict == "MISS" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
