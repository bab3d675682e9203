"""What makes the network fast changes no score: shared rows against plain ones."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from models.batch import Batch
from models.ranker.network import Ranker

ARCHITECTURES = ["dacdr", "lcn", "dacdr+lcn", "domain_over_pyramid"]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-3}


def of_type(batch: Batch, kind: torch.dtype) -> Batch:
    return replace(batch, **{name: getattr(batch, name).to(kind) for name in ("label", "weight", "offset")})


@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("task", "wide"), [("ctr", False), ("ctr", True), ("rating", True)])
@pytest.mark.parametrize(("rows", "users", "domain"), [(1, 1, 2), (12, 5, None), (24, 2, 0)])
def test_shared_rows_score_and_learn_as_plain_rows(
    *,
    kind: torch.dtype,
    architecture: str,
    task: str,
    wide: bool,
    rows: int,
    users: int,
    domain: int | None,
    make_ranker: Callable[..., Ranker],
    make_batch: Callable[..., Batch],
) -> None:
    """Scores, last hidden states and the gradient of every parameter."""
    ranker = make_ranker(architecture=architecture, task=task, wide=wide).to(kind)
    batch = of_type(make_batch(rows, users=users, domain=domain), kind)
    found = []
    for state, score in (ranker.hidden(batch), ranker.plain(batch)):
        gradients = torch.autograd.grad(
            score.sin().sum() + state.cos().sum(), list(ranker.parameters()), allow_unused=True, materialize_grads=True
        )
        found.append([score, state, *gradients])
    for shared, plain in zip(*found, strict=True):
        scale = max(1.0, float(plain.detach().abs().max()) if plain.numel() else 0.0)
        torch.testing.assert_close(shared / scale, plain / scale, atol=TOLERANCE[kind], rtol=TOLERANCE[kind])
