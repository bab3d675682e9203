"""CCTL's weights from influence along a path: how far a source row's label agrees with what the target's rows teach.

The influence of a source row s on a target row t is the product of their losses' gradients. Summed over all steps that
a tower takes on target rows alone (TracIn, Pruthi et al. 2020), it is what those steps did to the tower's answer on s,
since small steps move the answer along its gradient, times how s would have had it:

    sum over steps of <grad l_s, grad l_t>  ~  (y_s - p_0(s)) (f(s) - f_0(s))

f_0 is the network before any step and f the target tower, which never sees a source. So two forwards tell of a row what
thousands of gradient products would, and since no source label ever entered the tower, all source rows are fresh,
however often they are repeated or the target is passed over. Divided by the mean influence of fresh target rows it is
the row's source value: 1 for rows as good as the target's own, 0 for noise, below 0 for rows that tell the opposite.

    B  rows    K  what is shown of a row: its source, and each code within that source
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.batch import Batch
from models.cctl.companion import Companion
from models.cctl.config import Part, TransferConfig, harms
from models.cctl.information_flow import ANY_SOURCE, SOLVED, InformationFlow, Traits
from models.cctl.learners import WeightLearner
from models.training.loop import BatchSource, TrainConfig, autocast, evaluating
from models.training.optimisers import Nested, Optimisers

_HELD_OUT_OF = 5  # one target row in so many is kept from a tower that learns ahead, to see whether it holds of others
_SURE_OF_TARGET = 3.0  # t value of the fresh target rows' own influence from which the tower judges sources
_NEARLY = 0.7
_AVERAGED = 2  # passes
_FADING = 0.98
_PRECISION = 1.0  # of a value, before evidence
_TELLS = 3.5  # z value from which a code is believed to make a difference
_MOST_CODES = 128
_GROWTH = 1.1  # source values are solved for anew when their rows have grown by a tenth
_ROWS_OF_A_PART = 200  # from which it is named in the report


class TargetTower(Companion):
    """The tower that never sees a source, and the influence of its path on rows.

    It learns ahead of the model where the target's rows are given (`learn_ahead`), else beside it as they pass.
    ``unit`` is the mean influence of fresh target rows, ``certainty`` its t value.
    """

    def __init__(self, model: nn.Module, optimisers: Optimisers, config: TrainConfig, *, guarded: bool = True) -> None:
        super().__init__(model, optimisers, config)
        self.first, self.sure = copy.deepcopy(model), _SURE_OF_TARGET if guarded else 0.0
        self.seen = [0.0, 0.0, 0.0]  # of fresh target rows: count, sum and square sum of influence
        self.passes = 0

    def learn_ahead(self, target: BatchSource, passes: int) -> None:
        """Pass over the target's rows, up to the last at which influence on the rows kept out is almost the surest.

        The first passes find what is only the target's own, such as how its items are liked; what it shares with
        sources comes later, and a tower that has memorised rows does not judge sources the other way round. The tower
        becomes the mean of two such passes: chance in its path is the same for all rows, so that a single one can be
        wrong about a whole source and seem certain.
        """
        passed: list[tuple[float, dict[str, Tensor]]] = []
        fresh: list[Batch] = []
        for number in range(passes):
            for arriving in target.batches(number):
                batch = arriving.to(next(self.tower.parameters()).device)
                held = _drawn(batch)
                if number == 0 and bool(held.any()):
                    fresh.append(batch.rows(held))
                if not bool(held.all()):
                    self.tower.train()
                    self.learn(batch.rows(~held))
            if not fresh:
                return
            self._look_at_all(fresh)
            passed.append((self.certainty, {name: tensor.clone() for name, tensor in self.weights().items()}))
        self.passes = passes
        surest = max(certainty for certainty, _ in passed)
        sure = [weights for certainty, weights in passed if certainty >= min(_NEARLY * surest, surest)][-_AVERAGED:]
        self.load_weights({name: _mean([weights[name] for weights in sure]) for name in sure[0]})
        self._look_at_all(fresh)

    def _look_at_all(self, fresh: list[Batch]) -> None:
        """Note the influence of these rows, forgetting all others."""
        found = self._influence([self._answers(batch) for batch in fresh])
        self.seen = [float(len(found)), float(found.sum()), float(found.square().sum())]

    def influence(self, batch: Batch) -> Tensor:
        """Of each row, (B,): its label less what was first expected, times the tower's answer less the first one.

        Both in units of their spread and about their means, so that base rates, which differ by domain, do not count.
        """
        return self._influence([self._answers(batch)])

    def look_at(self, fresh: Batch) -> None:
        """Note the influence of target rows that the tower has not learned from yet; what is long past fades."""
        if len(fresh) < 2:
            return
        found = self.influence(fresh)
        new = (len(found), float(found.sum()), float(found.square().sum()))
        self.seen = [_FADING * old + more for old, more in zip(self.seen, new, strict=True)]

    @property
    def unit(self) -> float:
        """Mean influence of a target row, by which source values are measured; 0 while too little is known of it."""
        return self.seen[1] / self.seen[0] if self.certainty > self.sure else 0.0

    @property
    def certainty(self) -> float:
        return t_value(*self.seen)

    @torch.no_grad()
    def _answers(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        answers = []
        for model in (self.first, self.tower):
            with evaluating(model), autocast(batch.label.device, bf16=self.config.bf16):
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
    """Values of source samples by what is shown of them: a sparse regression of influence, solved as it grows.

    A sample's value is that of its source and a difference for each of its codes, there or everywhere; influence is
    value times the target tower's unit, and noise of spread 1. Before evidence a source has the value ``expected``.
    Codes make no difference until they do for certain: they enter one by one, the surest first, and each changes what
    is left for the others to tell. So the many codes of which nothing is to be said add no noise, and a source is
    judged without its bad parts.
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
        """By how much each key moves a sample's value away from what was expected, (SOLVED,)."""
        self.solved_at = self.rows
        seen = torch.nonzero(self.gram.diagonal() > 0).squeeze(1)
        value = torch.zeros(SOLVED, dtype=torch.float64)
        if not len(seen):
            return value.float()
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
        value[seen[chosen]] = moved
        return value.float()

    def evidence(self, key: int) -> tuple[float, float, int]:
        """Value of a key's rows by themselves, its t value, and how many rows there were."""
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


class PathInfluenceLearner(WeightLearner):
    """Weights follow source values: u = logit(start) + steepness x (value - expected).

    Args:
        target: rows of the targets that the tower learns from before the model's first step; None learns beside it.
        sources: rows of the sources, which are then valued at once; None values them as they come.
    """

    def __init__(
        self,
        config: TransferConfig,
        flow: InformationFlow,
        tower: TargetTower,
        *,
        target: BatchSource | None,
        sources: BatchSource | None,
    ) -> None:
        super().__init__(config, flow)
        self.tower, self.target, self.sources = tower, target, sources
        self.ahead = target is not None
        self.source_values = SourceValues(config.expected)

    def look_at(self, fresh: Batch) -> None:
        if not self.ahead:
            self.tower.look_at(fresh)

    def learn_target(self, target: Batch) -> None:
        if not self.ahead:
            self.tower.learn(target)

    def learn(self, source: Batch, traits: Traits) -> None:
        if self.sources is None and self.source_values.rows < self.config.enough_rows:
            self._enter(source, traits)
            self._solve()

    def learn_ahead(self, traits_of: Callable[[Batch], Traits], device: torch.device) -> list[Traits]:
        """Let the tower learn, and value the sources by enough of their rows. Once; what it saw of these."""
        if self.target is None or self.tower.passes:
            return []
        seen = []
        with torch.random.fork_rng(devices=[]):
            self.tower.learn_ahead(self.target, self.config.ahead_passes)
            for batch in self.sources.batches(0) if self.sources is not None else ():
                here = batch.to(device)
                seen.append(traits_of(here))
                self._enter(here, seen[-1])
                if self.source_values.rows >= self.config.enough_rows or not self.source_values.rows:
                    break
        self._solve()
        return seen

    def _enter(self, source: Batch, traits: Traits) -> None:
        if self.tower.unit <= 0:
            return
        for number in torch.unique(source.domain).tolist():
            mine = source.domain == number
            self.source_values.add(traits.rows(mine), self.tower.influence(source.rows(mine)), self.tower.unit)

    def _solve(self) -> None:
        if self.source_values.due():
            self.flow.solved.copy_(self.config.steepness * self.source_values.solve())

    def evidence(self) -> dict[int, tuple[float, float]]:
        sources = {key: name[0] for key, name in self.source_values.named.items() if name[1] == "source"}
        return {source: self.source_values.evidence(key)[:2] for key, source in sources.items()}

    def parts(self) -> tuple[Part, ...]:
        parts = []
        named = self.source_values.named
        alone = sum(group == "source" for _, group, _, _ in named.values()) == 1
        for key, (source, group, at, code) in named.items():
            value, certainty, rows = self.source_values.evidence(key)
            if group != "source" and rows >= _ROWS_OF_A_PART and not (alone and source == ANY_SOURCE):
                parts.append(Part(source, group, at, code, rows, value, certainty, harms(value, certainty)))
        return tuple(sorted(parts, key=lambda part: part.certainty))

    def certainty(self) -> float:
        return self.tower.certainty

    def state_dict(self) -> Nested:
        own = {"tower": self.tower.state_dict(), "source_values": self.source_values.state_dict()}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Nested) -> None:
        super().load_state_dict(state)
        self.tower.load_state_dict(state["tower"])
        self.source_values.load_state_dict(state["source_values"])


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
    """Whether each row is kept from the target tower, (B,) bool; the same row always is."""
    mixed = (batch.user * 8191 + batch.item) * 8191 + batch.time % 1_000_003
    return (mixed * 2_654_435_761 % 2**32 >> 16) % _HELD_OUT_OF == 0
