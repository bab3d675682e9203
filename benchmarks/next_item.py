"""Which item comes next: cross-domain ranking by leave-one-out, and of users who are cold in the asked domain.

    python -m benchmarks.next_item --data DIR --out DIR

Two settings. ``food-kitchen``: each user is asked in both domains for their last event there, from what came before it
(ABXI's set; events of one day in drawn order). ``game-video``: users without any event in the asked domain are asked
for what they have there (CDRIB's split). A query has 999 wrong candidates of the same domain. Models learn from and
choose by the events before the last, or by warm users and the split's validation rows (`task_of`).

Rows with a network start from the wide part (`benchmarks.ranking_features`), which stands as a row as well, so
that nobody takes their gain for the network's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import command, ranking_features, results_page
from benchmarks.ranking_features import TITLES, Counts, Weights, others_features, title_vectors, weigh
from benchmarks.ranking_network import Bins, Lists, Reach, answers, fit_network, new_network
from benchmarks.ranking_queries import TEST, TRAIN, VALIDATION, Log, Market, Queries, ask, food_kitchen, game_video
from benchmarks.results_table import Method, Scored, Table, Task, run
from models.baselines.plain import ImplicitFactors
from models.training.loop import TrainConfig

SETTINGS = ("food-kitchen", "game-video")
WIDE_PART, SUBJECT, DACDR = "wide part alone", "Graft (DACDR + LCN + CRP)", "DACDR alone"
FOLDS, FACTORS, TITLE_WIDTH, WEIGHED = 5, 32, 96, 4000
SEGMENTS = {"food-kitchen": ("Food", "Kitchen"), "game-video": ("Game", "Video")}


@dataclass(frozen=True)
class Sizes:
    """How much is asked: queries of each domain to learn from, to choose by and for the test, and wrong candidates.

    Before the test there are fewer candidates, so that there can be more queries.
    """

    training: int = 5000
    validation: int = 800
    test: int = 800
    training_negatives: int = 99
    validation_negatives: int = 199
    test_negatives: int = 999


@dataclass(frozen=True)
class Given:
    """What models learn from; the asked queries come with candidates shuffled and without the right one's place.

    ``known`` are all events but those held back for the test, in a cold market training's alone. Features (Q, C, N)
    stand beside their queries; ``factors`` (V, FACTORS) are those of events that training queries are not among, of no
    width in a cold market.
    """

    items: int
    known: Log
    training: Queries
    training_features: np.ndarray
    validation: Queries
    validation_features: np.ndarray
    asked: Queries
    asked_features: np.ndarray
    names: tuple[str, ...]
    factors: np.ndarray
    weights: dict[tuple[str, ...], Weights] = field(default_factory=dict)


def open_market(data: Path, setting: str, seed: int) -> Market:
    random = np.random.default_rng([seed, 1])
    if setting == "food-kitchen":
        return food_kitchen(data / "food_kitchen", random)
    return game_video(data / "game_video", random)


def open_task(data: Path, out: Path, setting: str, seed: int, *, sizes: Sizes | None = None) -> Task:
    """One draw of a setting. Features are counted once and kept beside the table."""
    sizes = sizes or Sizes()
    kept = out / "features" / f"{setting}-{seed}-{'-'.join(map(str, astuple(sizes)))}.npz"
    return task_of(open_market(data, setting, seed), seed, sizes, kept)


def task_of(market: Market, seed: int, sizes: Sizes, kept: Path | None = None) -> Task:
    """The queries of a market; each sees what came before it and was not held back for those that come after.

    Models learn from the events before the last of four in five users, and the other fifth's choose: neither is among
    what features are counted on, exactly as it is in the test. In a cold market they learn from users who have both
    domains, each as if cold, with features counted on other people; the split's validation rows choose.
    """
    random = np.random.default_rng([seed, 2])
    log = market.log
    train = log.take(log.role == TRAIN)
    # Validation rows of a cold market are of the very users that are asked in the test: with them nobody were cold.
    known = train if market.cold else log.take(log.role != TEST)
    held = log.take(log.role != TEST)
    if market.cold:
        teaches, chooses = _both_domains(market), log.role == VALIDATION
    else:
        learner = random.random(int(log.user.max()) + 1) < 0.8
        teaches = (log.role == VALIDATION) & learner[log.user]
        chooses = (log.role == VALIDATION) & ~learner[log.user]

    def queries(rows: np.ndarray, seen: Log, most: int, negatives: int, met: Log) -> Queries:
        """At most so many of each domain."""
        parts = [random.permutation(np.flatnonzero(rows & (log.domain == domain)))[:most] for domain in (0, 1)]
        return ask(
            market, seen, log.take(np.sort(np.concatenate(parts))), negatives=negatives, random=random, known=met
        )

    training = queries(teaches, train, sizes.training, sizes.training_negatives, held)
    validation = queries(chooses, train, sizes.validation, sizes.validation_negatives, held)
    asked, right = queries(log.role == TEST, known, sizes.test, sizes.test_negatives, log).shuffled(random)
    if kept is not None and kept.is_file():
        found = [np.load(kept)[name] for name in ("training", "validation", "asked", "factors")]
    else:
        found = _count(market, train, known, (training, validation, asked), seed)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            writing = kept.with_suffix(".writing.npz")
            np.savez(writing, training=found[0], validation=found[1], asked=found[2], factors=found[3])
            writing.replace(kept)
    names = ranking_features.names(timed=market.timed, titled=bool(market.titles))
    given = Given(
        len(market.domain_of), known, training, found[0], validation, found[1], asked, found[2], names, found[3]
    )
    segments = {name: asked.domain == domain for domain, name in enumerate(market.names)}
    return Task(given, right, asked.user, segments=segments)


def _both_domains(market: Market) -> np.ndarray:
    """Training events of users who also have some in the other domain."""
    log, people = market.log, int(market.log.user.max()) + 1
    train = log.role == TRAIN
    has = np.stack([np.bincount(log.user[train & (log.domain == d)], minlength=people) > 0 for d in (0, 1)])
    return train & has[1 - log.domain, log.user]


def _count(
    market: Market, train: Log, known: Log, asked: tuple[Queries, Queries, Queries], seed: int
) -> list[np.ndarray]:
    items = len(market.domain_of)
    titles = title_vectors(market.titles, TITLE_WIDTH, seed) if market.titles else None
    options: dict[str, Any] = {"timed": market.timed, "width": FACTORS, "seed": seed}
    training, validation, test = asked
    counts = Counts.of(train, items, **options)
    if market.cold:
        learnt = others_features(training, train, items, folds=FOLDS, **options)
    else:
        learnt = ranking_features.features(training, counts, titles)
    return [
        learnt,
        ranking_features.features(validation, counts, titles),
        ranking_features.features(test, Counts.of(known, items, **options), titles),
        counts.factors[:, : 0 if market.cold else FACTORS],
    ]


# Rows without a network


def popularity(task: Task, _seed: int) -> dict[str, Scored]:
    """How often each item was met."""
    given: Given = task.given
    count = np.bincount(given.known.item, minlength=given.items)
    return {"popularity": Scored(count[given.asked.candidates])}


def co_occurrence(task: Task, _seed: int) -> dict[str, Scored]:
    """How many people met the candidate together with each thing that the user has, added up; ties by popularity."""
    given: Given = task.given
    return {"co-occurrence": Scored(ranking_features.co_occurrence(given.asked, given.known, given.items))}


def factors(task: Task, seed: int) -> dict[str, Scored]:
    """Implicit matrix factorisation of both domains together, from `implicit`."""
    given: Given = task.given
    known, asked = given.known, given.asked
    model = ImplicitFactors(width=FACTORS, seed=seed).fit(known.user, known.item, np.ones(len(known)))
    people = np.repeat(asked.user, asked.candidates.shape[1])
    score = model.predict(people, asked.candidates.reshape(-1))
    return {"implicit MF": Scored(score.reshape(asked.candidates.shape))}


def weighed(name: str, without: Sequence[str], task: Task, _seed: int) -> dict[str, Scored]:
    """The features but for these, weighed on training queries."""
    given: Given = task.given
    score = _expected(given, without, given.asked_features, given.asked)
    return {name: Scored(score, {"features": len(_columns(given, without))})}


def _columns(given: Given, without: Sequence[str]) -> list[int]:
    return [place for place, name in enumerate(given.names) if name not in without]


def _expected(given: Given, without: Sequence[str], features: np.ndarray, queries: Queries) -> np.ndarray:
    """What the features say of candidates, (Q, C); the weights are solved for once a task."""
    columns, key = _columns(given, without), tuple(without)
    if key not in given.weights:
        part = slice(None, None, -(-len(given.training) // WEIGHED))
        given.weights[key] = weigh(given.training_features[part][..., columns], given.training.domain[part])
    return given.weights[key].score(features[..., columns], queries.domain)


# Rows with a network


@dataclass(frozen=True)
class Training:
    """How the network rows are trained; the same for all of them.

    Features choose what the network reads: the first ``ordered`` candidates of a test query, as in a service that ranks
    what was retrieved. It learns from the first ``learnt`` of the drawn ones, and the first ``chosen_by`` of validation
    choose the epoch, where the right one is among them.
    """

    epochs: int = 2
    learning_rate: float = 3e-3
    embedding_learning_rate: float = 1e-4
    weight_decay: float = 0.0
    batch: int = 128
    patience: int = 1
    bins: int = 8
    contrastive: float = 0.1
    without: tuple[str, ...] = TITLES
    lifelong: int = 32
    short: int = 8
    learnt: int = 10
    chosen_by: int = 20
    ordered: int = 50


def network(name: str, changes: Mapping[str, Any], how: Training, task: Task, seed: int) -> dict[str, Scored]:
    """A ranker on lists; its detail says what validation thought of it and of what it started from."""
    given: Given = task.given
    columns = _columns(given, how.without)
    training, validation, asked = _lists(given, how, columns)
    bins = _bins(given, how, columns)
    build = {name: value for name, value in changes.items() if name != "blind"}
    ranker = new_network(given.items, () if bins is None else bins.sizes, build, seed, given.factors)
    reach = Reach(0, 0) if "blind" in changes else Reach(how.lifelong, how.short)
    result = fit_network(
        ranker,
        training.contested(how.learnt),
        validation.contested(how.chosen_by),
        reach=reach,
        batch=how.batch,
        config=TrainConfig(
            loss="listwise",
            epochs=how.epochs,
            learning_rate=how.learning_rate,
            embedding_learning_rate=how.embedding_learning_rate,
            weight_decay=how.weight_decay,
            patience=how.patience,
            auxiliary_weight=how.contrastive if "contrast" in changes else 0.0,
            consider_start=True,
            seed=seed,
        ),
    )
    detail = {
        "parameters": sum(part.numel() for part in ranker.parameters()),
        "best_epoch": result.best_epoch,
        "validation_mrr": result.best,
        "epochs": [row["value"] for row in result.history],
    }
    return {name: Scored(answers(ranker, asked, reach, how.ordered), detail)}


def _bins(given: Given, how: Training, columns: list[int]) -> Bins | None:
    return Bins.of(given.training_features[..., columns], how.bins) if how.bins else None


def _lists(given: Given, how: Training, columns: list[int]) -> tuple[Lists, Lists, Lists]:
    """Training, validation and asked queries as the network reads them."""
    bins = _bins(given, how, columns)
    parts = (
        (given.training, given.training_features),
        (given.validation, given.validation_features),
        (given.asked, given.asked_features),
    )
    found = []
    for queries, features in parts:
        prior = _expected(given, how.without, features, queries)
        found.append(Lists(queries, prior, features[..., columns], bins))
    return found[0], found[1], found[2]


CRP = {"contrast": {"negatives": 1024}}
PYRAMID = {"k1": 16, "k2": 8}  # of 32 events: levels that narrow, as LCN-200-50 does of 500


def _levels(*levels: str) -> dict[str, Any]:
    return {"pyramid": {**PYRAMID, "levels": levels}}


WHOLE = {"architecture": "dacdr+lcn", "pyramid": PYRAMID}
ABLATIONS: dict[str, Mapping[str, Any]] = {
    SUBJECT: {**WHOLE, **CRP},
    "without CRP": WHOLE,
    "without LAP": {**WHOLE, **_levels(), **CRP},
    DACDR: {"architecture": "dacdr"},
    "without DA": {**WHOLE, **CRP, "domain_attention": False},
    "without IA": {**WHOLE, **CRP, "item_attention": False},
    "without DA and IA": {**WHOLE, **CRP, "domain_attention": False, "item_attention": False},
    "without MSA": {**WHOLE, **_levels("csa", "fsa"), **CRP},
    "without FSA": {**WHOLE, **_levels("csa", "msa"), **CRP},
    "CRP without cross-domain pairs": {**WHOLE, "contrast": {"negatives": 1024, "cross_weight": 0.0}},
    "network on wide features alone": {
        "architecture": "dacdr+lcn",
        **_levels(),
        "domain_attention": False,
        "item_attention": False,
        "blind": True,
    },
}
"""Networks of the table. ``network on wide features alone`` reads the features in bins, the candidate and no
history."""


def methods(how: Training | None = None, sizes: Sizes | None = None) -> list[Method]:
    """Every row of the table."""
    how = how or Training()
    base = {"sizes": asdict(sizes or Sizes()), "folds": FOLDS, "factors": FACTORS}
    without_time = (*ranking_features.TIMED, *TITLES)
    choices = {
        "wide part alone, without the moment": without_time,
        WIDE_PART: TITLES,
        "wide part alone, with titles": (),
    }
    rows = [
        Method(("popularity",), popularity, base),
        Method(("co-occurrence",), co_occurrence, base),
        Method(("implicit MF",), factors, base),
    ]
    rows += [
        Method((name,), partial(weighed, name, without), {**base, "without": without})
        for name, without in choices.items()
    ]
    rows += [
        Method((name,), partial(network, name, changes, how), {**base, **asdict(how), "network": dict(changes)})
        for name, changes in ABLATIONS.items()
    ]
    return rows


def measure(
    data: Path,
    out: Path,
    *,
    settings: Sequence[str] = SETTINGS,
    seeds: int = 5,
    models: Sequence[str] = (),
) -> Table:
    """Fill the table under ``out`` and write its pages; returns it. What ``graft bench next-item`` calls."""
    table = Table(out)
    for setting in settings:
        chosen = command.chosen(methods(), models)
        run(
            table,
            settings=[setting],
            seeds=range(seeds),
            methods=chosen,
            open_task=partial(open_task, Path(data), Path(out)),
            kind="ranking",
            on_result=command.printing("mrr"),
        )
    write(table, Path(out))
    return table


def write(table: Table, out: Path) -> None:
    """The page and a plot a domain."""
    asked = [name for setting in table.settings() for name in SEGMENTS[setting]]
    measures = [f"{name}/{metric}" for metric in ("mrr", "ndcg@10") for name in asked]
    page = results_page.markdown(table, subject=SUBJECT, plain=WIDE_PART, measures=measures)
    (out / "next-item.md").write_text(page)
    for name in asked:
        results_page.plot(table, f"{name}/mrr", out / f"next-item-{name.lower()}.svg", subject=SUBJECT)


def main(arguments: Sequence[str] | None = None) -> None:
    command.run(
        measure,
        page="next-item.md",
        about=__doc__,
        folders="food_kitchen/ and game_video/",
        settings=SETTINGS,
        default=SETTINGS,
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
