"""Train shared: the events of source domains into one backbone. No target goes live by it but through a judgement."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

from domains.errors import NotEnoughData
from domains.lifecycle import State
from models.cctl.information_flow import ANY_SOURCE
from models.cctl.weigher import CollaborativeTransfer, Part, TransferConfig, TransferReport
from models.ranker import adapters, checkpoint
from models.ranker.network import Ranker
from models.training import loop
from models.training.distributed import Alone
from orchestrator.data.dataset import Workspace, domains_with_data
from orchestrator.data.encoding import FeatureEncoder
from orchestrator.data.scoring import score_rows
from orchestrator.evaluation.measure import EvaluationRows
from orchestrator.evaluation.plain_rows import plain_rows
from orchestrator.evaluation.report import (
    HarmfulPart,
    HeldOut,
    SharedReport,
    SourceVerdict,
    SourceWeighting,
    SourceWeights,
    Window,
)
from orchestrator.jobs import results
from orchestrator.jobs.data_steps import GATHER, REFRESH
from orchestrator.jobs.runner import RESULT, RunContext, Step
from orchestrator.jobs.versions import publish_version, set_live
from orchestrator.jobs.zero_shot import offer_zero_shot
from orchestrator.training.fit import EVALUATED_ROWS, fit, sample
from orchestrator.training.recipe import Recipe
from orchestrator.training.torchrun import train_together
from orchestrator.values import Value

SLOTS, METRICS, SOURCE_WEIGHTING = "slots", "metrics", "source_weighting"
"""Names of the results that the steps leave for each other."""
DRAWS = 200


class Slots(Value):
    """The domains that take part, in the order of their slots in the network: sources, then the targets that are asked
    where sources are weighed."""

    domains: list[str]


class Evaluation(Value):
    """The shared model on the held-out rows of each domain."""

    domains: dict[str, HeldOut]


def train(context: RunContext) -> None:
    """Train the backbone on the chosen domains, in as many processes as the recipe says; continues after a kill."""
    trained = context.folder / "trained"
    if trained.is_dir():
        return
    recipe, _workspace, _slots = _plan(context)
    if recipe.processes == 1:
        train_here(context, on_progress=lambda progress: context.progress(**progress_detail(progress)))
        return
    train_together(
        context.run_id,
        processes=recipe.processes,
        settings=context.settings,
        log=context.folder / "training" / "processes.log",
        finished=trained.is_dir,
        on_progress=lambda reported: context.progress(**reported),
    )


def progress_detail(progress: loop.Progress) -> dict[str, Any]:
    """What a run records of the progress of its training."""
    return {
        "fraction": progress.fraction,
        "loss": progress.loss,
        "steps": progress.step,
        "examples_per_s": progress.rows_per_s,
    }


def train_here(
    context: RunContext, *, peers: Alone = loop.ALONE, on_progress: Callable[[loop.Progress], None] | None
) -> None:
    """Train the backbone in this process, one of ``peers``; the first of them saves it."""
    recipe, workspace, slots = _plan(context)
    transfer = _transfer(recipe, workspace, slots)
    ranker, encoder = fit(
        workspace,
        recipe,
        slots,
        sample_weigher=transfer,
        checkpoint_dir=context.folder / "training",
        on_progress=on_progress,
        peers=peers,
    )
    if not peers.leads:
        return
    if transfer is not None:
        context.write(SOURCE_WEIGHTING, _source_weighting(transfer.report(), encoder))
    building = context.folder / "trained.building"
    shutil.rmtree(building, ignore_errors=True)
    checkpoint.save_backbone(ranker, building / "backbone")
    encoder.save(building / "backbone")
    building.rename(context.folder / "trained")


def evaluate(context: RunContext) -> None:
    """Score each source's held-out rows beside the plain rows."""
    if context.holds(METRICS):
        return
    recipe, workspace, slots = _plan(context)
    ranker, encoder = _trained(context)
    batch_builder = workspace.batch_builder(encoder, slots)
    found = {}
    for source in encoder.sources:
        name, slot = source.domain, encoder.slots.index(source.domain)
        rows = workspace.examples(encoder, name)
        split = workspace.split(rows)
        test = rows.take(sample(split.test, EVALUATED_ROWS))
        held_out = EvaluationRows.of(recipe.task, test)
        if not held_out.enough:
            found[name] = HeldOut(note=f"{len(test)} held-out rows are too few to measure")
            continue
        scores = plain_rows(recipe.task, rows.take(split.train), test, ("train_mean", "item_mean"))
        scores["shared"] = score_rows(ranker, batch_builder, test, slot)
        found[name] = HeldOut(examples=len(test), rows=held_out.table(scores, draws=DRAWS))
        context.progress((slot + 1) / len(slots))
    context.write(METRICS, Evaluation(domains=found))


def publish(context: RunContext) -> None:
    """Store the backbone and set it live, then let every target without a live version try zero-shot.

    Adapters that are live go on answering on the shared model that they were trained on.
    """
    registry = context.registry
    recipe, _workspace, slots = _plan(context)
    ranker, encoder = _trained(context)
    metrics = {name: found.as_dict() for name, found in context.result_of(METRICS, Evaluation).domains.items()}
    backbone_id = adapters.backbone_hash(ranker)
    weighed = context.holds(SOURCE_WEIGHTING)
    report = SharedReport(source_weighting=context.result_of(SOURCE_WEIGHTING, SourceWeighting) if weighed else None)
    publish_version(
        context,
        context.folder / "trained" / "backbone",
        backbone_id,
        kind="backbone",
        metrics=metrics,
        report=report.as_dict(),
        config=recipe.model_dump(mode="json"),
    )
    set_live(context, None, backbone_id, why="shared training finished")
    domains = tuple(registry.domains())
    shared: dict[str, Any] = {
        "workspace": Workspace(context.settings, domains),
        "ranker": ranker,
        "encoder": encoder,
        "backbone_id": backbone_id,
    }
    for domain in domains:
        if domain.role == "target" and domain.state is not State.RETIRED:
            offer_zero_shot(context, domain, **shared)
    context.write(RESULT, results.SharedTraining(version=backbone_id, domains=list(slots)))


STEPS = (
    GATHER,
    Step("Train the shared model", train, 10),
    Step("Evaluate each domain", evaluate, 2),
    Step("Publish the shared model", publish, 1),
    REFRESH,
)


def _trained(context: RunContext) -> tuple[Ranker, FeatureEncoder]:
    """The trained network; it holds the slots of sources alone."""
    folder = context.folder / "trained"
    encoder = FeatureEncoder.load(folder / "backbone")
    return checkpoint.load_backbone(folder / "backbone").eval(), encoder


def _transfer(recipe: Recipe, workspace: Workspace, slots: Sequence[str]) -> CollaborativeTransfer | None:
    """What weighs source rows, or None where all count alike or there is no target to ask."""
    targets = tuple(slot for slot, name in enumerate(slots) if workspace.domain(name).role == "target")
    if recipe.source_weighting == "uniform" or not targets:
        return None
    return CollaborativeTransfer(TransferConfig(targets=targets))


def _source_weighting(report: TransferReport, encoder: FeatureEncoder) -> SourceWeighting:
    """A transfer report with domains by name and the parts of sources that harm in words."""
    slots = encoder.slots
    return SourceWeighting(
        verdicts={
            slots[slot]: SourceVerdict(
                weight=found.weight,
                influence=found.influence,
                certainty=found.certainty,
                borrow=found.borrow,
                reason=found.reason,
                verdict=found.word,
            )
            for slot, found in report.verdicts.items()
        },
        weights=[SourceWeights(**{**row, "source": slots[row["source"]]}) for row in report.weights],
        windows=[Window(**row) for row in report.windows],
        target_certainty=report.target,
        harmful_parts=[
            HarmfulPart(
                source="every source" if part.source == ANY_SOURCE else slots[part.source],
                part=_in_words(part, encoder),
                rows=part.rows,
                value=part.value,
                certainty=part.certainty,
            )
            for part in report.parts
            if part.harms
        ],
    )


def _in_words(part: Part, encoder: FeatureEncoder) -> str:
    """The feature value that the rows of a part share."""
    fields = {"item": encoder.item_fields, "user": encoder.user_fields, "context": encoder.context_fields}
    field = fields[part.group][part.field]
    if not part.code:
        return f"{field.name} not given"
    if field.kind == "category":
        return f"{field.name} {field.values[part.code - 1]}"
    low, high = ((None, *field.edges)[part.code - 1], (*field.edges, None)[part.code - 1])
    return f"{field.name} {'below' if low is None else f'{low:g} to'} {'or more' if high is None else f'{high:g}'}"


def _plan(context: RunContext) -> tuple[Recipe, Workspace, tuple[str, ...]]:
    recipe = Recipe(**context.params)
    held = domains_with_data(context.registry)
    workspace = Workspace(context.settings, held)
    chosen = [
        domain
        for domain in held
        if domain.spec.task == recipe.task
        # Targets are asked whether a source helps them, where sources are weighed, and teach nothing otherwise.
        and (domain.role == "source" or recipe.source_weighting == "weighed")
        and domain.name not in recipe.leave_out
        and (not recipe.domains or domain.name in recipe.domains)
    ]
    if not any(domain.role == "source" for domain in chosen):
        raise NotEnoughData(f"no source domain with task {recipe.task!r} has data; ingest one first")
    # The plan is fixed by the first step that asks, so that data which arrives during the run cannot move slots.
    if not context.holds(SLOTS):
        ordered = sorted(chosen, key=lambda domain: (domain.role != "source", domain.number))
        context.write(SLOTS, Slots(domains=[domain.name for domain in ordered]))
    return recipe, workspace, tuple(context.result_of(SLOTS, Slots).domains)
