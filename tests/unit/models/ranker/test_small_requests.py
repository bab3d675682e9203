"""Requests of a few candidates in float32, the type that serving scores in."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from models.batch import Batch
from models.layers.pyramid import PyramidConfig
from models.ranker.network import Ranker

ARCHITECTURES = ["dacdr", "lcn", "dacdr+lcn", "domain_over_pyramid"]
LEVELS = [("csa", "msa", "fsa"), ("csa", "fsa"), ("fsa",), ("msa",), ("csa",)]


def request_of(batch: Batch, candidates: int, users: int) -> Batch:
    """The rows as requests: all candidates of a user at one moment, with the same events in sight."""
    row = torch.arange(len(batch)) // candidates
    assert batch.short_target is not None
    short = batch.short_target
    return replace(
        batch,
        time=batch.time[:1].expand(len(batch)),
        lifelong=replace(batch.lifelong, row=row, start=torch.zeros_like(row)),
        short_source=None,
        short_target=replace(short, row=row, start=torch.zeros_like(row), stop=torch.full_like(row, users)),
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@given(
    candidates=some.integers(1, 3),
    users=some.integers(1, 3),
    length=some.integers(0, 12),
    k2=some.integers(1, 3),
    levels=some.sampled_from(LEVELS),
    norm=some.sampled_from(["none", "1/n_valid", "softmax"]),
    reading=some.sampled_from(["A", "B"]),
    training=some.booleans(),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_small_requests_score_as_in_double_precision(
    *,
    architecture: str,
    candidates: int,
    users: int,
    length: int,
    k2: int,
    levels: tuple,
    norm: str,
    reading: str,
    training: bool,
    make_ranker: Callable[..., Ranker],
    make_batch: Callable[..., Batch],
) -> None:
    """Of any size, with empty histories, any pyramid, in training and in evaluation; gradients are finite."""
    pyramid = PyramidConfig(k1=5, k2=k2, heads=2, levels=levels, norm=norm, reading=reading)  # type: ignore[arg-type]
    ranker = make_ranker(architecture=architecture, pyramid=pyramid, user_dropout=0.0).train(training)
    batch = request_of(
        make_batch(candidates * users, users=users, length=length, domain=2, full=True), candidates, users
    )
    exact = ranker(batch).detach()
    single = replace(batch, offset=batch.offset.float(), label=batch.label.float(), weight=batch.weight.float())
    score = ranker.float()(single)
    score.sum().backward()
    assert score.dtype == torch.float32
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in ranker.parameters())
    torch.testing.assert_close(score.double(), exact, atol=5e-3, rtol=5e-3)
