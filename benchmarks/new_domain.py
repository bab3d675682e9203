"""The new-domain track: a shared model of one domain meets another, of whose rows it gets 1, 5, 10 or 100 percent.

The shared model learns the other domain alone. Then, on the same rows of the new one: what the domain owns is tuned
with all else frozen (the adapter, and the adapter without its item rows), every weight is tuned, or a network starts
from nothing. What the tuning does to the old domain's scores stands in each result's detail as ``drift``.
"""

from __future__ import annotations

import copy
import html
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results_page
from benchmarks.results_table import Method, Scored, Table, Task
from benchmarks.two_domains import TwoDomains, prepare
from models.baselines.plain import ItemMean, ItemUserBias, MappedSourceBias, PlainBaseline, Rows
from models.metrics import auc
from models.ranker import adapters
from models.ranker.network import Ranker
from orchestrator.data.batches import BatchBuilder, Examples
from orchestrator.data.encoding import FeatureEncoder
from orchestrator.data.scoring import score_rows
from orchestrator.training import baselines, fit
from orchestrator.training.fine_tune import fit_adapter
from orchestrator.training.recipe import Recipe

NEW = {"douban": ("music", "douban-music"), "amazon": ("category-2", "amazon-category-2")}
PERCENT = (1, 5, 10, 100)
SETTINGS = tuple(f"{pair}-new-{short}-{percent}" for pair, (short, _) in NEW.items() for percent in PERCENT)
START, ADAPTER, FEW = "Graft, zero-shot", "Graft, adapter", "Graft, adapter without item rows"
FULL, SCRATCH = "full fine-tuning", "from scratch"
WAYS = (START, ADAPTER, FEW, FULL, SCRATCH)
BESIDE_PLAIN = ", basic wide features"
"""The same ways where no wide part is solved for, so that all there is must be learnt by descent."""
PLAIN: dict[str, Callable[[], PlainBaseline]] = {
    "item mean of stars": ItemMean,
    "item + user bias of stars": ItemUserBias,
    "mapped source bias of stars": MappedSourceBias,
}
RECIPE = Recipe(
    task="ctr",
    architecture="dacdr",
    wide_features="many",
    width=16,
    lifelong=100,
    short=100,
    head=(64, 32),
    epochs=2,
    learning_rate=5e-4,
    user_embedding=True,
    fine_tune_epochs=3,
    fine_tune_learning_rate=1e-3,
    fine_tune_batch_size=512,
)


@dataclass(frozen=True)
class Given:
    """What a model may learn from: the old domain, and part of the new one. ``asked`` has no labels."""

    workspace: TwoDomains
    old: str
    train: Examples
    validation: Examples
    asked: Examples
    source_rows: Examples


@dataclass
class Shared:
    """A shared model of the old domain, and the old domain's test rows with their labels."""

    ranker: Ranker
    encoder: FeatureEncoder
    test: Examples


_SHARED: dict[tuple[str, int, str], Shared] = {}
"""Of the pair and seed at work: all shares of the new domain meet the same shared model."""


def open_task(data: Path, folder: Path, setting: str, seed: int) -> Task:
    """One draw of one setting."""
    begun, percent = setting.rsplit("-", 1)
    pair = begun.split("-new-")[0]
    new = NEW[pair][1]
    settings, domains = prepare(data, folder, pair, new=new)
    workspace = TwoDomains(settings, domains, split_seed=seed, share=int(percent) / 100, thinned=new)
    old = next(domain.name for domain in domains if domain.name != new)
    rows, source_rows = (workspace.examples(workspace.encoder, name) for name in (new, old))
    split = workspace.split(rows)
    test, cold = rows.take(split.test), workspace.cold(rows)[split.test]
    nothing = np.full(len(test), np.nan, np.float32)
    asked = replace(test, label=nothing, value=nothing)
    # A team with a hundredth of the rows has a hundredth to choose by as well.
    validation = np.sort(
        np.random.default_rng([seed, 8]).permutation(split.validation)[
            : max(20, round(workspace.share * len(split.validation)))
        ]
    )
    given = Given(
        workspace,
        old,
        rows.take(split.train),
        rows.take(validation),
        asked,
        source_rows.take(workspace.split(source_rows).train),
    )
    return Task(given, test.label, test.user, segments={"warm": ~cold, "cold": cold})


def plain(name: str, make: Callable[[], PlainBaseline], task: Task, _seed: int) -> dict[str, Scored]:
    """A row without a network, of the stars behind the clicks."""
    given: Given = task.given
    source_rows = Rows.of(given.source_rows.user, given.source_rows.item, given.source_rows.value)
    found = make().fit(given.train.user, given.train.item, given.train.value, source=source_rows)
    stars = found.predict(given.asked.user, given.asked.item)
    return {name: Scored(1 / (1 + np.exp(-2 * (stars - 3.5))))}


def shared_model(given: Given, recipe: Recipe) -> Shared:
    """The shared model of the old domain, trained once for all shares of the new one."""
    place = (str(given.workspace.settings.home), given.workspace.split_seed)
    key = (*place, recipe.model_dump_json())
    for other in [other for other in _SHARED if other[:2] != place]:
        del _SHARED[other]
    if key not in _SHARED:
        ranker, encoder = fit.fit(given.workspace, recipe, [given.old])
        rows = given.workspace.examples(encoder, given.old)
        _SHARED[key] = Shared(ranker, encoder, rows.take(given.workspace.split(rows).test))
    return _SHARED[key]


def tuned(way: str, name: str, recipe: Recipe, task: Task, seed: int) -> dict[str, Scored]:
    """One way to tune the shared model, named as it stands in the table."""
    given: Given = task.given
    recipe = recipe.model_copy(update={"seed": seed})
    shared = shared_model(given, recipe)
    batch_builder = given.workspace.batch_builder(shared.encoder, [given.old, given.train.domain])
    ranker = copy.deepcopy(shared.ranker)
    slot = fit.add_domain(ranker, given.workspace, shared.encoder, given.train.domain, like=0)
    before = _old(ranker, batch_builder, shared)
    whole = sum(part.numel() for part in ranker.parameters())
    owned = ranker.owned(slot)
    assert owned.items is not None
    rows = owned.items.rows.weight.numel()
    detail: dict[str, Any] = {"whole": whole, "item_rows": rows}
    if way == START:
        return {name: Scored(score_rows(ranker, batch_builder, given.asked, slot), detail | {"parameters": 0})}
    if way in (ADAPTER, FEW):
        recipe = recipe.model_copy(update={"fine_tune_items": way == ADAPTER})
        fingerprint = adapters.fingerprint(ranker, excluding=slot)
        result = fit_adapter(ranker, slot, recipe, batch_builder, given.train, validation=given.validation)
        proof = adapters.certificate(fingerprint, adapters.fingerprint(ranker, excluding=slot))
        trained = sum(part.numel() for part in owned.parameters()) - (0 if recipe.fine_tune_items else rows)
        detail |= {"parameters": trained, "best_epoch": result.best_epoch, "frozen": proof.ok}
        score = score_rows(ranker, batch_builder, given.asked, slot)
    else:
        score = baselines.predict(
            "full_fine_tune" if way == FULL else "scratch",
            ranker=ranker,
            slot=slot,
            recipe=recipe,
            workspace=given.workspace,
            batch_builder=batch_builder,
            train=given.train,
            validation=given.validation,
            test=given.asked,
        )
        detail |= {"parameters": whole}
    if way != SCRATCH:
        after, label = _old(ranker, batch_builder, shared), shared.test.label
        detail |= {
            "drift": float(np.abs(after - before).max()),
            "mean_drift": float(np.abs(after - before).mean()),
            "old_auc_before": auc(label, before),
            "old_auc_after": auc(label, after),
        }
    return {name: Scored(score, detail)}


def _old(ranker: Ranker, batch_builder: BatchBuilder, shared: Shared) -> np.ndarray:
    """The old domain's scores."""
    return score_rows(ranker, batch_builder, shared.test, 0)


def methods(recipe: Recipe = RECIPE) -> list[Method]:
    """Every row of the new-domain table."""
    rows = [Method((name,), partial(plain, name, make), {"defaults": repr(make())}) for name, make in PLAIN.items()]
    for features, ways in (("many", WAYS), ("few", (ADAPTER, FEW, FULL, SCRATCH))):
        own = recipe.model_copy(update={"wide_features": features})
        config = own.model_dump(mode="json", exclude_defaults=True)
        for way in ways:
            name = way if features == "many" else way + BESIDE_PLAIN
            rows.append(Method((name,), partial(tuned, way, name, own), config | {"row": way}))
    return rows


def write(table: Table, out: Path) -> str:
    """The track's part of the page, its plots under ``out``."""
    parts = []
    for pair, (short, _) in NEW.items():
        settings = [f"{pair}-new-{short}-{percent}" for percent in PERCENT]
        part = table.only(settings)
        if not part.settings():
            continue
        measures = ("auc", "warm/auc", "cold/auc")
        parts.append(f"# {pair}: {short} is new\n")
        parts.append(
            results_page.markdown(part, subject=ADAPTER, measures=measures, plain=FULL, not_baselines=(START, FEW))
        )
        parts.append(what_tuning_costs(part))
        plot(part, settings, out / f"new-domain-{pair}.svg")
    return "\n".join(parts)


def what_tuning_costs(table: Table) -> str:
    """Trained numbers, with and without item rows, and what became of the old domain; means over seeds."""
    head = ["setting", "row", "trained", "share", "trained beside item rows", "largest drift", "mean drift", "old AUC"]
    lines = ["Trained parameters and the old domain\n", results_page.row(head), results_page.row(["---"] * len(head))]
    for setting in table.settings():
        for name in (way + kind for kind in ("", BESIDE_PLAIN) for way in WAYS[1:]):
            results = [result for result in table.results() if result.setting == setting and result.model == name]
            if not results:
                continue

            def mean(key: str, results: list[Any] = results) -> float:
                return float(np.mean([result.detail.get(key, np.nan) for result in results]))

            rest = mean("parameters") - (0 if name.startswith(FEW) else mean("item_rows"))
            drift = max(result.detail.get("drift", np.nan) for result in results)
            told = [setting, name, f"{mean('parameters'):,.0f}", f"{mean('parameters') / mean('whole'):.1%}"]
            told += [f"{rest:,.0f} ({rest / mean('whole'):.1%})"]
            if name.startswith(SCRATCH):
                told += ["–"] * 3
            else:
                told += [f"{drift:.3g}", f"{mean('mean_drift'):.3g}"]
                told += [f"{mean('old_auc_before'):.4f} → {mean('old_auc_after'):.4f}"]
            lines.append(results_page.row(told))
    return "\n".join([*lines, ""])


def plot(table: Table, settings: list[str], path: Path) -> None:
    """AUC against the share of the new domain's rows, a line a row of the table. SVG."""
    colours = {
        ADAPTER: "#0b6e4f",
        FULL: "#b5532a",
        ADAPTER + BESIDE_PLAIN: "#6fb98f",
        FULL + BESIDE_PLAIN: "#dda07f",
        SCRATCH + BESIDE_PLAIN: "#999",
        PLAIN_BEST: "#3b6ea5",
    }
    points = {
        name: [(place, list(table.values(setting, name, "auc").values())) for place, setting in enumerate(settings)]
        for name in colours
    }
    every = [value for line in points.values() for _, values in line for value in values]
    if not every:
        return
    low, high = min(every) - 0.005, max(every) + 0.005

    def at(place: int, value: float) -> tuple[float, float]:
        return 70 + 150 * place, 20 + 260 * (high - value) / (high - low)

    shapes = [
        f'<text x="{at(place, low)[0]:.0f}" y="300">{setting.rsplit("-", 1)[1]} %</text>'
        for place, setting in enumerate(settings)
    ]
    shapes += [f'<text x="10" y="{at(0, value)[1] + 4:.0f}">{value:.3f}</text>' for value in (low, high)]
    for number, (name, line) in enumerate(points.items()):
        means = [(at(place, float(np.mean(values))), values) for place, values in line if values]
        track = " ".join(f"{x:.1f},{y:.1f}" for (x, y), _ in means)
        shapes.append(f'<polyline points="{track}" fill="none" stroke="{colours[name]}" stroke-width="2"/>')
        for (x, y), values in means:
            top, bottom = at(0, max(values))[1], at(0, min(values))[1]
            shapes.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}" stroke="{colours[name]}"/>'
            )
            shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colours[name]}"/>')
        shapes.append(f'<text x="560" y="{40 + 20 * number}" fill="{colours[name]}">{html.escape(name)}</text>')
    path.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 310" font-family="sans-serif" font-size="12">'
        '<rect width="100%" height="100%" fill="#fff"/>' + "".join(shapes) + "</svg>\n"
    )


PLAIN_BEST = "item + user bias of stars"
