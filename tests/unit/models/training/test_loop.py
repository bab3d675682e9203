"""The loop learns, stops, leaves the frozen alone, and continues after any death to the bits of an unbroken run."""

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.batch import Batch, Events
from models.metrics import auc
from models.training import run_state
from models.training.loop import CheckpointMismatch, Progress, TrainConfig, TrainingDiverged, predict, task_loss, train
from models.training.prefetch import prefetched

USERS, ITEMS = 40, 1500


def batch_of(user: Tensor, item: Tensor, label: Tensor) -> Batch:
    rows = len(user)
    zero, none = torch.zeros(rows, dtype=torch.long), torch.zeros(rows, 0, dtype=torch.long)
    history = torch.zeros(1, 1, dtype=torch.long)
    events = Events(history, history, history.float(), history, zero, zero, zero)
    return Batch(zero, user, item, none, none, none, zero, label, torch.ones(rows), torch.zeros(rows), events)


class Taste:
    """Clicks from latent tastes, in batches whose order depends on the epoch alone."""

    def __init__(self, rows: int = 320, size: int = 32, seed: int = 0, task: str = "ctr") -> None:
        rng = torch.Generator().manual_seed(9)
        tastes, traits = torch.randn(USERS, 3, generator=rng), torch.randn(ITEMS, 3, generator=rng)
        draw = torch.Generator().manual_seed(100 + seed)
        self.user = torch.randint(0, USERS, (rows,), generator=draw)
        self.item = torch.randint(0, ITEMS, (rows,), generator=draw) % 60
        liking = (tastes[self.user] * traits[self.item]).sum(1)
        chance = torch.rand(rows, generator=draw)
        self.label = (liking + 3).clamp(1, 5) if task == "rating" else (chance < torch.sigmoid(2 * liking)).float()
        self.size = size

    def __len__(self) -> int:
        return math.ceil(len(self.user) / self.size)

    def batches(self, epoch: int, start: int = 0):
        order = torch.from_numpy(np.random.default_rng(epoch).permutation(len(self.user)))
        for step in range(start, len(self)):
            rows = order[step * self.size : (step + 1) * self.size]
            yield batch_of(self.user[rows], self.item[rows], self.label[rows])


class Net(nn.Module):
    """Sparse tables, batch statistics, dropout and an auxiliary loss by chance: all that resume must carry."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.users, self.items = nn.Embedding(USERS, 8), nn.Embedding(ITEMS, 8)
        self.norm, self.drop, self.head = nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 1)
        self.mix = nn.Linear(8, 8)

    def forward(self, batch: Batch) -> Tensor:
        user, item = self.users(batch.user), self.items(batch.item)
        joined = self.drop(self.norm(torch.cat([user * self.mix(item), user], 1)))
        return self.head(joined).squeeze(-1) + (user * item).sum(1)

    def auxiliary_loss(self, batch: Batch) -> Tensor:
        chosen = torch.randint(0, len(batch), (4,))
        return self.items(batch.item[chosen]).square().mean()


CONFIG = TrainConfig(
    epochs=3, learning_rate=0.02, seed=5, checkpoint_every_steps=4, progress_every_steps=1, weight_decay=1e-3
)


def run(folder: Path | None, on_progress=None, **changes) -> tuple[Net, object]:
    net = Net()
    config = TrainConfig(**{**CONFIG.__dict__, **changes})
    result = train(
        net, Taste(), config=config, validation=Taste(128, seed=1), checkpoint_dir=folder, on_progress=on_progress
    )
    return net, result


def same_bits(first: nn.Module, second: nn.Module) -> bool:
    mine, others = first.state_dict(), second.state_dict()
    return all(torch.equal(mine[name], others[name]) for name in mine)


class Stop(Exception):
    """Ends a run from its callback."""


@pytest.mark.slow
def test_it_learns_clicks_and_ratings():
    net = Net()
    result = train(net, Taste(3000), config=TrainConfig(epochs=4, learning_rate=0.02), validation=Taste(800, seed=1))
    assert result.metric == "auc"
    assert result.best is not None
    assert result.best > 0.72
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    rating = train(
        Net(),
        Taste(3000, task="rating"),
        config=TrainConfig(epochs=4, learning_rate=0.02, task="rating"),
        validation=Taste(800, seed=1, task="rating"),
    )
    spread = float(Taste(800, seed=1, task="rating").label.std())
    assert rating.metric == "rmse"
    assert rating.best is not None
    assert rating.best < 0.9 * spread


@pytest.mark.parametrize("rule", ["lazy_adam", "rowwise_adagrad", "dense"])
@pytest.mark.slow
def test_a_run_stopped_at_any_step_continues_to_the_same_bits(rule, tmp_path):
    """30 steps, checkpoints at every fourth and at the ends of epochs: stop after each kind of step."""
    whole, expected = run(None, embedding_optimiser=rule)
    for last in (1, 4, 7, 10, 19, 20, 29):
        folder = tmp_path / f"{rule}-{last}"

        def stop(progress: Progress, last: int = last) -> None:
            if progress.step == last:
                raise Stop

        with pytest.raises(Stop):
            run(folder, stop, embedding_optimiser=rule)
        continued, result = run(folder, embedding_optimiser=rule)
        assert same_bits(whole, continued), last
        dropped = {"seconds"}
        rows = [[{k: v for k, v in row.items() if k not in dropped} for row in r.history] for r in (expected, result)]
        assert rows[0] == rows[1]
        assert result.best_epoch == expected.best_epoch


def test_a_run_stopped_at_every_checkpoint_still_ends_in_the_same_bits(tmp_path):
    whole, _ = run(None)
    for _ in range(60):
        seen = []

        def stop_after_some(progress: Progress, seen: list[int] = seen) -> None:
            seen.append(progress.step)
            if len(seen) == 5:
                raise Stop

        try:
            continued, _ = run(tmp_path, stop_after_some)
            break
        except Stop:
            continue
    assert same_bits(whole, continued)


def endless_steps(folder: str) -> None:
    """Entry of the killed process: prints each step."""
    run(Path(folder), lambda progress: print(progress.step, flush=True), epochs=15)
    print("done", flush=True)


@pytest.mark.slow
def test_a_run_killed_with_signal_9_continues_to_the_same_bits(tmp_path):
    whole, expected = run(None, epochs=15)
    code = f"import runpy; runpy.run_path({__file__!r})['endless_steps']({str(tmp_path)!r})"
    root = Path(__file__).parents[4]
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ, "PYTHONPATH": "."}
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "61":
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    assert run_state.load(tmp_path / "run.safetensors")["run"]["step"] >= 60
    continued, result = run(tmp_path, epochs=15)
    assert same_bits(whole, continued)
    assert result.steps == expected.steps


def test_a_finished_run_returns_at_once_with_its_weights(tmp_path):
    first, expected = run(tmp_path)
    steps = []
    again, result = run(tmp_path, lambda progress: steps.append(progress.step))
    assert not steps
    assert same_bits(first, again)
    assert result == expected


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(CheckpointMismatch, match="config"):
        run(tmp_path, learning_rate=0.5)
    with pytest.raises(CheckpointMismatch, match="steps per epoch"):
        train(Net(), Taste(64), config=CONFIG, checkpoint_dir=tmp_path)
    frozen = Net()
    frozen.mix.requires_grad_(False)
    with pytest.raises(CheckpointMismatch, match="trained parameters"):
        train(frozen, Taste(), config=CONFIG, checkpoint_dir=tmp_path)


def test_other_frozen_weights_than_those_trained_upon_are_refused(tmp_path):
    for seed in (1, 2):
        net = Net(seed)
        net.users.requires_grad_(False)
        if seed == 1:
            train(net, Taste(), config=CONFIG, checkpoint_dir=tmp_path)
        else:
            with pytest.raises(CheckpointMismatch, match="frozen weights"):
                train(net, Taste(), config=CONFIG, checkpoint_dir=tmp_path)


def test_a_damaged_checkpoint_says_so(tmp_path):
    run(tmp_path)
    file = tmp_path / "run.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(run_state.UnreadableState, match="not a readable"):
        run(tmp_path)


def test_frozen_parameters_and_what_belongs_to_them_keep_their_bits():
    """Decay, momentum and batch statistics included; dropout of a frozen part is off."""
    net = Net()
    for module in (net.norm, net.items):
        module.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    train(net, Taste(), config=TrainConfig(epochs=2, weight_decay=0.1))
    after = net.state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"users", "mix", "head"}
    assert not net.norm.training


def test_only_the_chosen_parameters_train():
    net = Net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    train(net, Taste(), config=TrainConfig(weight_decay=0.1), parameters=net.head.parameters())
    moved = {name for name in before if not torch.equal(before[name], net.state_dict()[name])}
    assert moved == {"head.weight", "head.bias"}


def test_validation_keeps_the_best_epoch_and_patience_ends_the_run():
    """Rows of noise: the network only memorises, so a later epoch is not better and training stops."""
    noise = Taste(96)
    noise.label = torch.randint(0, 2, (96,)).float()
    net = Net()
    result = train(
        net,
        noise,
        config=TrainConfig(epochs=50, learning_rate=0.05, patience=3),
        validation=Taste(300, seed=1),
    )
    assert len(result.history) == result.best_epoch + 3 < 50
    rows = predict(net, Taste(300, seed=1).batches(0))
    assert auc(rows["label"], rows["score"]) == pytest.approx(result.best)


@pytest.mark.slow
def test_training_never_returns_worse_weights_than_it_was_given_if_asked():
    data, held = Taste(96), Taste(400, seed=1)
    net = Net()
    train(net, Taste(4000), config=TrainConfig(epochs=4, learning_rate=0.02), validation=held)
    given = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    data.label = 1 - data.label
    result = train(net, data, config=TrainConfig(epochs=3, learning_rate=0.02, consider_start=True), validation=held)
    assert result.best_epoch == 0
    assert all(torch.equal(given[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.slow
def test_a_start_that_is_to_be_beaten_surely_stands_against_luck_and_yields_to_learning(tmp_path):
    """A step that helps a handful of held-out users by chance changes nothing; one that all of them feel does."""
    net, held = Net(), Taste(4000)
    surely = TrainConfig(epochs=2, learning_rate=1e-6, consider_start="surely")
    noise = Taste(400)
    noise.label = noise.label[torch.randperm(len(noise.label), generator=torch.Generator().manual_seed(0))]
    assert train(net, noise, config=surely, validation=held).best_epoch == 0
    learning = replace(surely, learning_rate=0.02, epochs=4)
    assert train(net, Taste(4000), config=learning, validation=held, checkpoint_dir=tmp_path).best_epoch > 0


def test_a_loss_that_is_no_number_ends_the_run_and_spoils_no_checkpoint(tmp_path):
    net = Net()

    def burst(progress: Progress) -> None:
        if progress.step == 9:
            with torch.no_grad():
                net.head.weight.fill_(float("nan"))

    with pytest.raises(TrainingDiverged, match="lower the learning rate"):
        train(net, Taste(), config=CONFIG, checkpoint_dir=tmp_path, on_progress=burst)
    saved = run_state.load(tmp_path / "run.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in saved["weights"].values())


def test_progress_grows_from_nothing_to_one():
    seen: list[Progress] = []
    run(None, seen.append)
    assert [p.fraction for p in seen] == sorted(p.fraction for p in seen)
    assert seen[-1].fraction == 1.0
    assert seen[-1].rows_per_s > 0
    assert math.isfinite(seen[-1].loss)


def test_the_loss_is_the_weighted_mean_and_a_factor_leaves_the_denominator_alone():
    batch = batch_of(torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.long), torch.tensor([1.0, 2, 3, 4]))
    batch.weight[:] = torch.tensor([1.0, 1, 2, 0])
    output = torch.zeros(4)
    assert task_loss(output, batch, "rating").item() == pytest.approx((1 + 4 + 2 * 9) / 4)
    halved = task_loss(output, batch, "rating", torch.full((4,), 0.5)).item()
    assert halved == pytest.approx((1 + 4 + 2 * 9) / 8)


def test_the_callers_chance_is_not_disturbed():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    net = Net.__new__(Net)
    state = torch.get_rng_state()
    Net.__init__(net)
    torch.set_rng_state(state)
    train(net, Taste(64), config=TrainConfig())
    assert torch.equal(torch.rand(3), expected)


def test_batches_made_ahead_change_nothing_and_their_faults_arrive():
    assert same_bits(run(None)[0], run(None, prefetch=3)[0])
    assert list(prefetched(iter(range(9)), 2)) == list(range(9))

    def breaks():
        yield 1
        raise KeyError("lost")

    stream = prefetched(breaks(), 2)
    assert next(stream) == 1
    with pytest.raises(KeyError, match="lost"):
        next(stream)
    left = prefetched(iter(range(1000)), 2)
    next(left)
    left.close()


@pytest.mark.slow
def test_bfloat16_learns_as_well_within_a_stated_bound():
    results = [
        train(
            Net(),
            Taste(4000),
            config=TrainConfig(epochs=3, learning_rate=0.02, bf16=bf16),
            validation=Taste(800, seed=1),
        )
        for bf16 in (False, True)
    ]
    assert abs(results[0].best - results[1].best) < 0.02


@pytest.mark.slow
def test_touched_row_training_is_as_good_as_dense():
    results = {
        rule: train(
            Net(),
            Taste(4000),
            config=TrainConfig(epochs=5, learning_rate=0.02, embedding_learning_rate=rate, embedding_optimiser=rule),
            validation=Taste(800, seed=1),
        ).best
        for rule, rate in (("dense", None), ("lazy_adam", None), ("rowwise_adagrad", 0.2))
    }
    assert results["lazy_adam"] > results["dense"] - 0.015
    assert results["rowwise_adagrad"] > results["dense"] - 0.04


def test_predict_keeps_order_and_mode_and_prefers_the_models_own_probability():
    net = Net()
    net.train()
    rows = predict(net, Taste().batches(0))
    assert net.training
    assert rows["score"].shape == rows["label"].shape == (320,)
    assert ((rows["score"] > 0) & (rows["score"] < 1)).all()
    first = next(Taste().batches(0))
    assert rows["user"][:32].tolist() == first.user.tolist()
    net.probability = lambda batch: torch.full((len(batch),), 0.25)
    assert set(predict(net, Taste().batches(0))["score"]) == {0.25}


def test_a_config_that_cannot_be_meant_is_refused():
    with pytest.raises(ValueError, match="positive"):
        TrainConfig(epochs=0)
    with pytest.raises(ValueError, match="negative"):
        TrainConfig(patience=-1)
    frozen = Net()
    frozen.requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter is frozen"):
        train(frozen, Taste(), config=TrainConfig())
