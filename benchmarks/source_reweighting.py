"""CCTL on sources of which some feeds lie: does it find them, and is the target better off than without it?

    python -m benchmarks.source_reweighting --data DIR --out DIR [--settings amazon-harmed ...] [--seeds 5]

A quarter of the feeds that fill the sources tell the opposite of what users did and a quarter tell nothing
(`benchmarks/injected_harm.py`); which, each seed draws anew. ``...-clean`` settings have none, in ``...-liar`` a whole
source tells the opposite, in ``...-many-passes`` a tiny target is passed over until it is known by heart. All models
have the same network and the same target batches, beside each a batch of a source; the best pass over the target is
chosen by its validation rows. Only the end of the target, in time, is tested.

Stopped, it goes on where it was. Under ``--out``: ``results.jsonl``, ``source-reweighting.md`` and ``.svg`` files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import command, harm_pages, results_page
from benchmarks.injected_harm import FEEDS, GOOD, HarmedWorkspace, drawn_kinds, prepare
from benchmarks.refused_feeds import (
    LOOKS,
    REFUSED,
    TARGET_BATCH,
    Feed,
    Given,
    check_sources,
    described,
    epoch_of,
    gathered,
    network,
    transfer_of,
    without,
)
from benchmarks.results_table import Method, Scored, Table, Task, run
from models.baselines.plain import ItemMean, ItemUserBias, TrainMean
from models.batch import Batch
from models.cctl.config import TransferConfig
from models.metrics import auc
from models.training.loop import predict, train
from orchestrator.data.batches import DomainBatchSampler
from orchestrator.training.fit import train_config
from orchestrator.training.recipe import Recipe

RECIPE = Recipe(
    architecture="dacdr", width=16, lifelong=30, short=24, epochs=8, patience=2, learning_rate=2e-3, batch_size=256
)
TARGET_ROWS = {"simulator": 8_000, "amazon": 4_000}
TINY_ROWS, MANY = 1_200, 25
ENOUGH_ROWS = {"simulator": 100_000, "amazon": 50_000}
"""Source rows that a target-only tower looks at, at most: the simulator has two sources, so twice as many feeds."""
UNIFORM, ALONE, ORACLE = "uniform", "target only", "oracle (drops the liars; cheats)"
INFLUENCE, GRADIENT = "CCTL, influence", "CCTL, policy gradient"
LOSSES = "CCTL, influence, on losses alone"
CLEANED = "target only, without refused feeds"
UNGUARDED = "CCTL, influence, no guard"
SETTINGS = (
    *("simulator-harmed", "amazon-harmed", "amazon-clean", "simulator-clean"),
    *("simulator-liar", "amazon-liar", "simulator-many-passes", "amazon-many-passes"),
    *("amazon-seen", "simulator-seen"),
)


class SideBySide:
    """Batches of the target and of its sources in turns, a ``BatchSource``; an epoch is one pass over the target.

    Sources go on where the epoch before left off, so all of their rows are met before any comes again.
    """

    def __init__(self, target: DomainBatchSampler, sources: DomainBatchSampler | None) -> None:
        self.target, self.sources = target, sources

    def __len__(self) -> int:
        return len(self.target) * (1 if self.sources is None else 2)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        if self.sources is None:
            yield from self.target.batches(epoch, start)
            return
        source_batches = self._source_batches(epoch * len(self.target) + start // 2)
        if start % 2:
            yield next(source_batches)
        for batch in self.target.batches(epoch, (start + 1) // 2):
            yield batch
            yield next(source_batches)

    def _source_batches(self, at: int) -> Iterator[Batch]:
        assert self.sources is not None
        passed, at = divmod(at, len(self.sources))
        while True:
            yield from self.sources.batches(passed, at)
            passed, at = passed + 1, 0


def open_task(data: Path | None, folder: Path, setting: str, seed: int) -> Task:
    """One draw of the lying feeds."""
    name, _, kind = setting.partition("-")
    settings, domains = prepare(name, data, folder, with_feeds=kind == "seen")
    names = [domain.name for domain in sorted(domains, key=lambda domain: (domain.role != "source", domain.number))]
    workspace = HarmedWorkspace(
        settings,
        domains,
        split_seed=seed,
        kinds=tuple(drawn_kinds(seed, 0.25 if kind in ("harmed", "seen", "many-passes") else 0.0).tolist()),
        by="item" if kind == "seen" else "event",
        liars=(names[-2],) if kind == "liar" else (),
        target_rows=TINY_ROWS if kind == "many-passes" else TARGET_ROWS[name],
    )
    recipe = RECIPE.model_copy(update={"seed": seed})
    if kind == "many-passes":
        recipe = recipe.model_copy(update={"epochs": MANY, "patience": 0})
    given, test = gathered(workspace, recipe, names)
    cold = ~np.isin(test.user, np.unique(given.parts[-1].user))
    return Task(given, test.label, test.user, segments={"cold": cold} if kind in ("harmed", "seen") else {})


def fit(
    given: Given,
    *,
    config: TransferConfig | None = None,
    refuses: bool = False,
    honest: bool = False,
    sources: bool = True,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Train one model and answer the test rows; the detail tells of weights, the chosen pass and the verdicts.

    Args:
        config: how to borrow; None is uniform.
        refuses: whether nothing at all is taken of feeds that a target-only tower refuses; else weights act on losses
        alone.
        honest: whether it is told which feeds lie and takes nothing of them.
        sources: whether source rows teach; histories hold source events either way.
    """
    check = check_sources(given, config) if config is not None and refuses else None
    whole, given = given, check.left if check is not None else given
    if honest:
        given = without(given, [feed for feed in _feeds(given) if given.workspace.kind_of_feed(*feed) != GOOD])
    recipe, slot = given.recipe, given.target
    model = network(given)
    target, held = given.parts[slot], []
    if config is not None and config.mode != "influence":
        # These judge by target rows that are never trained on; influence needs none.
        aside = np.isin(target.user, np.unique(target.user)[recipe.seed % 7 :: 7])
        held = list(epoch_of(given, [(target.take(aside), slot)], TARGET_BATCH * 2).batches(0))
        target = target.take(~aside)
    own = epoch_of(given, [(target, slot)], TARGET_BATCH)
    has_sources = any(len(part) for part, _ in given.training_sources)
    transfer = transfer_of(given, config, own, held) if config is not None and has_sources else None
    if transfer is not None and check is not None:
        transfer.judged = check.last
    trains_on_sources = sources and has_sources
    result = train(
        model,
        SideBySide(
            own, epoch_of(given, list(given.training_sources), recipe.batch_size) if trains_on_sources else None
        ),
        config=train_config(recipe, progress_every_steps=0),
        validation=epoch_of(given, [(given.validation, slot)], 4096, shuffle=False) if recipe.patience else None,
        sample_weigher=transfer if trains_on_sources else None,
    )
    chosen = predict(model, epoch_of(given, [(given.validation, slot)], 4096, shuffle=False).batches(0))
    answers = predict(model, epoch_of(given, [(given.asked, slot)], 4096, shuffle=False).batches(0))
    detail: dict[str, Any] = {"best_pass": result.best_epoch, "passes": len(result.history)}
    detail["validation_auc"] = auc(chosen["label"], chosen["score"])
    if sources and (check is not None or (config is not None and has_sources)):
        detail |= described(whole, transfer, given, check)
    return answers["score"], detail


def _feeds(given: Given) -> list[Feed]:
    return [(part.domain, feed) for part, _ in given.training_sources for feed in range(FEEDS)]


def neural(name: str, options: dict[str, Any], task: Task, _seed: int) -> dict[str, Scored]:
    """A row that trains the network."""
    return {name: Scored(*fit(task.given, **options))}


def plain(name: str, make: Any, task: Task, _seed: int) -> dict[str, Scored]:
    """A row without a network, from the target's rows alone."""
    given: Given = task.given
    known = given.parts[given.target]
    baseline = make().fit(known.user, known.item, known.label)
    return {name: Scored(baseline.predict(given.asked.user, given.asked.item))}


SOURCE_WEIGHTING = TransferConfig(targets=(0,), sync_every=16, warm_up_steps=20, companion=False)
"""Weights come of the target-only towers: the companion, which only measures the gain, stands beside where the gain
rewards."""


def methods(setting: str = "simulator-harmed") -> list[Method]:
    """Every row of the table of a setting."""
    source_weighting = replace(SOURCE_WEIGHTING, enough_rows=ENOUGH_ROWS[setting.partition("-")[0]])
    rows: dict[str, dict[str, Any]] = {
        ALONE: {"sources": False},
        UNIFORM: {},
        INFLUENCE: {"config": source_weighting, "refuses": True},
    }
    if setting.endswith("many-passes"):
        rows[UNGUARDED] = {"config": replace(source_weighting, guarded=False), "refuses": True}
    elif setting.endswith(("harmed", "seen")):
        rows[LOSSES] = {"config": source_weighting}
        rows[CLEANED] = {"config": source_weighting, "refuses": True, "sources": False}
        rows[ORACLE] = {"honest": True}
        rows[GRADIENT] = {"config": replace(source_weighting, mode="reinforce", sync_every=8, companion=True)}
    simple = {"train mean": TrainMean, "item mean": ItemMean, "item + user bias": ItemUserBias}
    found = [Method((name,), partial(plain, name, make), {"defaults": repr(make())}) for name, make in simple.items()]
    shown = {"recipe": RECIPE.model_dump(mode="json"), "target": [TARGET_BATCH, TARGET_ROWS, TINY_ROWS, MANY]}
    for name, options in rows.items():
        looks = {"refused below": REFUSED, "looks": LOOKS} if options.get("refuses") else {}
        found.append(Method((name,), partial(neural, name, options), {**shown, **looks, "options": options}))
    return found


def measure(
    data: Path | None,
    out: Path,
    *,
    settings: Sequence[str] = SETTINGS,
    seeds: int = 5,
    models: Sequence[str] = (),
) -> Table:
    """Fill the table under ``out`` and write its page; returns it. What ``graft bench source-reweighting`` calls.

    Args:
        models: rows to train, or all where empty; what other rows the folder already holds stays in the table.
    """
    table = Table(out)
    for seed in range(seeds):
        for setting in settings:
            run(
                table,
                settings=[setting],
                seeds=[seed],
                methods=command.chosen(methods(setting), models),
                open_task=partial(open_task, None if data is None else Path(data), out),
                kind="ctr",
                on_result=command.printing("auc"),
            )
    write(table, out)
    return table


def write(table: Table, out: Path) -> None:
    """The page and the plots of a table, whole or not yet."""
    not_baselines = (ORACLE, UNGUARDED, LOSSES, CLEANED)
    page = results_page.markdown(
        table,
        subject=INFLUENCE,
        plain=UNIFORM,
        measures=("auc",),
        not_baselines=not_baselines,
    )
    beside = harm_pages.against(table, INFLUENCE, (UNIFORM, ALONE, LOSSES, CLEANED, ORACLE))
    (out / "source-reweighting.md").write_text(f"{harm_pages.weights(table)}\n{beside}\n{page}")
    results_page.plot(table, "auc", out / "source-reweighting-auc.svg", subject=INFLUENCE)
    harm_pages.plot(table, out / "source-reweighting-weights.svg")


def main(arguments: Sequence[str] | None = None) -> None:
    command.run(
        measure,
        page="source-reweighting.md",
        about=__doc__,
        folders="amazon_movie_tv/",
        settings=SETTINGS,
        default=SETTINGS,
        needs_data=False,
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
