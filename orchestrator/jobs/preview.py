"""Before any launch: is each source worth borrowing from, and with how much data of its own will the domain be ahead?

Tiny networks are trained for a few hundred steps with and without each source, and judged on users whom they never met.
Every user is judged once, by a run that did not know him (cross-fitting), so that a few runs use all the users there
are. The users whom launches are judged on stay untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from domains.errors import NotEnoughData
from domains.events.domain_data import DomainData
from domains.events.histories import Histories
from models.metrics import LOGLOSS_CLIP
from models.ranker.network import Ranker
from models.training import loop
from orchestrator.data.batches import BatchBuilder, DomainBatchSampler, EventSource, Examples
from orchestrator.data.dataset import Workspace
from orchestrator.data.encoding import FeatureEncoder
from orchestrator.data.target_encoding import item_means, leave_one_out
from orchestrator.evaluation import learning_curve as forecast
from orchestrator.evaluation import measure
from orchestrator.jobs.runner import RunContext, Step
from orchestrator.jobs.versions import has_data
from orchestrator.training.fine_tune import fit_adapter
from orchestrator.training.fit import add_domain, new_ranker, score_rows, searched_parameters, set_bands, set_means
from orchestrator.training.recipe import Recipe
from orchestrator.training.wide_fit import fit_evidence

SHARES = (0.1, 0.2, 0.4, 0.7, 1.0)
FEWEST_ROWS, FEWEST_USERS = 300, 30
"""Below these a preview would only measure chance."""
FEWEST_IN_A_SHARE = 50
"""Rows that a launch asks for at least; a point of the learning curve has as many."""
DRAWS = 1000


@dataclass(frozen=True)
class Size:
    """How much a preview spends: folds are runs per question, rows are caps of what one run learns from."""

    folds: int = 4
    target_rows: int = 20_000
    source_rows: int = 15_000
    width: int = 8
    lifelong: int = 50
    epochs: int = 2
    seed: int = 0


def gather(context: RunContext) -> None:
    """Put all users' events in time order, where the short runs read them."""
    held = [(domain.spec, domain.number) for domain in context.registry.domains() if has_data(domain)]
    if not held:
        raise NotEnoughData("no domain has data yet; ingest some first")
    Histories.build(context.settings.data_dir, held)


def value_sources(context: RunContext) -> None:
    """Short runs with and without each source."""
    if context.read("sources") is not None:
        return
    bench = _bench(context)
    context.write("sources", bench.source_values(on_progress=lambda share: context.progress(share)))


def forecast_data(context: RunContext) -> None:
    """Adapters on growing shares of the domain's rows, and where their errors lead."""
    bench = _bench(context)
    if context.read("forecast") is None:
        context.write("forecast", bench.learning_curve(on_progress=lambda share: context.progress(share)))
    found = {
        "domain": bench.name,
        "task": bench.task,
        "metric": "rmse" if bench.task == "rating" else "logloss",
        "data": DomainData(context.settings.data_dir, bench.name).version,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": context.run_id,
        "judged_rows": len(bench.rows),
        "judged_users": len(bench.people),
        "folds": bench.size.folds,
        **context.result_of("sources"),
        **context.result_of("forecast"),
    }
    context.write("result", found)


STEPS = (
    Step("Gather every user's history", gather, 1),
    Step("Short runs with and without each source", value_sources, 10),
    Step("Adapters on growing shares of the data", forecast_data, 6),
)


@dataclass
class Bench:
    """One domain and its possible sources, ready for short runs.

    ``rows`` are the domain's rows that may be learnt from or chosen by, never those of the launch's cold users;
    ``fold`` (N,) is each row's fold, the same for all rows of one user.
    """

    workspace: Workspace
    name: str
    task: str
    sources: tuple[str, ...]
    size: Size
    encoder: FeatureEncoder = field(init=False)
    rows: Examples = field(init=False)
    fold: np.ndarray = field(init=False)
    people: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        size = self.size
        self.recipe = Recipe(
            task=self.task,  # type: ignore[arg-type]
            architecture="dacdr",  # the cheapest: what sources are worth to each other is asked many times
            width=size.width,
            lifelong=size.lifelong,
            short=10,
            epochs=size.epochs,
            batch_size=256,
            learning_rate=3e-3,
            fine_tune_epochs=3,
            fine_tune_batch_size=256,
            fine_tune_learning_rate=3e-3,
        )
        slots = (*self.sources, self.name)
        self.encoder = self.workspace.fit_encoder(
            task=self.task, slots=slots, lifelong=size.lifelong, short=10, with_users=False, until_us=None
        )
        everything = self.workspace.examples(self.encoder, self.name)
        split = self.workspace.split(everything)
        self.rows = _drawn(everything.take(np.sort(np.r_[split.train, split.validation])), size.target_rows, size.seed)
        self.people, person = np.unique(self.rows.user, return_inverse=True)
        if len(self.rows) < FEWEST_ROWS or len(self.people) < FEWEST_USERS:
            raise NotEnoughData(
                f"domain {self.name!r} has {len(self.rows)} rows of {len(self.people)} users beside its cold users; "
                f"a preview needs {FEWEST_ROWS} of {FEWEST_USERS}",
                domain=self.name,
            )
        self._order = np.random.default_rng(size.seed).permutation(len(self.people))[person]
        self.fold = self._order % size.folds
        self._user_codes = self.workspace.user_codes(self.encoder)
        self._item_codes = {name: self.workspace.item_codes(self.encoder, name) for name in slots}
        self._numbers = {name: self.workspace.domain(name).number for name in slots}

    def source_values(self, on_progress: Callable[[float], None] = lambda share: None) -> dict[str, Any]:
        """What each source gives alone, and beside the others: the error without it less the error with it."""
        everyone = frozenset(self.sources)
        wanted: set[frozenset[str]] = {frozenset(), everyone}
        wanted |= {frozenset([name]) for name in self.sources} | {everyone - {name} for name in self.sources}
        plan: list[frozenset[str]] = sorted(wanted, key=lambda chosen: (len(chosen), sorted(chosen)))
        losses = {chosen: np.zeros(len(self.rows)) for chosen in plan}
        done = 0
        for fold in range(self.size.folds):
            known, chooser, held = self._parts(fold)
            for chosen in plan:
                ranker, batch_builder = self._short_run(chosen, fold, known, chooser)
                slot = self.encoder.slots.index(self.name)
                losses[chosen][held] = self._losses(ranker, batch_builder, self.rows.take(held), slot)
                done += 1
                on_progress(done / (len(plan) * self.size.folds))
        weight = forecast.people_drawn(self._fold_of_people(), draws=DRAWS, seed=self.size.seed)
        told = []
        for name in self.sources:
            alone = self._difference(losses[frozenset()], losses[frozenset([name])], weight)
            beside = self._difference(losses[everyone - {name}], losses[everyone], weight)
            told.append({"name": name, "alone": alone, "beside": beside, "verdict": verdict(alone, beside)})
        return {
            "sources": told,
            "together": self._difference(losses[frozenset()], losses[everyone], weight),
            "best": sorted(min(plan, key=lambda lent: float(losses[frozenset(lent)].mean()))),
        }

    def learning_curve(self, on_progress: Callable[[float], None] = lambda share: None) -> dict[str, Any]:
        """Errors of adapter and plain rows on growing shares of the data, and how much more is needed."""
        borrowed = [name for name in self.workspace.domain(self.name).spec.sources if name in self.sources]
        borrowed = borrowed or list(self.sources)
        baselines = ("item_mean",) if self.task == "rating" else ("popularity", "item_mean")
        shares = [share for share in SHARES if share * len(self.rows) / 2 >= FEWEST_IN_A_SHARE]
        losses = {model: np.zeros((len(self.rows), len(shares))) for model in ("adapter", *baselines)}
        learnt = np.zeros((self.size.folds, len(shares)))
        for fold in range(self.size.folds):
            known, chooser, held = self._parts(fold)
            judged = self.rows.take(held)
            ranker, batch_builder = self._short_run(borrowed, fold, None, None)
            for place, share in enumerate(shares):
                some, choosing = self._share_of(known, share), self._share_of(chooser, share)
                learnt[fold, place] = len(some)
                slot = add_domain(ranker, self.workspace, self.encoder, self.name)
                fit_adapter(ranker, slot, self.recipe, batch_builder, some, choosing)
                losses["adapter"][held, place] = self._losses(ranker, batch_builder, judged, slot)
                # The plain rows need nobody to choose for them, so they learn from those rows as well.
                item, label = np.r_[some.item, choosing.item], np.r_[some.label, choosing.label]
                for baseline in baselines:
                    plain = getattr(measure, baseline)(item, label, judged.item)
                    losses[baseline][held, place] = row_loss(self.task, judged.label, plain)
                on_progress((fold * len(shares) + place + 1) / (self.size.folds * len(shares)))
        person = np.searchsorted(self.people, self.rows.user)
        curves = forecast.Curves(
            rows=learnt.mean(0),
            sums={model: _by_person(person, lost, len(self.people)) for model, lost in losses.items()},
            judged=np.bincount(person, minlength=len(self.people)).astype(np.float64),
            fold=self._fold_of_people(),
            root=self.task == "rating",
        )
        weight = forecast.people_drawn(curves.fold, draws=DRAWS, seed=self.size.seed)
        checks = forecast.backtest(curves, "adapter", baselines)
        return {
            "borrowed": borrowed,
            "curve": {
                "rows": curves.rows.tolist(),
                "errors": {
                    model: [
                        _interval(value, drawn)
                        for value, drawn in zip(curves.everyone(model), curves.errors(model, weight).T, strict=True)
                    ]
                    for model in losses
                },
            },
            "needed": {baseline: forecast.rows_needed(curves, "adapter", baseline) for baseline in baselines},
            "backtest": {"held": sum(check["held"] for check in checks), "of": len(checks), "checks": checks},
        }

    def _parts(self, fold: int) -> tuple[Examples, Examples, np.ndarray]:
        """Rows to learn from, rows to stop by, and positions of the rows to judge on; no user is in two of them."""
        rest = self.fold != fold
        chooser = rest & (self._order // self.size.folds % 8 == 0)
        return self.rows.take(rest & ~chooser), self.rows.take(chooser), np.flatnonzero(~rest)

    def _share_of(self, rows: Examples, share: float) -> Examples:
        """Rows of a share of the users; a larger share holds every user of a smaller one."""
        users = np.unique(rows.user)
        drawn = np.random.default_rng(self.size.seed + 1).permutation(users)
        return rows.take(np.isin(rows.user, drawn[: max(2, round(share * len(users)))]))

    def _short_run(
        self, wanted: Iterable[str], fold: int, known: Examples | None, chooser: Examples | None
    ) -> tuple[Ranker, BatchBuilder]:
        """A small network trained on rows of the chosen sources, the only ones in any history, and of the domain."""
        chosen = [name for name in self.sources if name in set(wanted)]
        recipe = self.recipe.model_copy(update={"seed": self.size.seed + fold})
        numbers = frozenset(self._numbers[name] for name in chosen)
        histories = self.workspace.histories
        batch_builder = BatchBuilder(
            self.encoder,
            user_codes=self._user_codes,
            item_codes=self._item_codes,
            source=EventSource(histories.source),
            target={name: EventSource(store) for name, store in histories.target.items() if name == self.name},
            borrows=dict.fromkeys((*chosen, self.name), numbers),
        )
        means = {name: np.full(self._items(name), 0.0, np.float32) for name in self.encoder.slots}
        values = {name: np.full(self._items(name), 0.0, np.float32) for name in self.sources}
        parts, choosing = [], []
        for name in [*chosen, *([self.name] if known is not None else [])]:
            slot = self.encoder.slots.index(name)
            rows, held = (known, chooser) if name == self.name else self._source_rows(name, recipe.seed)
            assert rows is not None
            assert held is not None
            found = item_means(rows, self._items(name), self.task)
            means[name] = found.means
            values[name] = item_means(_valued(rows), self._items(name), "rating").means
            parts.append((leave_one_out(rows, found), slot))
            choosing.append((held, slot))
        # What is not borrowed is not known either: it starts from the mean of what is.
        overall = float(np.concatenate([rows.label for rows, _ in parts]).mean())
        for name in self.encoder.slots:
            if not means[name].any():
                means[name][:] = overall
        ranker = new_ranker(self.workspace, self.encoder, recipe, mean_label=overall)
        set_means(ranker, self.encoder, means, values)
        if ranker.config.wide and self.task == "ctr":
            fit_evidence(ranker, batch_builder, parts, seed=recipe.seed)
        elif ranker.config.wide:
            lent = [rows.value for rows, slot in parts if slot < len(self.sources)]
            set_bands(ranker, np.concatenate(lent) if lent else np.zeros(0))
            fit_evidence(ranker, batch_builder, parts, seed=recipe.seed)
        # Stop by the domain's own users where there are some, else by the sources' rows.
        own = [part for part in choosing if part[1] == self.encoder.slots.index(self.name)]
        loop.train(
            ranker,
            DomainBatchSampler(batch_builder, parts, batch_size=recipe.batch_size, seed=recipe.seed),
            config=loop.TrainConfig(
                task=recipe.task,
                epochs=recipe.epochs,
                learning_rate=recipe.learning_rate,
                patience=1,
                consider_start=True,
                auxiliary_weight=0.0,
                seed=recipe.seed,
            ),
            validation=DomainBatchSampler(batch_builder, own or choosing, batch_size=4096, seed=0, shuffle=False),
            parameters=searched_parameters(ranker),
        )
        return ranker.eval(), batch_builder

    def _source_rows(self, name: str, seed: int) -> tuple[Examples, Examples]:
        rows = self.workspace.examples(self.encoder, name)
        split = self.workspace.split(rows)
        most = self.size.source_rows
        return _drawn(rows.take(split.train), most, seed), _drawn(rows.take(split.validation), most // 10, seed)

    def _items(self, name: str) -> int:
        return len(self.workspace.data(name).item_vocabulary)

    def _losses(self, ranker: Ranker, batch_builder: BatchBuilder, rows: Examples, slot: int) -> np.ndarray:
        return row_loss(self.task, rows.label, score_rows(ranker, batch_builder, rows, slot))

    def _fold_of_people(self) -> np.ndarray:
        fold = np.zeros(len(self.people), np.int64)
        fold[np.searchsorted(self.people, self.rows.user)] = self.fold
        return fold

    def _difference(self, without: np.ndarray, with_it: np.ndarray, weight: np.ndarray) -> dict[str, float]:
        """Error without less error with, over all rows, and its interval over folds and users."""
        person = np.searchsorted(self.people, self.rows.user)
        sums = _by_person(person, np.stack([without, with_it], 1), len(self.people))
        mean = (weight @ sums) / (weight @ np.bincount(person, minlength=len(self.people)))[:, None]
        value = np.array([without.mean(), with_it.mean()])
        if self.task == "rating":
            mean, value = np.sqrt(mean), np.sqrt(value)
        return _interval(value[0] - value[1], mean[:, 0] - mean[:, 1])


def verdict(alone: dict[str, float], beside: dict[str, float]) -> str:
    """What the two gains of a source mean: it hurts for certain, it helps for certain, or neither can be told."""
    if alone["high"] < 0 or beside["high"] < 0:
        return "do not borrow"
    return "borrow" if alone["low"] > 0 or beside["low"] > 0 else "no clear gain"


def row_loss(task: str, label: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Log loss of probabilities, or squared error of ratings, for each row (N,)."""
    if task == "rating":
        return np.square(score - label).astype(np.float64)
    score = np.clip(np.asarray(score, np.float64), LOGLOSS_CLIP, 1 - LOGLOSS_CLIP)
    return -np.where(label > 0, np.log(score), np.log1p(-score))


def _bench(context: RunContext) -> Bench:
    held = tuple(domain for domain in context.registry.domains() if has_data(domain))
    workspace = Workspace(context.settings, held)
    assert context.domain is not None, "a preview names its domain"
    if context.domain not in {domain.name for domain in held}:
        raise NotEnoughData(f"domain {context.domain!r} has no interactions yet; ingest some first")
    spec = workspace.domain(context.domain).spec
    lenders: Sequence[str] = [
        domain.name
        for domain in held
        if domain.role == "source"
        and domain.spec.task == spec.task
        and (not spec.sources or domain.name in spec.sources)
    ]
    if not lenders:
        raise NotEnoughData(f"none of the sources of {spec.name!r} has data of the task {spec.task!r} yet")
    torch.manual_seed(0)
    return Bench(workspace, context.domain, spec.task, tuple(lenders), Size(**context.params))


def _drawn(rows: Examples, most: int, seed: int) -> Examples:
    """At most so many rows, in their order."""
    if len(rows) <= most:
        return rows
    return rows.take(np.sort(np.random.default_rng(seed).permutation(len(rows))[:most]))


def _valued(rows: Examples) -> Examples:
    return replace(rows, label=rows.value)


def _by_person(person: np.ndarray, lost: np.ndarray, people: int) -> np.ndarray:
    """Sums of row losses (N, P) by person, (U, P)."""
    return np.stack([np.bincount(person, column, minlength=people) for column in lost.T], 1)


def _interval(value: float, drawn: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(drawn, (forecast.BOUNDS[0], forecast.BOUNDS[-1]))
    return {"value": float(value), "low": float(low), "high": float(high)}
