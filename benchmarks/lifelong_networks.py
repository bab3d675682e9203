"""The networks of the lifelong table: which there are, how each is built, and the one way in which all are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from benchmarks import model_zoo
from benchmarks.baselines import LIFELONG, SELF_SUPERVISED
from benchmarks.baselines.self_supervised import WithAuxiliary
from benchmarks.item_vectors import begin_with
from models.baselines.inputs import Baseline
from models.layers.contrast import ContrastConfig
from models.layers.pyramid import PyramidConfig
from models.ranker.network import Ranker
from models.training import loop
from orchestrator.data.batches import BatchBuilder, DomainBatchSampler, Examples
from orchestrator.data.dataset import Workspace
from orchestrator.training import fit
from orchestrator.training.fit import TrainingSet
from orchestrator.training.recipe import Recipe

AUXILIARY_WEIGHT = 0.01
"""Of CRP and of every self-supervised loss alike, chosen on validation rows: see docs/experiments.md."""
EPOCHS, BATCH, LEARNING_RATE = 1, 256, 4e-3
SESSION = 64
"""Rows of one user that stand together in a batch."""
SCORED_AT_ONCE = 512
"""Rows; more are slower, since what a batch makes no longer stays in the cache."""
CONSISTENCY_ROWS = 1500
NARROW, WIDE_PYRAMID = PyramidConfig.named("LCN-200-50"), PyramidConfig.named("LCN-500-100")
WITHOUT_FEATURES = ("SSL",)
"""Losses that set an item's features against each other, which these items have not."""


@dataclass(frozen=True)
class Network:
    """A row of the table.

    name: name in ``benchmarks/model_zoo.py``; for ``Graft`` the network is a ranker of ``changes``
    changes: fields of RankerConfig
    rule: how tables of items are updated
    bf16: make the products of training in bfloat16
    """

    name: str = model_zoo.OURS
    changes: Mapping[str, Any] = field(default_factory=dict)
    rule: Literal["lazy_adam", "rowwise_adagrad", "dense"] = "lazy_adam"
    bf16: bool = False

    def config(self) -> dict[str, Any]:
        """All that its result depends on beside the rows."""
        return {
            "name": self.name,
            "changes": {name: repr(value) for name, value in self.changes.items()},
            "rule": self.rule,
            "training": (EPOCHS, BATCH, LEARNING_RATE, SESSION, AUXILIARY_WEIGHT),
            **({"bf16": True} if self.bf16 else {}),
        }


def networks() -> dict[str, Network]:
    """Every network of the table by its name, those that decide first."""
    crp = ContrastConfig()

    def ours(
        architecture: str, pyramid: PyramidConfig = NARROW, contrast: ContrastConfig | None = None, **more: Any
    ) -> Any:
        return Network(changes={"architecture": architecture, "pyramid": pyramid, "contrast": contrast, **more})

    def dacdr(**changes: Any) -> Network:
        return Network(changes={"architecture": "dacdr", **changes})

    lifelong = replace(NARROW, levels=())
    rows = {
        "dacdr+lcn": ours("dacdr+lcn"),
        "both + CRP": ours("dacdr+lcn", contrast=crp),
        "domain over pyramid": ours("domain_over_pyramid"),
        "domain over pyramid + CRP": ours("domain_over_pyramid", contrast=crp),
        "both + CRP, w/o LAP": ours("dacdr+lcn", lifelong, crp),
        "DACDR": dacdr(),
        "LCN-200-50": ours("lcn"),
        "LCN-200-50 + CRP": ours("lcn", contrast=crp),
        **{name: Network(name) for name in LIFELONG},
        "both, dense Adam": replace(ours("dacdr+lcn"), rule="dense"),
        "both, row-wise Adagrad": replace(ours("dacdr+lcn"), rule="rowwise_adagrad"),
        "both, bfloat16": replace(ours("dacdr+lcn"), bf16=True),
        "LCN-500-100": ours("lcn", WIDE_PYRAMID),
        "LCN-500-100 + CRP": ours("lcn", WIDE_PYRAMID, crp),
        "LCN + CRP, w/o LAP": ours("lcn", lifelong, crp),
        "LCN + CRP, w/o MSA": ours("lcn", NARROW.without("msa"), crp),
        "LCN + CRP, w/o FSA": ours("lcn", NARROW.without("fsa"), crp),
        "LCN + CRP, w/o L_PC": ours("lcn", contrast=replace(crp, cross_weight=0.0)),
        "LCN + CRP, InfoNCE": ours("lcn", contrast=replace(crp, denominator="infonce")),
        "DACDR, w/o DA": dacdr(domain_attention=False),
        "DACDR, w/o IA": dacdr(item_attention=False),
        "DACDR, w/o DA&IA": dacdr(domain_attention=False, item_attention=False),
        "DACDR, w/o DA&IA, mean in their place": dacdr(domain_attention=False, item_attention=False, vacated="mean"),
        **{name + model_zoo.CRP: Network(name + model_zoo.CRP) for name in LIFELONG},
    }
    for name in SELF_SUPERVISED:
        if name not in WITHOUT_FEATURES:
            changes = {"architecture": "lcn", "pyramid": NARROW}
            rows[f"LCN + {name}"] = Network(f"{model_zoo.OURS} + {name}", changes)
    return rows


@dataclass(frozen=True)
class Setup:
    """What a network is built for and taught by: the same for every row of the table.

    vectors: (source items + own items, D) that every network's items start from
    """

    workspace: Workspace
    recipe: Recipe
    training_set: TrainingSet
    batch_builder: BatchBuilder
    slot: int
    vectors: np.ndarray


def trained(what: Network, setup: Setup, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """A network of the table, trained, and what it says of itself."""
    recipe = setup.recipe.model_copy(update={"seed": seed})
    model = built(what, setup, recipe)
    own, training_set = DomainBatchSampler, setup.training_set
    result = loop.train(
        model,
        own(setup.batch_builder, training_set.train, batch_size=BATCH, seed=seed, session_rows=SESSION),
        config=loop.TrainConfig(
            epochs=EPOCHS,
            learning_rate=LEARNING_RATE,
            auxiliary_weight=AUXILIARY_WEIGHT,
            embedding_optimiser=what.rule,
            bf16=what.bf16,
            seed=seed,
        ),
        validation=own(setup.batch_builder, training_set.validation, batch_size=SCORED_AT_ONCE, seed=0, shuffle=False),
    )
    return model.eval(), {
        "parameters": sum(part.numel() for part in model.parameters()),
        "best_epoch": result.best_epoch,
        "validation": result.best,
    }


def scored(model: nn.Module, setup: Setup, rows: Examples) -> np.ndarray:
    """Click probabilities of rows in their order, (N,)."""
    source = DomainBatchSampler(
        setup.batch_builder, [(rows, setup.slot)], batch_size=SCORED_AT_ONCE, seed=0, shuffle=False
    )
    return loop.predict(model, source.batches(0))["score"]


def built(what: Network, setup: Setup, recipe: Recipe) -> nn.Module:
    """A fresh network that knows the items' means and starts from the given vectors."""
    ours = what.name.startswith(model_zoo.OURS)
    model = _ranker(what, setup, recipe) if ours else _baseline(what, setup, recipe)
    inner = model.backbone if isinstance(model, WithAuxiliary) else model
    source = setup.training_set.encoder.source_rows_total
    if isinstance(inner, Baseline):
        begin_with(inner.inputs.items.rows.weight, setup.vectors)
    elif isinstance(inner, Ranker):
        own = inner.owned(setup.slot).items
        assert own is not None
        begin_with(inner.embeddings.source_items.rows.weight, setup.vectors[:source])
        begin_with(own.rows.weight, setup.vectors[source:])
    return model


def _baseline(what: Network, setup: Setup, recipe: Recipe) -> nn.Module:
    return model_zoo.build(what.name, setup.workspace, recipe, setup.training_set)


def _ranker(what: Network, setup: Setup, recipe: Recipe) -> nn.Module:
    encoder = setup.training_set.encoder
    # Only for its config and codes; narrow, because another is built of them.
    usual = fit.new_ranker(
        setup.workspace, encoder, recipe.model_copy(update={"width": 4}), mean_label=setup.training_set.mean_label
    )
    torch.manual_seed(recipe.seed)
    ranker = Ranker(replace(usual.config, width=recipe.width, **what.changes), usual.embeddings.source_items.codes)
    for name in encoder.slots:
        fit.add_domain(ranker, setup.workspace, encoder, name)
    fit.prepare(ranker, setup.training_set, setup.batch_builder, seed=recipe.seed)
    task = what.name.removeprefix(model_zoo.OURS).removeprefix(" + ")
    return WithAuxiliary(ranker, SELF_SUPERVISED[task](recipe.width)) if task else ranker  # type: ignore[call-arg]


def consistency(model: nn.Module, setup: Setup, rows: Examples) -> dict[str, float]:
    """How much of its last stage's own choice a cascade finds, over rows with more events than are chosen.

    Empty for networks that search in no stages.
    """
    inner = model.backbone if isinstance(model, WithAuxiliary) else model
    if isinstance(inner, Ranker) and (inner.pyramid is None or inner.pyramid.fsa is None):
        return {}
    ask = getattr(inner, "consistency", None)
    if ask is None:
        return {}
    asked = rows.take(np.arange(min(len(rows), CONSISTENCY_ROWS)))
    with torch.inference_mode():
        share, counts = ask(setup.batch_builder.batch(asked, setup.slot))
    if not bool(counts.any()):
        return {}
    return {"consistency": float(share[counts].float().mean()), "consistency_rows": int(counts.sum())}
