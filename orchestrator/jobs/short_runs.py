"""Short runs: tiny networks, trained for a few hundred steps, whose errors a preview compares.

Every user is evaluated once, by a run that did not learn from them (cross-fitting), so that a few runs use all the
users there are. The users that launches are evaluated on stay untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property

import numpy as np

from domains.errors import NotEnoughData
from domains.events.splits import Split
from models.metrics import METRICS
from models.ranker.network import Ranker
from models.ranker.wide_part import RatingWide
from models.training import loop
from orchestrator.data.batches import BatchBuilder, DomainBatchSampler, EventSource, Examples
from orchestrator.data.dataset import Workspace
from orchestrator.data.scoring import score_rows
from orchestrator.data.target_encoding import fit_target_encoding, leave_one_out
from orchestrator.evaluation.declared import declared_columns, regression
from orchestrator.evaluation.learning_curve import Curves, Judged
from orchestrator.evaluation.plain_rows import item_user_bias, plain_rows
from orchestrator.training.fine_tune import fit_adapter
from orchestrator.training.fit import (
    add_domain,
    new_ranker,
    searched_parameters,
    set_bands,
    set_means,
    train_config,
)
from orchestrator.training.recipe import Recipe
from orchestrator.training.wide_fit import fit_wide_weights
from orchestrator.values import Value

SHARES = (0.1, 0.2, 0.4, 0.7, 1.0)
FEWEST_ROWS, FEWEST_USERS = 300, 30
"""Below these a preview would only measure chance."""
FEWEST_IN_A_SHARE = 50
"""Rows that a launch asks for at least; a point of the learning curve has as many."""
SHORT = 10
"""Latest events that the tiny networks read."""

OnShare = Callable[[float], None]
"""Takes the share of the work that is done, 0 to 1."""


class Size(Value):
    """How much a preview spends: ``folds`` are runs per set of sources, rows are caps of what one run learns from."""

    folds: int = 4
    target_rows: int = 20_000
    source_rows: int = 15_000
    width: int = 8
    lifelong: int = 50
    epochs: int = 2
    seed: int = 0

    def recipe(self, task: str) -> Recipe:
        """What each tiny network is and how it learns; cross-attention alone is the cheapest."""
        return Recipe.model_validate(
            {
                "task": task,
                "architecture": "dacdr",
                "width": self.width,
                "lifelong": self.lifelong,
                "short": SHORT,
                "epochs": self.epochs,
                "batch_size": 256,
                "learning_rate": 3e-3,
                "fine_tune_epochs": 3,
                "fine_tune_batch_size": 256,
                "fine_tune_learning_rate": 3e-3,
            }
        )


class ShortRuns:
    """One domain and its possible sources, ready for short runs.

    Attributes:
        rows: the domain's rows to learn from or to choose by, never those of the launch's cold users.
        fold: (N,) each row's fold, the same for all rows of one user.
        users: (U,) the users of ``rows``; ``person`` (N,) each row's position among them.
    """

    def __init__(self, workspace: Workspace, name: str, sources: tuple[str, ...], size: Size) -> None:
        self.workspace, self.name, self.sources, self.size = workspace, name, sources, size
        self.task = workspace.domain(name).spec.task
        slots = (*sources, name)
        self.encoder = workspace.fit_encoder(
            task=self.task, slots=slots, lifelong=size.lifelong, short=SHORT, with_users=False
        )
        everything = workspace.examples(self.encoder, name)
        split = workspace.split(everything)
        learnable = np.sort(np.r_[split.train, split.validation])
        self._place = learnable[_sampled(len(learnable), size.target_rows, size.seed)]
        self.rows = everything.take(self._place)
        self.users, self.person = np.unique(self.rows.user, return_inverse=True)
        if len(self.rows) < FEWEST_ROWS or len(self.users) < FEWEST_USERS:
            raise NotEnoughData(
                f"domain {name!r} has {len(self.rows)} rows of {len(self.users)} users beside its cold users; "
                f"a preview needs {FEWEST_ROWS} of {FEWEST_USERS}",
                domain=name,
            )
        self._order = np.random.default_rng(size.seed).permutation(len(self.users))[self.person]
        self.fold = self._order % size.folds
        self._user_codes = workspace.user_codes(self.encoder)
        self._item_codes = {slot: workspace.item_codes(self.encoder, slot) for slot in slots}

    @cached_property
    def judged(self) -> Judged:
        """The rows with the metric of the domain's gate."""
        fold = np.zeros(len(self.users), np.int64)
        fold[self.person] = self.fold
        metric = METRICS[self.workspace.domain(self.name).spec.gate.metric]
        return Judged(metric, self.rows.label.astype(np.float64), self.person, fold)

    def scores_with(self, sets: list[frozenset[str]], on_progress: OnShare) -> dict[frozenset[str], np.ndarray]:
        """Scores of all rows, (N,), by networks that learn from the domain and from each set of sources."""
        scores = {chosen: np.zeros(len(self.rows)) for chosen in sets}
        done = 0
        for fold in range(self.size.folds):
            train, choosing, held = self._parts(fold)
            own = self.rows.take(train), self.rows.take(choosing)
            for chosen in sets:
                ranker, batch_builder = self._run(chosen, fold, own)
                slot = self._slot(self.name)
                scores[chosen][held] = score_rows(ranker, batch_builder, self.rows.take(held), slot)
                done += 1
                on_progress(done / (len(sets) * self.size.folds))
        return scores

    def learning_curves(self, chosen: list[str], plain: list[str], on_progress: OnShare) -> Curves:
        """Scores of adapters and plain rows that learn from growing shares of the domain's users."""
        shares = [share for share in SHARES if share * len(self.rows) / 2 >= FEWEST_IN_A_SHARE]
        scores = {model: np.zeros((len(self.rows), len(shares))) for model in ("adapter", *plain)}
        learned = np.zeros((self.size.folds, len(shares)))
        for fold in range(self.size.folds):
            train, choosing, held = self._parts(fold)
            rows = self.rows.take(held)
            ranker, batch_builder = self._run(chosen, fold)
            for point, share in enumerate(shares):
                part = Split(self._share_of(train, share), self._share_of(choosing, share), held, self.users[:0], None)
                some, stopping = self.rows.take(part.train), self.rows.take(part.validation)
                learned[fold, point] = len(some)
                slot = add_domain(ranker, self.workspace, self.encoder, self.name)
                fit_adapter(ranker, slot, self.size.recipe(self.task), batch_builder, some, validation=stopping)
                scores["adapter"][held, point] = score_rows(ranker, batch_builder, rows, slot)
                for name in plain:
                    scores[name][held, point] = self._plain(name, part)
                on_progress((fold * len(shares) + point + 1) / (self.size.folds * len(shares)))
        return Curves(rows=learned.mean(0), scores=scores, judged=self.judged)

    def _plain(self, name: str, part: Split) -> np.ndarray:
        """What a plain row of a launch's table scores the test rows of a part."""
        held = self.rows.take(part.test)
        if name == "declared_columns":
            return regression(self.task, self._declared, self.rows.label, part)[part.test]
        # The other plain rows need no early stopping, so they learn from those rows as well.
        known = self.rows.take(np.r_[part.train, part.validation])
        if name == "item_user_bias":
            return item_user_bias(self.task, known, held)
        return plain_rows(self.task, known, held, (name,))[name]

    @cached_property
    def _declared(self) -> dict[str, np.ndarray]:
        """Codes of the declared columns, (N,) each."""
        columns, _ = declared_columns(self.workspace, self.name)
        return {name: codes[self._place] for name, codes in columns.items()}

    def _slot(self, name: str) -> int:
        return self.encoder.slots.index(name)

    def _parts(self, fold: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions of rows to learn from, to stop by and to evaluate; no user is in two of them."""
        rest = self.fold != fold
        choosing = rest & (self._order // self.size.folds % 8 == 0)
        return np.flatnonzero(rest & ~choosing), np.flatnonzero(choosing), np.flatnonzero(~rest)

    def _share_of(self, place: np.ndarray, share: float) -> np.ndarray:
        """Those positions that belong to a share of the users; a larger share holds every user of a smaller one."""
        user = self.rows.user[place]
        users = np.unique(user)
        order = np.random.default_rng(self.size.seed + 1).permutation(users)
        return place[np.isin(user, order[: max(2, round(share * len(users)))])]

    def _run(
        self, wanted: Iterable[str], fold: int, own: tuple[Examples, Examples] | None = None
    ) -> tuple[Ranker, BatchBuilder]:
        """A tiny network trained on rows of the chosen sources, the only ones in any history.

        Args:
            own: rows of the domain itself to learn from and to stop by; without, it stops by the sources' rows.
        """
        chosen = [name for name in self.sources if name in set(wanted)]
        recipe = self.size.recipe(self.task).model_copy(update={"seed": self.size.seed + fold})
        batch_builder = self._batch_builder(chosen)
        rows = {name: self._source_rows(name, recipe.seed) for name in chosen}
        if own is not None:
            rows[self.name] = own
        ranker, train = self._untrained(rows, recipe)
        if isinstance(ranker.wide, RatingWide):
            values = [rows[name][0].value for name in chosen]
            set_bands(ranker.wide, np.concatenate(values) if values else np.zeros(0))
        if ranker.wide.solved:
            fit_wide_weights(ranker, batch_builder, train, seed=recipe.seed)
        choosing = [(held, self._slot(name)) for name, (_, held) in rows.items() if own is None or name == self.name]
        loop.train(
            ranker,
            DomainBatchSampler(batch_builder, train, batch_size=recipe.batch_size, seed=recipe.seed),
            config=train_config(recipe, patience=1, consider_start=True),
            validation=DomainBatchSampler(batch_builder, choosing, batch_size=4096, seed=0, shuffle=False),
            parameters=searched_parameters(ranker),
        )
        return ranker.eval(), batch_builder

    def _untrained(
        self, rows: dict[str, tuple[Examples, Examples]], recipe: Recipe
    ) -> tuple[Ranker, list[tuple[Examples, int]]]:
        """A network that starts from the item means of these domains' rows, and the rows that it learns from."""
        means = {name: np.zeros(self._items(name), np.float32) for name in self.encoder.slots}
        values = {name: np.zeros(self._items(name), np.float32) for name in self.sources}
        train = []
        for name, (learned, _) in rows.items():
            encoding = fit_target_encoding(learned, self._items(name), self.task)
            means[name] = encoding.means
            values[name] = fit_target_encoding(replace(learned, label=learned.value), self._items(name), "rating").means
            train.append((leave_one_out(learned, encoding), self._slot(name)))
        # A domain that is left out starts from the mean label of those that are not.
        overall = float(np.concatenate([learned.label for learned, _ in train]).mean())
        for name in self.encoder.slots:
            if not means[name].any():
                means[name][:] = overall
        ranker = new_ranker(self.workspace, self.encoder, recipe, mean_label=overall)
        set_means(ranker, self.encoder, means, values)
        return ranker, train

    def _batch_builder(self, chosen: list[str]) -> BatchBuilder:
        histories = self.workspace.histories
        numbers = frozenset(self.workspace.domain(name).number for name in chosen)
        return BatchBuilder(
            self.encoder,
            user_codes=self._user_codes,
            item_codes=self._item_codes,
            source=EventSource(histories.source),
            target={name: EventSource(store) for name, store in histories.target.items() if name == self.name},
            source_domains=dict.fromkeys((*chosen, self.name), numbers),
        )

    def _source_rows(self, name: str, seed: int) -> tuple[Examples, Examples]:
        """Rows of a source to learn from and to stop by."""
        rows = self.workspace.examples(self.encoder, name)
        split = self.workspace.split(rows)
        most = self.size.source_rows
        return _sample(rows.take(split.train), most, seed), _sample(rows.take(split.validation), most // 10, seed)

    def _items(self, name: str) -> int:
        return len(self.workspace.data(name).item_vocabulary)


def _sample(rows: Examples, most: int, seed: int) -> Examples:
    """At most so many rows, in their order."""
    return rows.take(_sampled(len(rows), most, seed))


def _sampled(rows: int, most: int, seed: int) -> np.ndarray:
    """Positions of at most so many of the rows, ascending."""
    return np.arange(rows) if rows <= most else np.sort(np.random.default_rng(seed).permutation(rows)[:most])
