"""Cold-start ratings, protocol A: how well are users rated in the target of whom only the source knows anything?

    python -m benchmarks.cold_start_ratings --data DIR --out DIR [--settings douban-book-to-music-20 ...] [--seeds 5]

Douban book -> music and music -> book and Amazon category 1 -> 2, with 20, 50 and 80 % of the shared users cold. All
target rows of cold users are the test; a tenth of the other shared users is held out to choose by; every source row is
visible, without times. ``...-timed`` settings (Amazon) are point in time: only the last fifth of the target rows is
tested, baselines learn from rows before that moment, and ours sees of a user's source what came before the tested row.
Amazon's original review files (``amazon/``: Movies_and_TV, CDs_and_Vinyl, Books) are read where a user has them.

Stopped, it goes on where it was. Under ``--out``: ``results.jsonl``, ``cold-start-ratings.md`` and ``.svg`` files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import command, results_page
from benchmarks.baselines import BRIDGES
from benchmarks.public_pairs import Pair, amazon_reviews, offered, settle
from benchmarks.rating_bridges import BridgeData, BridgeRows, bridge_rows, fit_bridge, ridge_cmf, ridge_emcdr
from benchmarks.results_table import Method, Scored, Table, Task, run
from domains.events.splits import Split
from domains.public import PreparedDomain
from domains.registry.registry import Domain
from domains.spec import DomainSpec
from models.baselines.plain import (
    ItemMean,
    ItemUserBias,
    MappedSourceBias,
    PlainBaseline,
    Rows,
    TrainMean,
    source_bias,
)
from models.ranker.network import Ranker
from orchestrator.data.batches import Examples
from orchestrator.data.dataset import Workspace
from orchestrator.data.scoring import score_rows
from orchestrator.jobs.launch import fit_adapter
from orchestrator.settings import Settings
from orchestrator.training.fit import fit, new_ranker, training_set
from orchestrator.training.fit import prepare as set_out
from orchestrator.training.recipe import Recipe
from orchestrator.training.wide_fit import fit_own_wide_weights

BOUNDS = (1.0, 5.0)
SHARES = (20, 50, 80)
HISTORY = 300
SHARED, ADAPTER = "Graft, shared", "Graft, shared + adapter"
WIDE_PART = "Graft, wide part alone"
BASELINE, TUNED = "mapped source bias", "mapped source bias, tuned"
LAST = ", last epoch"
EPOCHS, EPOCHS_AT_MOST = 10, 15
"""Of each stage of a bridge: what the papers train, and from where early stopping may choose."""
UNSTOPPED = ("SSCDR",)
"""A bridge whose points know no validation score: its last epoch is all there is."""
SMOOTHINGS = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0)
WIDTH = 10
"""Of the factors of every bridge, as in the papers."""


@dataclass(frozen=True)
class RatingPair(Pair):
    """A pair whose times count, or are left out."""

    timed: bool = False


def _douban(source: str, target: str) -> RatingPair:
    return RatingPair("douban", "douban", ("*book*", "*music*"), {"sources": [source], "targets": [target]})


_AMAZON = {
    "amazon-movies-to-cds": ("Movies_and_TV", "CDs_and_Vinyl"),
    "amazon-books-to-movies": ("Books", "Movies_and_TV"),
    "amazon-books-to-cds": ("Books", "CDs_and_Vinyl"),
}
"""PTUPCDR's own three tasks, on the original review files."""
PAIRS = {
    "douban-book-to-music": _douban("book", "music"),
    "douban-music-to-book": _douban("music", "book"),
    "amazon-1-to-2": RatingPair("amazon-heterogeneous", "amazon_movie_tv", ("user_item.dat",)),
    "amazon-1-to-2-timed": RatingPair("amazon-heterogeneous", "amazon_movie_tv", ("user_item.dat",), timed=True),
    **{name: RatingPair(**amazon_reviews(*two)) for name, two in _AMAZON.items()},
    **{f"{name}-timed": RatingPair(**amazon_reviews(*two), timed=True) for name, two in _AMAZON.items()},
}
SETTINGS = tuple(f"{pair}-{share}" for pair in PAIRS for share in SHARES)


def pair_of(setting: str) -> RatingPair:
    return PAIRS[setting.rsplit("-", 1)[0]]


@dataclass(frozen=True)
class WholeSource(Workspace):
    """The protocol's splits: of the source all rows teach but a twentieth; in time, those before the target's cut.

    Of the target, rows of cold users are the test, those of a tenth of the other shared users are to choose by.
    """

    until_us: int | None = None

    def split(self, rows: Examples) -> Split:
        spec = self.domain(rows.domain).spec
        if spec.role == "target":
            return super().split(rows)
        held = np.random.default_rng(self.split_seed).random(len(rows)) < 0.05
        before = np.ones(len(rows), bool) if self.until_us is None else rows.time_us < self.until_us
        none = np.zeros(0, np.int64)
        return Split(np.flatnonzero(~held & before), np.flatnonzero(held & before), none, none, self.until_us)


@dataclass(frozen=True)
class Given:
    """What a model may learn from. ``asked`` are the test rows with their labels taken out."""

    workspace: WholeSource
    slots: tuple[str, str]
    source: Examples
    source_validation: Examples
    train: Examples
    validation: Examples
    asked: Examples
    bridges: BridgeData
    _made: dict[int, BridgeRows] = field(default_factory=dict)

    def bridge_rows(self, seed: int) -> BridgeRows:
        """Batches for bridges, made when the first asks for them."""
        if seed not in self._made:
            self._made[seed] = bridge_rows(
                self.bridges,
                source=self.source,
                source_validation=self.source_validation,
                train=self.train,
                validation=self.validation,
                asked=self.asked,
                seed=seed,
                width=WIDTH,
                batch_size=4096,
            )
        return self._made[seed]


def prepare(data: Path, folder: Path, pair: str) -> tuple[Settings, tuple[Domain, ...]]:
    """Register and ingest the two domains of a pair under ``folder``; what is there already stays."""
    what = PAIRS[pair]

    def load(raw: Path) -> Iterator[tuple[DomainSpec, PreparedDomain]]:
        for domain in what.load(data, raw):
            times = {} if what.timed else {"time": None, "time_unit": "auto"}
            spec = domain.spec
            yield spec.model_copy(update={"interactions": spec.interactions.model_copy(update=times)}), domain

    return settle(folder / "homes" / pair, load, histories=True)


def open_task(data: Path, folder: Path, setting: str, seed: int) -> Task:
    """One draw of the cold users of one setting."""
    pair, share = setting.rsplit("-", 1)
    settings, domains = prepare(data, folder, pair)
    workspace = WholeSource(settings, domains, split_seed=seed, cold_share=int(share) / 100)
    source, target = sorted(domains, key=lambda domain: domain.role != "source")
    slots = (source.name, target.name)
    encoder = workspace.fit_encoder(task="rating", slots=slots, lifelong=HISTORY, short=24, with_users=True)
    rows = workspace.examples(encoder, target.name)
    split = workspace.split(rows)
    workspace = replace(workspace, until_us=split.cut_us)
    source_rows = workspace.examples(encoder, source.name)
    parts = workspace.split(source_rows)
    test = rows.take(split.test)
    nothing = np.full(len(test), np.nan, np.float32)
    given = Given(
        workspace,
        slots,
        source_rows.take(parts.train),
        source_rows.take(parts.validation),
        rows.take(split.train),
        rows.take(split.validation),
        replace(test, label=nothing, value=nothing),
        BridgeData(encoder, workspace.batch_builder(encoder, slots), len(workspace.data(target.name).item_vocabulary)),
    )
    return Task(given, test.label, test.user, BOUNDS)


def plain(make: type[PlainBaseline], task: Task, _seed: int) -> dict[str, Scored]:
    """A baseline without a network: it has nothing to choose, so the source's held-out rows teach it too."""
    given: Given = task.given
    source_rows = [
        np.concatenate(part)
        for part in zip(*(_triple(r) for r in (given.source, given.source_validation)), strict=True)
    ]
    baseline = make().fit(*_triple(given.train), source=Rows.of(*source_rows))
    return {"": Scored(baseline.predict(given.asked.user, given.asked.item))}


def tuned_bias(task: Task, _seed: int) -> dict[str, Scored]:
    """The mapped source bias at its best: both smoothings chosen on held-out cold users."""
    given: Given = task.given
    source_rows, learnt, held = Rows.of(*_triple(given.source)), Rows.of(*_triple(given.train)), given.validation
    items = {smoothing: ItemMean(smoothing).fit(*_triple(given.train)) for smoothing in SMOOTHINGS}
    biases = {ridge: source_bias(source_rows, ridge) for ridge in SMOOTHINGS}
    found = []
    for smoothing, ridge in product(SMOOTHINGS, SMOOTHINGS):
        baseline = MappedSourceBias(smoothing, ridge).fit_line(learnt, items[smoothing], biases[ridge])
        found.append((_rmse(held, baseline.predict(held.user, held.item)), smoothing, ridge, baseline))
    error, smoothing, ridge, baseline = min(found, key=lambda one: one[:3])
    detail = {"validation_rmse": error, "smoothing": smoothing, "source_ridge": ridge}
    return {TUNED: Scored(baseline.predict(given.asked.user, given.asked.item), detail)}


def bridge(name: str, settings: Mapping[str, Any], task: Task, seed: int) -> dict[str, Scored]:
    """A bridge of the papers: the better, on held-out cold users, of early stopping and of a fixed number of epochs.

    The fixed number, of which the last epoch is kept, is what the papers' code does, and has a row of its own.
    """
    given: Given = task.given
    rows = given.bridge_rows(seed)
    stopped = {**settings, "epochs": EPOCHS_AT_MOST, "patience": 2}
    found = [Scored(*fit_bridge(name, rows, seed=seed, **stopped))]
    if name not in UNSTOPPED:
        found.append(Scored(*fit_bridge(name, rows, seed=seed, **settings, epochs=EPOCHS, choose_epochs=False)))
    answers = {name: min(found, key=lambda one: one.detail["validation_rmse"])}
    return answers if len(found) == 1 else {**answers, name + LAST: found[-1]}


def solved_bridge(name: str, make: Any, task: Task, seed: int) -> dict[str, Scored]:
    """A bridge whose factors are solved for, its ridges chosen on held-out cold users."""
    given: Given = task.given
    score, detail = make(
        source=given.source,
        train=given.train,
        validation=given.validation,
        asked=given.asked,
        seed=seed,
        width=WIDTH,
    )
    return {name: Scored(score, detail)}


def graft(recipe: Recipe, task: Task, seed: int) -> dict[str, Scored]:
    """Ours as the product trains it: the shared model, then the target's adapter with all else frozen."""
    given: Given = task.given
    recipe = recipe.model_copy(update={"seed": seed})
    ranker, encoder = fit(given.workspace, recipe, given.slots)
    batch_builder = given.workspace.batch_builder(encoder, given.slots)
    shared = score_rows(ranker, batch_builder, given.asked, 1)
    held = score_rows(ranker, batch_builder, given.validation, 1)
    result = fit_adapter(ranker, 1, recipe, batch_builder, given.train, validation=given.validation)
    tuned = score_rows(ranker, batch_builder, given.asked, 1)
    return {
        SHARED: Scored(shared, {"parameters": _count(ranker), "validation_rmse": _rmse(given.validation, held)}),
        ADAPTER: Scored(
            tuned,
            {
                "parameters": sum(part.numel() for part in ranker.owned(1).parameters()),
                "best_epoch": result.best_epoch,
                "validation_rmse": _rmse(given.validation, score_rows(ranker, batch_builder, given.validation, 1)),
            },
        ),
    }


def wide_part_alone(recipe: Recipe, task: Task, seed: int) -> dict[str, Scored]:
    """What ours says before any descent: item means and the wide part in closed form, so that no network is thanked
    for it."""
    given: Given = task.given
    learnt = training_set(given.workspace, recipe, given.slots)
    batch_builder = given.workspace.batch_builder(learnt.encoder, given.slots)
    ranker = new_ranker(given.workspace, learnt.encoder, recipe, mean_label=learnt.mean_label)
    set_out(ranker, learnt, batch_builder, seed=seed)
    fit_own_wide_weights(ranker, batch_builder, learnt.train[1][0], 1, seed=seed)
    held, asked = (score_rows(ranker, batch_builder, rows, 1) for rows in (given.validation, given.asked))
    return {WIDE_PART: Scored(asked, {"validation_rmse": _rmse(given.validation, held)})}


def methods(recipe: Recipe | None = None) -> list[Method]:
    """Every row of the table."""
    recipe = recipe or Recipe(task="rating", lifelong=HISTORY)
    simple = {
        "train mean": TrainMean,
        "item mean": ItemMean,
        "item + user bias": ItemUserBias,
        BASELINE: MappedSourceBias,
    }
    rows = [
        Method((name,), partial(_named, name, partial(plain, make)), {"defaults": repr(make())})
        for name, make in simple.items()
    ]
    rows.append(Method((TUNED,), tuned_bias, {"smoothings": SMOOTHINGS}))
    settings = {"learning_rate": 1e-2, "weight_decay": 0.2}
    tried = {**settings, "width": WIDTH, "epochs": (EPOCHS_AT_MOST, EPOCHS)}
    for name in BRIDGES:
        names = (name,) if name in UNSTOPPED else (name, name + LAST)
        rows.append(Method(names, partial(bridge, name, settings), tried))
    solved = {"CMF (ridge)": ridge_cmf, "EMCDR (ridge)": ridge_emcdr}
    rows += [
        Method((name,), partial(solved_bridge, name, make), {"width": WIDTH, "map": "by rating error"})
        for name, make in solved.items()
    ]
    config = recipe.model_dump(mode="json")
    rows.append(Method((WIDE_PART,), partial(wide_part_alone, recipe), config))
    return [*rows, Method((SHARED, ADAPTER), partial(graft, recipe), config)]


def measure(
    data: Path,
    out: Path,
    *,
    settings: Sequence[str] = (),
    seeds: int = 5,
    models: Sequence[str] = (),
    recipe: Recipe | None = None,
) -> Table:
    """Fill the table under ``out`` and write its page; returns it. What ``graft bench cold-start-ratings`` calls.

    Args:
        settings: all whose files lie under ``data`` where empty.
        models: rows to train, or all where empty; what other rows the folder already holds stays in the table.
    """
    table = Table(out)
    chosen = command.chosen(methods(recipe), models)
    run(
        table,
        settings=settings or offered(Path(data), SETTINGS, pair_of),
        seeds=range(seeds),
        methods=chosen,
        open_task=partial(open_task, Path(data), out),
        on_result=command.printing("mae", "rmse"),
    )
    write(table, out)
    return table


def write(table: Table, out: Path) -> None:
    """The page and the plots of a table, whole or not yet; point-in-time settings stand apart."""
    timed = [setting for setting in table.settings() if "-timed-" in setting]
    parts = []
    for title, name, settings in (
        ("Whole source", "cold-start-ratings", [one for one in table.settings() if one not in timed]),
        ("Point in time", "cold-start-ratings-timed", timed),
    ):
        if not settings:
            continue
        part = table.only(settings)
        page = results_page.markdown(
            part,
            subject=ADAPTER,
            plain=BASELINE,
            measures=("mae", "rmse"),
            not_baselines=(SHARED, WIDE_PART),
            bounds=BOUNDS,
        )
        parts += [f"# {title}\n", page]
        for metric in ("mae", "rmse"):
            results_page.plot(part, metric, out / f"{name}-{metric}.svg", subject=ADAPTER)
    (out / "cold-start-ratings.md").write_text("\n".join(parts))


def _named(name: str, fit_one: Any, task: Task, seed: int) -> dict[str, Scored]:
    return {name: fit_one(task, seed)[""]}


def _triple(rows: Examples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return rows.user, rows.item, rows.label


def _count(ranker: Ranker) -> int:
    return sum(part.numel() for part in ranker.parameters())


def _rmse(rows: Examples, score: np.ndarray) -> float:
    return float(np.sqrt(np.square(np.clip(score, *BOUNDS) - rows.label).mean()))


def main(arguments: Sequence[str] | None = None) -> None:
    command.run(
        measure,
        page="cold-start-ratings.md",
        about=__doc__,
        folders="douban/, amazon_movie_tv/ or amazon/",
        settings=SETTINGS,
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
