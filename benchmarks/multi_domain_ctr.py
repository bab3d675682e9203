"""Clicks of two domains that share users, protocol C: does each serve the other, and what does a new one need?

    python -m benchmarks.multi_domain_ctr --data DIR --out DIR [--settings douban amazon ...] [--seeds 5]

Douban book and music (filtered and unfiltered) and Amazon categories 1 and 2; a rating above 3 is a click. Amazon's
original review files of movies and CDs (``amazon/``) are read where a user has them. Cold and
warm rows of each domain are judged apart; ``benchmarks/two_domains.py`` says who is cold and what a row may see.
``...-new-NAME-SHARE`` settings are the new-domain track (``benchmarks/new_domain.py``): a model of the other domain
meets the named one with that percentage of its training rows.

Stopped, it goes on where it was. Under ``--out``: ``results.jsonl``, ``multi-domain-ctr.md`` and ``.svg`` files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import command, model_zoo, new_domain, results_page
from benchmarks.public_pairs import offered
from benchmarks.results_table import Method, Scored, Table, Task, run
from benchmarks.two_domains import PAIRS, TwoDomains, pair_of, prepare
from models.baselines import MULTI_DOMAIN
from models.baselines.plain import (
    BiasedFactors,
    ItemMean,
    ItemUserBias,
    MappedSourceBias,
    PlainBaseline,
    Popularity,
    Rows,
    TrainMean,
)
from orchestrator.data.batches import Examples
from orchestrator.data.scoring import score_rows
from orchestrator.training import fit
from orchestrator.training.recipe import Recipe

WIDE_PART, SHARED = "Graft, wide part alone", "Graft, shared"
STARS = " of stars"
SETTINGS = (*PAIRS, *new_domain.SETTINGS)
RECIPE = Recipe(
    task="ctr",
    wide_features="few",
    width=16,
    lifelong=100,
    short=5,
    head=(64, 32),
    epochs=1,
    learning_rate=1e-3,
    user_embedding=True,
)
"""Shared by all networks of the table, and what baselines train by but for those named below."""
GRAFT = RECIPE.model_copy(
    update={"wide_features": "many", "architecture": "dacdr+lcn", "pyramid": "none", "learning_rate": 2e-3, "epochs": 2}
)
"""Ours: cross-attention over the long history beside the short views that baselines read too; no pyramid."""
LONGER = {"DNN-single": 2}
FASTER = {pair: dict.fromkeys(MULTI_DOMAIN.keys() - LONGER, 2e-3) for pair in ("amazon", "amazon-movies-and-cds")}
"""Baselines with epochs or rates of their own: what validation rows of the first draws favoured."""


@dataclass(frozen=True)
class Given:
    """What a model may learn from. ``asked`` are the test rows of each slot with their labels taken out."""

    workspace: TwoDomains
    slots: tuple[str, ...]
    train: tuple[Examples, ...]
    asked: tuple[Examples, ...]

    def answers(self, score: Callable[[Examples, int], np.ndarray]) -> np.ndarray:
        """Scores of all test rows, domain after domain."""
        return np.concatenate([score(rows, slot) for slot, rows in enumerate(self.asked)])


def open_task(data: Path, folder: Path, setting: str, seed: int) -> Task:
    """One draw of one setting."""
    if setting in new_domain.SETTINGS:
        return new_domain.open_task(data, folder, setting, seed)
    settings, domains = prepare(data, folder, setting)
    workspace = TwoDomains(settings, domains, split_seed=seed)
    slots = tuple(domain.name for domain in domains)
    train, asked, label, user, segments = [], [], [], [], {}
    total = sum(len(workspace.split(workspace.examples(workspace.encoder, name)).test) for name in slots)
    begin = 0
    for name in slots:
        rows = workspace.examples(workspace.encoder, name)
        split = workspace.split(rows)
        test, cold = rows.take(split.test), workspace.cold(rows)[split.test]
        train.append(rows.take(split.train))
        asked.append(without_answers(test))
        label.append(test.label)
        user.append(test.user)
        for kind, chosen in (("", np.ones(len(test), bool)), (" warm", ~cold), (" cold", cold)):
            mask = np.zeros(total, bool)
            mask[begin : begin + len(test)] = chosen
            segments[PAIRS[setting].segment(name) + kind] = mask
        begin += len(test)
    given = Given(workspace, slots, tuple(train), tuple(asked))
    return Task(given, np.concatenate(label), np.concatenate(user), segments=segments)


def without_answers(rows: Examples) -> Examples:
    """Test rows as models may see them."""
    nothing = np.full(len(rows), np.nan, np.float32)
    return replace(rows, label=nothing, value=nothing)


def plain(name: str, make: Callable[[], PlainBaseline], task: Task, _seed: int, *, stars: bool) -> dict[str, Scored]:
    """A baseline without a network, of clicks or of the stars that they come of; one for each domain."""
    given: Given = task.given

    def learnt(rows: Examples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return rows.user, rows.item, rows.value if stars else rows.label

    fitted = []
    for slot, rows in enumerate(given.train):
        others = [learnt(other) for number, other in enumerate(given.train) if number != slot]
        source_rows = Rows.of(*(np.concatenate(part) for part in zip(*others, strict=True)))
        fitted.append(make().fit(*learnt(rows), source=source_rows))
    return {
        name: Scored(
            given.answers(lambda rows, slot: squashed(fitted[slot].predict(rows.user, rows.item), stars=stars))
        )
    }


def squashed(score: np.ndarray, *, stars: bool) -> np.ndarray:
    """Stars or counts as numbers in (0, 1) in the same order, so that losses of probabilities can be told."""
    if stars:
        return 1 / (1 + np.exp(-2 * (score - 3.5)))
    return np.clip(score, 1e-4, 1 - 1e-4) if score.max() <= 2 else score / (score + 10)


def baseline(name: str, recipe: Recipe, task: Task, seed: int) -> dict[str, Scored]:
    """A network of the papers, trained and stopped as ours is."""
    given: Given = task.given
    found = model_zoo.fit(name, given.workspace, recipe.model_copy(update={"seed": seed}), given.slots)
    return {name: Scored(given.answers(found.score), found.detail)}


def graft(recipe: Recipe, task: Task, seed: int) -> dict[str, Scored]:
    """Ours: what the wide part expects, and the shared model, which starts from it."""
    given: Given = task.given
    recipe = recipe.model_copy(update={"seed": seed})
    learnt = fit.training_set(given.workspace, recipe, given.slots)
    batch_builder = given.workspace.batch_builder(learnt.encoder, given.slots)
    ranker = fit.new_ranker(given.workspace, learnt.encoder, recipe, mean_label=learnt.mean_label)
    fit.prepare(ranker, learnt, batch_builder, seed=seed)

    def score(rows: Examples, slot: int) -> np.ndarray:
        return score_rows(ranker, batch_builder, rows, slot)

    wide_part = given.answers(score)
    result = fit.learn(
        ranker,
        learnt,
        batch_builder,
        recipe,
        auxiliary_weight=recipe.contrastive_weight,
        parameters=fit.searched_parameters(ranker),
        consider_start=True,
    )
    if ranker.embeddings.users is not None:
        fit.forget_unmet_users(ranker.embeddings.users, learnt)
    weights = [ranker.wide.weights, *(ranker.owned(slot).wide_weights for slot in range(len(given.slots)))]
    detail = {"best_epoch": result.best_epoch, "validation": result.best}
    return {
        WIDE_PART: Scored(wide_part, {"parameters": sum(part.numel() for part in weights)}),
        SHARED: Scored(
            given.answers(score), detail | {"parameters": sum(part.numel() for part in ranker.parameters())}
        ),
    }


PLAIN: dict[str, tuple[Callable[[], PlainBaseline], bool]] = {
    "train mean": (TrainMean, False),
    "popularity": (Popularity, False),
    "item mean": (ItemMean, False),
    "item mean" + STARS: (ItemMean, True),
    "item + user bias": (ItemUserBias, False),
    "item + user bias" + STARS: (ItemUserBias, True),
    "mapped source bias": (MappedSourceBias, False),
    "mapped source bias" + STARS: (MappedSourceBias, True),
    "biased MF": (partial(BiasedFactors, ridge=10.0), False),
    "biased MF" + STARS: (partial(BiasedFactors, ridge=10.0), True),
}


def methods(pair: str, recipe: Recipe = RECIPE, ours: Recipe = GRAFT) -> list[Method]:
    """Every row of the two-domain table, for a pair of ``PAIRS``."""
    rows = [
        Method((name,), partial(plain, name, make, stars=stars), {"defaults": repr(make()), "stars": stars})
        for name, (make, stars) in PLAIN.items()
    ]
    rows.append(Method((WIDE_PART, SHARED), partial(graft, ours), ours.model_dump(mode="json", exclude_defaults=True)))
    for name in MULTI_DOMAIN:
        rate = FASTER.get(pair, {}).get(name, recipe.learning_rate)
        own = recipe.model_copy(update={"epochs": LONGER.get(name, recipe.epochs), "learning_rate": rate})
        config = {"name": name} | own.model_dump(mode="json", exclude_defaults=True)
        rows.append(Method((name,), partial(baseline, name, own), config))
    return rows


def measure(
    data: Path, out: Path, *, settings: Sequence[str] = (), seeds: int = 5, models: Sequence[str] = ()
) -> Table:
    """Fill the table under ``out`` and write its page; returns it. What ``graft bench multi-domain-ctr`` calls.

    Args:
        settings: all whose files lie under ``data`` where empty.
        models: rows to train, or all where empty; what other rows the folder already holds stays in the table.
    """
    table, wanted = Table(out), settings or offered(Path(data), SETTINGS, pair_of)
    tracks = [*(((pair,), methods(pair)) for pair in PAIRS), (new_domain.SETTINGS, new_domain.methods())]
    for names, rows in tracks:
        run(
            table,
            settings=[setting for setting in wanted if setting in names],
            seeds=range(seeds),
            methods=command.chosen(rows, models),
            open_task=partial(open_task, Path(data), out),
            kind="ctr",
            on_result=command.printing("auc"),
        )
    write(table, out)
    return table


def write(table: Table, out: Path) -> None:
    """The page and the plots of a table, whole or not yet."""
    parts = []
    for pair in PAIRS:
        if pair not in table.settings():
            continue
        part = table.only([pair])
        measures = list(
            dict.fromkeys(name for result in part.results() for name in result.metrics if name.endswith("/auc"))
        )
        parts.append(f"# {pair}\n")
        parts.append(results_page.markdown(part, subject=SHARED, measures=measures, not_baselines=(WIDE_PART,)))
        shown = table.only([pair], without=("train mean", "popularity"))  # far below all others
        for metric in measures:
            picture = f"multi-domain-ctr-{pair}-{metric.removesuffix('/auc')}.svg".replace(" ", "-")
            results_page.plot(shown, metric, out / picture, subject=SHARED)
    parts.append(new_domain.write(table, out))
    (out / "multi-domain-ctr.md").write_text("\n".join(parts))


def main(arguments: Sequence[str] | None = None) -> None:
    command.run(
        measure,
        page="multi-domain-ctr.md",
        about=__doc__,
        folders="douban/, amazon_movie_tv/, amazon/, movielens/, kuairand/ or ali_ccp/",
        settings=SETTINGS,
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
