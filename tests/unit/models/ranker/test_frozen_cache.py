"""The frozen-activation cache changes neither scores nor what an adapter becomes."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.batch import Batch
from models.ranker import adapters
from models.ranker.network import Ranker
from models.ranker.precompute import frozen_cache
from models.training import loop

MakeBatch = Callable[..., Batch]
MakeRanker = Callable[..., Ranker]
ROWS, LENGTH, TARGET = 24, 40, 2
PLENTY = 1 << 24


@pytest.fixture(params=["one window each", "windows differ"])
def rows(make_batch: MakeBatch, request: pytest.FixtureRequest) -> Batch:
    """Rows of a few users of the target, with keys; rows of a user may all see the same, or not."""
    batch = make_batch(rows=ROWS, users=4, length=LENGTH, domain=TARGET, full=True)
    if request.param == "one window each":
        batch = replace(batch, lifelong=replace(batch.lifelong, start=torch.zeros(ROWS, dtype=torch.long)))
    return replace(batch, key=torch.arange(ROWS))


@pytest.fixture(params=[("dacdr+lcn", False), ("dacdr", False), ("lcn", True), ("domain_over_pyramid", False)])
def tuned(make_ranker: MakeRanker, request: pytest.FixtureRequest) -> Ranker:
    """A ranker of which only the target's adapter trains; one has wide features of clicks."""
    architecture, wide = request.param
    ranker = make_ranker(architecture=architecture, wide=wide)
    adapters.freeze_all_but(ranker, TARGET)
    return ranker


class Shuffled:
    """Two batches an epoch, other ones in each."""

    def __init__(self, rows: Batch) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return 2

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(epoch)).view(2, -1)
        for index in order[start:]:
            yield self.rows.rows(index)


def test_scores_and_gradients_are_those_of_computing_all_anew(tuned: Ranker, rows: Batch) -> None:
    """On a batch other than those that the cache was made of."""
    owned = list(tuned.owned(TARGET).parameters())
    some = rows.rows(torch.tensor([5, 2, 7, 11, 3, 3]))

    def answer() -> list[torch.Tensor]:
        score = tuned(some)
        return [score, *torch.autograd.grad(score.sin().sum(), owned, allow_unused=True, materialize_grads=True)]

    anew = answer()
    with tuned.using(frozen_cache(tuned, [rows], ROWS, limit=PLENTY)):
        cached = answer()
    for one, other in zip(cached, anew, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-9)
    assert tuned.cache is None


def test_an_adapter_comes_out_the_same_with_and_without(tuned: Ranker, rows: Batch) -> None:
    """After epochs that shuffle the rows; the cache was made in another order."""
    start = {name: value.clone() for name, value in tuned.state_dict().items()}
    found = []
    for limit in (PLENTY, 0):
        tuned.load_state_dict(start)
        with tuned.using(frozen_cache(tuned, [rows.rows(torch.arange(ROWS).flip(0))], ROWS, limit=limit)):
            assert (tuned.cache is None) == (limit == 0)
            loop.train(tuned, Shuffled(rows), config=loop.TrainConfig(epochs=3, learning_rate=0.01))
        found.append({name: value.clone() for name, value in tuned.state_dict().items()})
    moved = [name for name in start if not torch.equal(start[name], found[0][name])]
    assert moved
    assert all(name.startswith(f"domains.{TARGET}.") for name in moved)
    for name in start:
        torch.testing.assert_close(found[0][name], found[1][name], atol=1e-8, rtol=1e-7)


def test_a_run_goes_on_from_a_checkpoint_to_the_same_bits(tuned: Ranker, rows: Batch, tmp_path: Path) -> None:
    """The cache is made again on the way, in the same order, so it is the very same."""
    start = {name: value.clone() for name, value in tuned.state_dict().items()}
    config = loop.TrainConfig(epochs=3, checkpoint_every_steps=1, progress_every_steps=1)
    calls = iter(range(100))

    def killed(_: loop.Progress) -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt

    with tuned.using(frozen_cache(tuned, [rows], ROWS, limit=PLENTY)):
        loop.train(tuned, Shuffled(rows), config=config)
    whole = {name: value.clone() for name, value in tuned.state_dict().items()}
    tuned.load_state_dict(start)
    with tuned.using(frozen_cache(tuned, [rows], ROWS, limit=PLENTY)), pytest.raises(KeyboardInterrupt):
        loop.train(tuned, Shuffled(rows), config=config, checkpoint_dir=tmp_path, on_progress=killed)
    with tuned.using(frozen_cache(tuned, [rows], ROWS, limit=PLENTY)):
        loop.train(tuned, Shuffled(rows), config=config, checkpoint_dir=tmp_path)
    assert all(torch.equal(value, whole[name]) for name, value in tuned.state_dict().items())


def test_weights_that_train_have_no_frozen_activations(make_ranker: MakeRanker, make_batch: MakeBatch) -> None:
    ranker = make_ranker(architecture="dacdr+lcn")
    with pytest.raises(ValueError, match="freeze all but one domain"):
        frozen_cache(ranker, [], 0, limit=PLENTY)
    adapters.freeze_all_but(ranker, TARGET)
    rows = replace(make_batch(domain=TARGET), key=torch.arange(12))
    with ranker.using(frozen_cache(ranker, [rows], 12, limit=PLENTY)):
        assert ranker.cache is not None
        adapters.unfreeze(ranker)
        assert ranker.cache is None
