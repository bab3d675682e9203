"""CCTL on sources of which some feeds lie: does it find them, and is the target better off than without it?

    python -m benchmarks.source_reweighting --data DIR --out DIR [--settings amazon-harmed ...] [--seeds 5]

A quarter of the feeds that fill the sources tell the opposite of what users did and a quarter tell nothing
(`benchmarks/injected_harm.py`); which, each seed draws anew. ``...-clean`` settings have none, in ``...-liar`` a whole
source tells the opposite, in ``...-many-passes`` a tiny target is passed over until it is known by heart. All models
have the same network and the same target batches, beside each a batch of a source; the best pass over the target is
chosen by its validation rows. Only the end of the target, in time, is tested.

Stopped, it goes on where it was. Under ``--out``: ``cells.jsonl``, ``source-reweighting.md`` and ``.svg`` files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import command, harm_pages
from benchmarks.injected_harm import GOOD, KINDS, HarmedWorkspace, drawn_kinds, prepare
from models.baselines.plain import ItemMean, ItemUserBias, TrainMean
from models.batch import Batch
from models.borrowing import TransferConfig, TransferReport
from models.enhancement import EnhancementConfig, RepresentationEnhancement
from models.information_flow import ANY_SOURCE
from models.training import TrainConfig, predict, train
from models.transfer import CollaborativeTransfer
from orchestrator import arena_report
from orchestrator.arena import Case, Cell, Entrant, Scored, Table, run
from orchestrator.encoding import Layout
from orchestrator.fitting import new_ranker, set_means
from orchestrator.item_means import ItemMeans, item_means, without_itself
from orchestrator.recipe import Recipe
from orchestrator.training_data import Assembler, EpochOfDomains, Examples

RECIPE = Recipe(width=16, lifelong=30, short=24, epochs=8, patience=2, learning_rate=2e-3, batch_size=256)
TARGET_BATCH = 128
TARGET_ROWS = 4_000
TINY_ROWS, MANY = 1_200, 25
UNIFORM, ALONE, ORACLE = "uniform", "target only", "oracle (drops the liars; cheats)"
INFLUENCE, GRADIENT, BANDIT = "CCTL, influence", "CCTL, policy gradient", "CCTL, bucket bandit"
POINT, ENHANCED = "CCTL, influence at a point", "CCTL, influence + REN"
UNGUARDED, POINT_UNGUARDED = "CCTL, influence, no guard", "CCTL, influence at a point, no guard"
SETTINGS = (
    *("simulator-harmed", "amazon-harmed", "amazon-clean", "simulator-clean"),
    *("simulator-liar", "amazon-liar", "simulator-many-passes", "amazon-many-passes"),
)


@dataclass(frozen=True)
class Given:
    """What a model may learn from: rows by slot, sources first, the target last; ``asked`` has no labels."""

    workspace: HarmedWorkspace
    layout: Layout
    assembler: Assembler
    recipe: Recipe
    means: dict[str, ItemMeans]
    values: dict[str, np.ndarray]
    parts: tuple[Examples, ...]
    validation: Examples
    asked: Examples

    @property
    def target(self) -> int:
        return len(self.parts) - 1


class SideBySide:
    """Batches of the target and of its sources in turns, a ``BatchSource``; an epoch is one pass over the target.

    Sources go on where the epoch before left off, so all of their rows are met before any comes again.
    """

    def __init__(self, target: EpochOfDomains, sources: EpochOfDomains | None) -> None:
        self.target, self.sources = target, sources

    def __len__(self) -> int:
        return len(self.target) * (1 if self.sources is None else 2)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        if self.sources is None:
            yield from self.target.batches(epoch, start)
            return
        lent = self._lent(epoch * len(self.target) + start // 2)
        if start % 2:
            yield next(lent)
        for batch in self.target.batches(epoch, (start + 1) // 2):
            yield batch
            yield next(lent)

    def _lent(self, at: int) -> Iterator[Batch]:
        assert self.sources is not None
        passed, at = divmod(at, len(self.sources))
        while True:
            yield from self.sources.batches(passed, at)
            passed, at = passed + 1, 0


def open_case(data: Path | None, folder: Path, setting: str, seed: int) -> Case:
    """One draw of the lying feeds."""
    name, _, kind = setting.partition("-")
    settings, domains = prepare(name, data, folder)
    names = [domain.name for domain in sorted(domains, key=lambda domain: (domain.role != "source", domain.number))]
    workspace = HarmedWorkspace(
        settings,
        domains,
        split_seed=seed,
        kinds=tuple(drawn_kinds(seed, 0.25 if kind in ("harmed", "many-passes") else 0.0).tolist()),
        liars=(names[-2],) if kind == "liar" else (),
        target_rows=TINY_ROWS if kind == "many-passes" else TARGET_ROWS,
    )
    recipe = RECIPE.model_copy(update={"seed": seed})
    if kind == "many-passes":
        recipe = recipe.model_copy(update={"epochs": MANY, "patience": 0})
    layout = workspace.fit_layout(
        task="ctr", slots=names, lifelong=recipe.lifelong, short=recipe.short, with_users=False, until_us=None
    )
    rows = workspace.examples(layout, names[-1])
    split = workspace.split(rows)
    workspace = replace(workspace, until_us=split.cut_us)
    means, values, parts = {}, {}, []
    for one in names:
        own = workspace.examples(layout, one)
        known = own.take(workspace.split(own).train)
        means[one] = item_means(known, len(workspace.data(one).item_vocabulary), "ctr")
        values[one] = item_means(replace(known, label=known.value), len(means[one].means), "rating").means
        parts.append(without_itself(known, means[one]))
    test = rows.take(split.test)
    nothing = np.full(len(test), np.nan, np.float32)
    given = Given(
        workspace,
        layout,
        workspace.assembler(layout, names),
        recipe,
        means,
        values,
        tuple(parts),
        rows.take(split.validation),
        replace(test, label=nothing, value=nothing),
    )
    met = np.unique(parts[-1].user)
    cold = ~np.isin(test.user, met)
    return Case(given, test.label, test.user, segments={"cold": cold} if kind == "harmed" else {})


def fit(
    given: Given,
    *,
    config: TransferConfig | None = None,
    enhanced: bool = False,
    keep: Sequence[int] = (GOOD, 1, 2),
    sources: bool = True,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Train one model and answer the test rows; the detail tells of weights, the chosen pass and the verdicts.

    Args:
        config: how to borrow; None is uniform.
        keep: kinds of feeds whose rows teach.
    """
    recipe, slot = given.recipe, given.target
    torch.manual_seed(recipe.seed)
    model: nn.Module = _network(given)
    if enhanced:
        model = RepresentationEnhancement(model, EnhancementConfig(domains=slot + 1, state=128))
    target, held = given.parts[slot], []
    if config is not None and (config.mode != "influence" or config.influence == "point"):
        # These judge by target rows that are never trained on; the path needs none.
        aside = np.isin(target.user, np.unique(target.user)[recipe.seed % 7 :: 7])
        held = list(_epoch(given, [(target.take(aside), slot)], TARGET_BATCH * 2).batches(0))
        target = target.take(~aside)
    own = _epoch(given, [(target, slot)], TARGET_BATCH)
    lent = [(part.take(np.isin(given.workspace.kinds_of(part), keep)), at) for at, part in enumerate(given.parts[:-1])]
    transfer = None
    if config is not None:
        transfer = CollaborativeTransfer(replace(config, targets=(slot,)), held)
        if config.mode == "influence" and config.influence == "path":
            transfer.scout_from(own, _epoch(given, lent, 1024))
    result = train(
        model,
        SideBySide(own, _epoch(given, lent, recipe.batch_size) if sources else None),
        config=TrainConfig(
            epochs=recipe.epochs,
            patience=recipe.patience,
            learning_rate=recipe.learning_rate,
            auxiliary_weight=0.1 if enhanced else 0.0,
            seed=recipe.seed,
            progress_every_steps=0,
        ),
        validation=_epoch(given, [(given.validation, slot)], 4096, shuffle=False) if recipe.patience else None,
        sample_weigher=transfer,
    )
    answers = predict(model, _epoch(given, [(given.asked, slot)], 4096, shuffle=False).batches(0))
    detail: dict[str, Any] = {"best_pass": result.best_epoch, "passes": len(result.history)}
    if transfer is not None:
        detail |= told(given, transfer)
    return answers["score"], detail


def told(given: Given, transfer: CollaborativeTransfer) -> dict[str, Any]:
    """Weights of the kinds of feeds at the end, weights over time, verdicts, and what was found of feeds."""
    report = transfer.report()
    names = given.layout.slots
    detail: dict[str, Any] = {
        "weights": _weights_by_kind(given, transfer),
        "verdicts": {names[slot]: verdict.borrow for slot, verdict in report.verdicts.items()},
        "worth": {names[slot]: [verdict.influence, verdict.certainty] for slot, verdict in report.verdicts.items()},
        "gain": _late([row["gain"] for row in report.windows]),
        "frozen_windows": sum(row["frozen"] for row in report.windows),
        "percentiles": [{**row, "source": names[row["source"]]} for row in report.weights],
    }
    if report.target is not None and transfer.scout is not None:
        detail |= {"scout_certainty": report.target, "scout_passes": transfer.scout.passes}
        detail["feeds_found"] = _feeds_found(given, report)
    return detail


def _weights_by_kind(given: Given, transfer: CollaborativeTransfer) -> dict[str, float]:
    """Mean weight, at the end of training, of source rows by the kind of their feed; by source where one lies."""
    found: dict[str, list[torch.Tensor]] = {}
    for slot, part in enumerate(given.parts[:-1]):
        rows = part.take(np.random.default_rng(0).permutation(len(part))[:8_192])
        kinds = given.workspace.kinds_of(rows)
        for at in range(0, len(rows), 4_096):
            batch = given.assembler.batch(rows.take(np.arange(at, min(at + 4_096, len(rows)))), slot)
            weight = transfer.weights_of(batch)
            for kind in np.unique(kinds[at : at + 4_096]):
                mine = torch.from_numpy(kinds[at : at + 4_096] == kind)
                found.setdefault(KINDS[kind], []).append(weight[mine])
    return {kind: float(torch.cat(parts).mean()) for kind, parts in found.items()}


def _feeds_found(given: Given, report: TransferReport) -> dict[str, int]:
    """How many feeds of each kind there are in the sources, and how many of them were called harmful."""
    at = [field.name for field in given.layout.item_fields].index("feed")
    values = given.layout.item_fields[at].values
    counts: dict[str, int] = {}
    for part in report.parts:
        if part.group == "item" and part.field == at and part.code and part.source != ANY_SOURCE:
            name = given.layout.slots[part.source]
            kind = KINDS[given.workspace.kind_of_feed(name, values[part.code - 1])]
            counts[kind] = counts.get(kind, 0) + 1
            counts[f"{kind}_called_harmful"] = counts.get(f"{kind}_called_harmful", 0) + part.harms
    return counts


def _late(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known[len(known) // 2 :])) if known else None


def _network(given: Given) -> Any:
    labels = np.concatenate([part.label for part in given.parts])
    ranker = new_ranker(given.workspace, given.layout, given.recipe, mean_label=float(labels.mean()))
    set_means(ranker, given.layout, {name: one.means for name, one in given.means.items()}, given.values)
    return ranker


def _epoch(given: Given, parts: list[tuple[Examples, int]], size: int, *, shuffle: bool = True) -> EpochOfDomains:
    filled = [part for part in parts if len(part[0])]
    return EpochOfDomains(given.assembler, filled, batch_size=size, seed=given.recipe.seed, shuffle=shuffle)


def neural(name: str, options: dict[str, Any], case: Case, seed: int) -> dict[str, Scored]:
    """A row that trains the network."""
    return {name: Scored(*fit(case.given, **options))}


def plain(name: str, make: Any, case: Case, seed: int) -> dict[str, Scored]:
    """A row without a network, from the target's rows alone."""
    given: Given = case.given
    known = given.parts[given.target]
    rival = make().fit(known.user, known.item, known.label)
    return {name: Scored(rival.predict(given.asked.user, given.asked.item))}


BORROWING = TransferConfig(targets=(0,), sync_every=16, warm_up_steps=20, companion=False)
"""Weights come of the scout: the companion, which only measures the gain, stands beside where the gain rewards."""


def entrants(setting: str = "simulator-harmed") -> list[Entrant]:
    """Every row of the table of a setting."""
    rows: dict[str, dict[str, Any]] = {
        ALONE: {"sources": False},
        UNIFORM: {},
        INFLUENCE: {"config": BORROWING},
    }
    if setting.endswith("many-passes"):
        rows[UNGUARDED] = {"config": replace(BORROWING, guarded=False)}
        rows[POINT] = {"config": replace(BORROWING, influence="point")}
        rows[POINT_UNGUARDED] = {"config": replace(BORROWING, influence="point", guarded=False)}
    elif setting.endswith("harmed"):
        rows[GRADIENT] = {"config": replace(BORROWING, mode="reinforce", sync_every=8, companion=True)}
        rows[BANDIT] = {"config": replace(BORROWING, mode="bucket", sync_every=8)}
        rows[POINT] = {"config": replace(BORROWING, influence="point")}
        rows[ENHANCED] = {"config": BORROWING, "enhanced": True}
        rows[ORACLE] = {"keep": (GOOD,)}
    simple = {"train mean": TrainMean, "item mean": ItemMean, "item + user bias": ItemUserBias}
    found = [Entrant((name,), partial(plain, name, make), {"defaults": repr(make())}) for name, make in simple.items()]
    shown = {
        "scouted": "target and sources first",
        "recipe": RECIPE.model_dump(mode="json"),
        "target": [TARGET_BATCH, TARGET_ROWS, TINY_ROWS, MANY],
    }
    for name, options in rows.items():
        by_path = {"ledger": "entered before the first step", "scout": "last sure pass"} if "config" in options else {}
        found.append(Entrant((name,), partial(neural, name, options), {**shown, **by_path, "options": options}))
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
                entrants=command.chosen(entrants(setting), models),
                open_case=partial(open_case, None if data is None else Path(data), out),
                task="ctr",
                on_cell=_say,
            )
    write(table, out)
    return table


def write(table: Table, out: Path) -> None:
    """The page and the plots of a table, whole or not yet."""
    page = arena_report.markdown(
        table, subject=INFLUENCE, plain=UNIFORM, measures=("auc",), not_rivals=(ORACLE, ENHANCED, UNGUARDED)
    )
    beside = harm_pages.against(table, INFLUENCE, (UNIFORM, ALONE, ORACLE))
    (out / "source-reweighting.md").write_text(f"{harm_pages.weights(table)}\n{beside}\n{page}")
    arena_report.plot(table, "auc", out / "source-reweighting-auc.svg", subject=INFLUENCE)
    harm_pages.plot(table, out / "source-reweighting-weights.svg")


def _say(cell: Cell) -> None:
    weights = {name: round(value, 2) for name, value in cell.detail.get("weights", {}).items()}
    print(
        f"{cell.setting} seed {cell.seed} {cell.model}: auc {cell.metrics['auc']:.4f} in {cell.seconds:.1f} s "
        f"{weights or ''} {cell.detail.get('verdicts', '')} {cell.detail.get('feeds_found', '')} "
        f"pass {cell.detail.get('best_pass')}/{cell.detail.get('passes')} scout {cell.detail.get('scout_passes')}",
        flush=True,
    )


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
