"""Lifelong clicks, protocol B: what do 800 events of other domains tell of the next item of this one?

    python -m benchmarks.lifelong_ctr --data DIR --out DIR [--settings matched ...] [--seeds 5] [--models ROW ...]

KuaiRand's sequences: code 0 (141,674 steps of known items, 21,360 items) is the target, the six other codes are the
sources. A row asks whether a user took an item of code 0 at a moment, knowing everything strictly before: their latest
800 events of the other codes, 24 of their own code. Of each user the last two steps are the test, the one before is
held out to choose by, the three before those teach; each stands with two negatives
(`benchmarks/sampled_negatives.py`). A seed draws 1,250 users, the negatives and the networks' first weights. All
networks start from the same item vectors, made of events before the rows (`benchmarks/item_vectors.py`), and are
trained alike (`benchmarks/lifelong_networks.py`).

Settings: ``matched`` negatives are drawn as often as people took them, ``uniform`` ones evenly from the catalogue.
The others take impressions with their own clicks from original files (`benchmarks/logged_clicks.py`), 20,000 users a
seed.

Stopped, it goes on where it was. Under ``--out``: ``results.jsonl``, ``lifelong-ctr.md`` and ``.svg``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import command, results_page
from benchmarks.item_vectors import item_vectors
from benchmarks.lifelong_networks import Network, Setup, consistency, networks, scored, trained
from benchmarks.logged_clicks import LOGS, cut
from benchmarks.public_pairs import Pair, offered, settle
from benchmarks.results_table import Method, Scored, Table, Task, paired_over_seeds, run
from benchmarks.sampled_negatives import NEVER, Parts, draw
from models.baselines.plain import CoOccurrence, ItemMean, ItemUserBias, PlainBaseline, Popularity, Rows, TrainMean
from orchestrator.data.batches import Examples
from orchestrator.data.dataset import Workspace
from orchestrator.data.encoding import FeatureEncoder
from orchestrator.data.target_encoding import fit_target_encoding, leave_one_out
from orchestrator.training.fit import TrainingSet
from orchestrator.training.recipe import Recipe

FOLDER = "kuairand_sequences"
SEQUENCES = Pair(
    "kuairand-sequences",
    FOLDER,
    ("sequences.npz",),
    {"sources": ("9", "4", "7", "8", "11", "1"), "targets": ("0",)},
)
SETS: Mapping[str, Pair] = {"matched": SEQUENCES, "uniform": SEQUENCES, **LOGS}
"""Where the rows of a setting come from."""
OURS, WITHOUT_CRP = "both + CRP", "dacdr+lcn"
VECTORS, POPULARITY, CO_OCCURRENCE = "item vectors alone", "popularity", "co-occurrence"
LIFELONG, SHORT, WIDTH = 800, 24, 16
PER_POSITIVE, TAUGHT, PEOPLE = 2, 3, 1250
LOGGED_PEOPLE = 20_000
"""Users a seed where rows are impressions, of which few are clicks."""
FEW = 10
MEASURES = ("auc", "gauc", "logloss", "few/auc", "unseen/auc")


@dataclass(frozen=True)
class Given:
    """What a row may learn from. ``asked`` are the test rows with their labels taken out.

    ``taken`` and ``source_rows`` are what people took in the target and in the sources before their own first test row.
    """

    setup: Setup
    train: Examples
    taken: Rows
    source_rows: Rows
    asked: Examples


def prepare(data: Path, folder: Path, setting: str = "matched") -> Workspace:
    """Register and ingest a setting's domains under ``folder``; what is there already stays."""
    pair = SETS[setting]
    home = folder / "home" if pair is SEQUENCES else folder / "homes" / setting
    settings, domains = settle(home, lambda raw: [(one.spec, one) for one in pair.load(data, raw)], histories=True)
    return Workspace(settings, domains)


def open_task(workspace: Workspace, setting: str, seed: int, *, people: int | None = None) -> Task:
    """One draw of users, and of negatives where there are none of their own."""
    target = next(domain.name for domain in workspace.domains if domain.role == "target")
    slots = [domain.name for domain in workspace.domains if domain.role == "source"] + [target]
    slot = len(slots) - 1
    encoder = workspace.fit_encoder(task="ctr", slots=slots, lifelong=LIFELONG, short=SHORT, with_users=False)
    steps = workspace.examples(encoder, target)
    sizes = {name: len(workspace.data(name).item_vocabulary) for name in slots}
    if setting in LOGS:
        parts = cut(steps, seed=seed, people=people or LOGGED_PEOPLE)
        steps = steps.take(steps.label > 0)
    else:
        parts = draw(
            steps,
            catalogue=sizes[target],
            negatives=setting,  # type: ignore[arg-type]
            per_positive=PER_POSITIVE,
            taught=TAUGHT,
            seed=seed,
            people=people or PEOPLE,
        )
    found = fit_target_encoding(parts.train, sizes[target], "ctr")
    means = {name: np.full(size, parts.train.label.mean(), np.float32) for name, size in sizes.items()}
    training_set = TrainingSet(
        encoder,
        [(leave_one_out(parts.train, found), slot)],
        [(parts.validation, slot)],
        means | {target: found.means},
        {name: np.ones(size, np.float32) for name, size in sizes.items()},
    )
    recipe = Recipe(
        width=WIDTH, lifelong=LIFELONG, short=SHORT, architecture="dacdr+lcn", wide_features="few", seed=seed
    )
    test = parts.test
    setup = Setup(
        workspace,
        recipe,
        training_set,
        workspace.batch_builder(encoder, slots),
        slot,
        _vectors(workspace, encoder, steps, parts, size=sizes[target], seed=seed),
    )
    given = Given(
        setup,
        parts.train,
        before(steps.user, steps.item, steps.time_us, parts.first_test_us),
        _source_rows(workspace, encoder, parts.first_test_us),
        replace(test, label=np.full(len(test), np.nan, np.float32), value=np.zeros(len(test), np.float32)),
    )
    return Task(given, test.label, test.user, segments=_segments(workspace, parts))


def _segments(workspace: Workspace, parts: Parts) -> dict[str, np.ndarray]:
    """Users of whom little was seen in the target itself, and items that nobody was taught about."""
    store = workspace.histories.target[parts.test.domain]
    start, stop = store.window(parts.test.user, parts.test.time_us, FEW)
    found = {"few": stop - start < FEW, "unseen": ~np.isin(parts.test.item, parts.train.item)}
    return {name: rows for name, rows in found.items() if rows.any()}


def _vectors(
    workspace: Workspace, encoder: FeatureEncoder, steps: Examples, parts: Parts, *, size: int, seed: int
) -> np.ndarray:
    """Where items start: from what people took before their first row of any part."""
    source_rows = _source_rows(workspace, encoder, parts.first_us)
    own = before(steps.user, steps.item, steps.time_us, parts.first_us)
    items = encoder.source_rows_total
    return item_vectors(
        np.concatenate([source_rows.user, own.user]),
        np.concatenate([source_rows.item, items + own.item]),
        items + size,
        WIDTH,
        seed,
    )


def _source_rows(workspace: Workspace, encoder: FeatureEncoder, until_us: np.ndarray) -> Rows:
    store = workspace.histories.source
    user = np.repeat(np.arange(len(store.offsets) - 1), np.diff(store.offsets))
    item = encoder.source_rows(np.asarray(store.domain), np.asarray(store.item))
    took = np.asarray(store.value) > 0
    return before(user[took], item[took], np.asarray(store.time_us)[took], until_us)


def before(user: np.ndarray, item: np.ndarray, time_us: np.ndarray, until_us: np.ndarray) -> Rows:
    """What was taken before each user's own moment, which may be nothing."""
    until = np.full(max(len(until_us), int(user.max(initial=0)) + 1), NEVER)
    until[: len(until_us)] = until_us
    kept = time_us < until[user]
    return Rows(user[kept], item[kept], np.ones(int(kept.sum())))


def plain(name: str, make: type[PlainBaseline], task: Task, _seed: int) -> dict[str, Scored]:
    """Means and biases of the taught rows; counts, where nothing is chosen, of all taken before the test."""
    given: Given = task.given
    counts = name in (POPULARITY, CO_OCCURRENCE)
    rows = given.taken if counts else Rows.of(given.train.user, given.train.item, given.train.label)
    baseline = make().fit(rows.user, rows.item, rows.label, source=given.source_rows if counts else None)
    return {name: Scored(baseline.predict(given.asked.user, given.asked.item))}


def vectors_alone(task: Task, _seed: int) -> dict[str, Scored]:
    """Cosine of the candidate's first vector and the mean of those that the user's lifelong history holds."""
    given: Given = task.given
    setup, asked = given.setup, given.asked
    own = setup.training_set.encoder.source_rows_total
    scores = []
    for at in range(0, len(asked), 4096):
        part = asked.take(np.arange(at, min(at + 4096, len(asked))))
        events = setup.batch_builder.batch(part, setup.slot).lifelong
        past = np.cumsum(setup.vectors[events.item.numpy()], 1, dtype=np.float64)
        past = np.concatenate([np.zeros_like(past[:, :1]), past], 1)
        row = events.row.numpy()
        mean = past[row, events.stop.numpy()] - past[row, events.start.numpy()]
        length = np.maximum(np.linalg.norm(mean, axis=1), 1e-9)
        scores.append((mean * setup.vectors[own + part.item]).sum(1) / length)
    cosine = np.concatenate(scores)
    return {VECTORS: Scored(1 / (1 + np.exp(-cosine)))}


def network(name: str, what: Network, task: Task, seed: int) -> dict[str, Scored]:
    """A network of the table, ours or a baseline."""
    given: Given = task.given
    setup = given.setup
    model, detail = trained(what, setup, seed)
    return {name: Scored(scored(model, setup, given.asked), detail | consistency(model, setup, given.asked))}


def methods() -> list[Method]:
    """Every row of the table."""
    protocol = {"width": WIDTH, "rows": (PER_POSITIVE, TAUGHT, PEOPLE)}
    simple: dict[str, type[PlainBaseline]] = {
        "train mean": TrainMean,
        "item mean": ItemMean,
        POPULARITY: Popularity,
        "item + user bias": ItemUserBias,
        CO_OCCURRENCE: CoOccurrence,
    }
    rows = [Method((name,), partial(plain, name, make), protocol | {"plain": name}) for name, make in simple.items()]
    rows.append(Method((VECTORS,), vectors_alone, protocol))
    rows += [
        Method((name,), partial(network, name, what), protocol | what.config()) for name, what in networks().items()
    ]
    return rows


def measure(
    data: Path,
    out: Path,
    *,
    settings: Sequence[str] = (),
    seeds: int = 5,
    models: Sequence[str] = (),
    people: int | None = None,
) -> Table:
    """Fill the table under ``out`` and write its page; returns it. What ``graft bench lifelong-ctr`` calls.

    Args:
        settings: by default all whose files lie under ``data``, but for ``uniform``.
        models: rows to train, or all where empty; what other rows the folder already holds stays in the table.
        people: users a seed, instead of those that the protocol names.

    Raises:
        InvalidData: the files of no setting, or not those of a setting asked for, lie under ``data``.
    """
    table, data = Table(out), Path(data)
    for setting in settings or [one for one in offered(data, tuple(SETS), SETS.__getitem__) if one != "uniform"]:
        workspace = prepare(data, out, setting)
        run(
            table,
            settings=[setting],
            seeds=range(seeds),
            methods=command.chosen(methods(), models),
            open_task=partial(open_task, workspace, people=people),
            kind="ctr",
            on_result=command.printing("auc", "gauc", "logloss"),
        )
    write(table, out)
    return table


def write(table: Table, out: Path) -> None:
    """The page and the plot of a table, whole or not yet."""
    kin = [name for name in networks() if name.startswith(("dacdr+lcn", "domain over", "LCN-", "DACDR", "LCN + CRP"))]
    parts = [
        results_page.markdown(table, subject=OURS, plain=VECTORS, measures=MEASURES, not_baselines=kin),
        "## Every row beside the composed ranker without CRP\n",
        _beside(table, WITHOUT_CRP),
        "## Consistency of the cascade\n",
        _consistency(table),
    ]
    page = "\n".join(parts).replace("[+nan, +nan] | nan", "one seed | –")
    (out / "lifelong-ctr.md").write_text(page)
    results_page.plot(table, "auc", out / "lifelong-ctr-auc.svg", subject=OURS)


def _beside(table: Table, reference: str) -> str:
    """AUC of each row less that of one, paired over the seeds that both have."""
    lines = [f"| row | setting | AUC − that of `{reference}` | 95 % over seeds | p | seeds won |", "| --- " * 6 + "|"]
    for setting in table.settings():
        for model in table.models():
            over = paired_over_seeds(table, setting, "auc", model, reference)
            if model == reference or not over.seeds:
                continue
            gap = over.difference
            shown = f"[{gap.low:+.4f}, {gap.high:+.4f}]" if over.seeds > 1 else "–"
            won = f"{over.seeds - over.lower}/{over.seeds}"
            chance = f"{over.p:.3f}" if over.seeds > 1 else "–"
            lines.append(f"| {model} | {setting} | {gap.value:+.4f} | {shown} | {chance} | {won} |")
    return "\n".join([*lines, ""])


def _consistency(table: Table) -> str:
    """Share of the last stage's own best 50 events that the stages before it find."""
    lines = ["| model | setting | share | rows a seed |", "| --- | --- | --- | --- |"]
    for setting in table.settings():
        for model in table.models():
            results = [one for one in table.results() if one.setting == setting and one.model == model]
            found = [one.detail["consistency"] for one in results if "consistency" in one.detail]
            if found:
                rows = np.mean([one.detail["consistency_rows"] for one in results if "consistency" in one.detail])
                lines.append(f"| {model} | {setting} | {np.mean(found):.3f} ± {np.std(found):.3f} | {rows:.0f} |")
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    command.run(
        measure,
        page="lifelong-ctr.md",
        about=__doc__,
        folders="kuairand_sequences/, taobao_ads/ or kuairand/",
        settings=tuple(SETS),
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
