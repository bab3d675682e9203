"""Does a source row's label agree with what the target's own rows teach? CCTL's influence, read off a whole path.

The influence of a source row s on a target row t is the product of their losses' gradients. Summed over all steps that
a tower takes on target rows alone, it is what those steps did to the tower's answer on s (small steps move the answer
along its gradient), times how s would have had it:

    sum over steps of <grad l_s, grad l_t>  ~  (y_s - p_0(s)) (f(s) - f_0(s))

f_0 is the network before any step and f the target-only tower, a tower that never sees a source. So two forwards tell
of a row what thousands of gradient products would, and since no source label ever entered the target-only tower, they
are all fresh, however often the rows are repeated or the target is passed over. Divided by the same number of fresh
target rows it is a source's worth: 1 for rows as good as the target's own, 0 for noise, below 0 for rows that tell the
opposite.

    B  rows    K  what is shown of a row: its source, and each code within that source
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from models.batch import Batch
from models.cctl.information_flow import SOLVED, Traits
from models.training.loop import BatchSource, TrainConfig, autocast, evaluating, objective
from models.training.optimisers import Nested, Optimisers

HELD_OUT_OF = 5
"""One target row in so many is kept from a target-only tower that learns ahead, to see whether what it learns is true
of others."""
SURE_OF_TARGET = 3.0  # t value of the fresh target rows' own influence from which it judges sources
_NEARLY = 0.7
_AVERAGED = 2  # passes
_FADING = 0.98
_PRECISION = 1.0  # of worth, before evidence
_TELLS = 3.5  # z value from which a code is believed to make a difference
_MOST_CODES = 128
_GROWTH = 1.1  # the source_values is solved anew when it has grown by a tenth


class Companion:
    """A tower of the same form as the model, trained on target rows alone."""

    def __init__(self, model: nn.Module, optimisers: Optimisers, config: TrainConfig) -> None:
        self.tower = copy.deepcopy(model)
        self.optimisers, self.config = optimisers.like(self.tower), config

    def learn(self, target: Batch) -> None:
        self.optimisers.zero_grad()
        objective(self.tower, target, self.config)[1].backward()
        if self.config.clip:
            self.optimisers.clip(self.config.clip)
        self.optimisers.step()

    @torch.no_grad()
    def become(self, model: nn.Module, optimisers: Optimisers) -> None:
        """Take the model's weights, buffers and optimiser moments."""
        theirs = dict(model.named_parameters())
        for name, own in self.optimisers.named.items():
            own.copy_(theirs[name])
        buffers = dict(model.named_buffers())
        for name, buffer in self.tower.named_buffers():
            buffer.copy_(buffers[name])
        self.optimisers.load_state_dict(optimisers.state_dict())

    def weights(self) -> dict[str, Tensor]:
        floating = {n: b for n, b in self.tower.named_buffers() if b.is_floating_point() or b.numel() == 1}
        return {**self.optimisers.named, **floating}

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        own = {**dict(self.tower.named_buffers()), **self.optimisers.named}
        for name, value in weights.items():
            own[name].copy_(value)

    def state_dict(self) -> Nested:
        return {"weights": self.weights(), "optimisers": self.optimisers.state_dict()}

    def load_state_dict(self, state: Nested) -> None:
        self.load_weights(state["weights"])
        self.optimisers.load_state_dict(state["optimisers"])


class TargetTower(Companion):
    """The tower that never sees a source, and how far its answers agree with labels.

    It learns ahead of the model where the target's rows are given (`learn_ahead`), else beside it as they pass.
    ``unit`` is the mean influence of fresh target rows, ``certainty`` its t value.
    """

    def __init__(
        self, model: nn.Module, optimisers: Optimisers, config: TrainConfig, *, sure: float = SURE_OF_TARGET
    ) -> None:
        super().__init__(model, optimisers, config)
        self.first, self.sure = copy.deepcopy(model), sure
        self.seen = [0.0, 0.0, 0.0]  # of fresh target rows: count, sum and square sum of influence
        self.passes = 0

    def learn_ahead(self, target: BatchSource, passes: int) -> None:
        """Pass over the target's rows, up to the last passes at which those kept out agreed almost the surest.

        The first passes find what is only the target's own, such as how its items are liked; what it shares with
        sources comes later, and knowing rows by heart does not turn a target-only tower's judgement of sources around.
        The target_tower
        becomes the mean of two such passes: chance in its path is the same for all rows, so that a single one can be
        wrong about a whole source and seem certain.
        """
        kept: list[tuple[float, dict[str, Tensor]]] = []
        fresh: list[Batch] = []
        for number in range(passes):
            for batch in target.batches(number):
                batch = batch.to(next(self.tower.parameters()).device)
                held = _drawn(batch)
                if number == 0 and bool(held.any()):
                    fresh.append(batch.rows(held))
                if not bool(held.all()):
                    self.tower.train()
                    self.learn(batch.rows(~held))
            if not fresh:
                return
            self._look_at_all(fresh)
            kept.append((self.certainty, {name: tensor.clone() for name, tensor in self.weights().items()}))
        self.passes = passes
        surest = max(certainty for certainty, _ in kept)
        sure = [weights for certainty, weights in kept if certainty >= min(_NEARLY * surest, surest)][-_AVERAGED:]
        self.load_weights({name: _mean([weights[name] for weights in sure]) for name in sure[0]})
        self._look_at_all(fresh)

    def _look_at_all(self, fresh: list[Batch]) -> None:
        """Note how these rows agree, forgetting all others."""
        found = self._influence([self._answers(batch) for batch in fresh])
        self.seen = [float(len(found)), float(found.sum()), float(found.square().sum())]

    def influence(self, batch: Batch) -> Tensor:
        """Of each row, (B,): how its label differs from what was first expected, times how the target-only tower's
        answer does.

        Both in units of their spread and about their means, so that base rates, which differ by domain, do not count.
        """
        return self._influence([self._answers(batch)])

    def look_at(self, fresh: Batch) -> None:
        """Note how target rows agree that the target-only tower has not learned from yet; what is long past fades."""
        if len(fresh) < 2:
            return
        found = self.influence(fresh)
        new = (len(found), float(found.sum()), float(found.square().sum()))
        self.seen = [_FADING * old + more for old, more in zip(self.seen, new, strict=True)]

    @property
    def unit(self) -> float:
        """What a target row brings: the measure of a source's worth; 0 while too little of the target is known."""
        return self.seen[1] / self.seen[0] if self.certainty > self.sure else 0.0

    @property
    def certainty(self) -> float:
        return t_value(*self.seen)

    @torch.no_grad()
    def _answers(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        answers = []
        for model in (self.first, self.tower):
            with evaluating(model), autocast(batch.label.device, self.config.bf16):
                answers.append(model(batch).float())
        return answers[0], answers[1], batch.label

    def _influence(self, parts: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        first, now, label = (torch.cat(column) for column in zip(*parts, strict=True))
        expected = first if self.config.task == "rating" else torch.sigmoid(first)
        return _standard(label - expected) * _standard(now - first)

    def state_dict(self) -> Nested:
        return {**super().state_dict(), "seen": list(self.seen), "passes": self.passes}

    def load_state_dict(self, state: Nested) -> None:
        super().load_state_dict(state)
        self.seen, self.passes = list(state["seen"]), state["passes"]


class SourceValues:
    """Worth of source samples by what is shown of them: a sparse regression of influence, solved as it grows.

    A sample's worth is that of its source and a difference for each of its codes, there or everywhere; influence is
    worth times the target-only tower's unit, and noise of spread 1. Before evidence a source is worth ``expected``.
    Codes make no
    difference until they do for certain: they enter one by one, the surest first, and each changes what is left for the
    others to tell. So the many codes of which nothing is to be said add no noise, and a source is judged without its
    bad parts.
    """

    def __init__(self, expected: float) -> None:
        self.expected = expected
        self.gram = torch.zeros(SOLVED, SOLVED, dtype=torch.float64)
        self.cross = torch.zeros(SOLVED, dtype=torch.float64)
        self.sums = torch.zeros(SOLVED, 4, dtype=torch.float64)  # of each key: rows, influence, its square, units
        self.solved_at = 0.0
        self.rows = 0.0
        self.named: dict[int, tuple[int, str, int, int]] = {}  # key: source, group of fields, field, code

    def add(self, traits: Traits, influence: Tensor, unit: float) -> None:
        """Take in what is known of rows, while fresh target rows bring ``unit``."""
        keys = traits.keys().cpu()
        found = influence.double().cpu()
        pairs = (keys[:, :, None] * SOLVED + keys[:, None, :]).flatten()
        self.gram.view(-1).index_add_(0, pairs, torch.full((len(pairs),), unit**2, dtype=torch.float64))
        per_key = torch.stack([torch.ones_like(found), found, found.square(), torch.full_like(found, unit)], 1)
        self.sums.index_add_(0, keys.flatten(), per_key.repeat_interleave(keys.shape[1], 0))
        self.cross.index_add_(0, keys.flatten(), (unit * found).repeat_interleave(keys.shape[1]))
        self.rows += len(found)
        for key, name in traits.names().items():
            self.named.setdefault(key, name)

    def due(self) -> bool:
        """Whether enough came in to solve it anew."""
        return self.rows > self.solved_at * _GROWTH

    def solve(self) -> Tensor:
        """By how much each key moves a sample's worth away from what was expected, (SOLVED,)."""
        self.solved_at = self.rows
        seen = torch.nonzero(self.gram.diagonal() > 0).squeeze(1)
        worth = torch.zeros(SOLVED, dtype=torch.float64)
        if not len(seen):
            return worth.float()
        chosen = [place for place, key in enumerate(seen.tolist()) if self.named[key][1] == "source"]
        usual = torch.zeros(len(seen), dtype=torch.float64)
        usual[chosen] = self.expected
        gram = self.gram[seen][:, seen]
        left = self.cross[seen] - gram @ usual
        while True:
            own = gram[chosen][:, chosen] + _PRECISION * torch.eye(len(chosen), dtype=torch.float64)
            moved = torch.linalg.solve(own, left[chosen])
            # How much the rows of a code still differ from what is believed of them, in standard errors.
            z = (left - gram[:, chosen] @ moved).abs() / gram.diagonal().sqrt()
            z[chosen] = 0.0
            surest = int(z.argmax())
            if float(z[surest]) < _TELLS or len(chosen) >= _MOST_CODES:
                break
            chosen.append(surest)
        worth[seen[chosen]] = moved
        return worth.float()

    def evidence(self, key: int) -> tuple[float, float, int]:
        """Worth of a key's rows by themselves, its t value, and how many rows there were."""
        rows, total, squares, units = self.sums[key].tolist()
        if rows < 2 or units <= 0:
            return 0.0, 0.0, int(rows)
        return total / units, t_value(rows, total, squares), int(rows)

    def state_dict(self) -> Nested:
        named = {str(key): list(name) for key, name in self.named.items()}
        tensors = {"gram": self.gram, "cross": self.cross, "sums": self.sums}
        return {**tensors, "solved_at": self.solved_at, "rows": self.rows, "named": named}

    def load_state_dict(self, state: Nested) -> None:
        self.gram, self.cross, self.sums = (state[name].cpu() for name in ("gram", "cross", "sums"))
        self.solved_at, self.rows = state["solved_at"], state["rows"]
        self.named = {int(key): (int(n[0]), str(n[1]), int(n[2]), int(n[3])) for key, n in state["named"].items()}


def t_value(count: float, total: float, squares: float) -> float:
    """Of a mean against zero."""
    if count < 2:
        return 0.0
    mean = total / count
    return mean / (max(squares / count - mean**2, 1e-12) / count) ** 0.5


def _standard(values: Tensor) -> Tensor:
    centred = values - values.mean()
    return centred / centred.square().mean().sqrt().clamp(min=1e-8)


def _mean(tensors: list[Tensor]) -> Tensor:
    """Of equal shapes; what is no floating number, such as a count, is taken from the last."""
    return torch.stack(tensors).mean(0) if tensors[0].is_floating_point() else tensors[-1]


def _drawn(batch: Batch) -> Tensor:
    """Whether each row is kept from the target-only tower, (B,) bool; the same row always is."""
    mixed = (batch.user * 8191 + batch.item) * 8191 + batch.time % 1_000_003
    return (mixed * 2_654_435_761 % 2**32 >> 16) % HELD_OUT_OF == 0
