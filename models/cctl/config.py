"""What CCTL is told and what it tells: how to transfer from sources, and the verdict on each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

_SETTLED_SHARE = 0.25  # of the recorded windows: the last ones, on which verdicts rest
_SURE = 3.0  # t value from which a verdict counts as certain
_HARM = -0.1  # source value below which rows count as telling the opposite


@dataclass(frozen=True)
class TransferConfig:
    """How to transfer.

    Attributes:
        targets: domain slots that sources are weighed for; every other slot is a source.
        mode: how the flow network learns; ``uniform`` keeps all weights at 1, to compare with.
        share: lambda_s, the weight of source losses beside target losses.
        largest: w_max; weights lie in (0, w_max).
        sync_every: k, steps between settings of the companion to the mixed tower; also the recorded window.
        warm_up_steps: steps with all weights 1 before the flow network learns; none once a target tower has learned
            ahead.
        update_every: source batches between two updates of the flow network.
        start: weight of a source of which nothing is known; it is the default to which a lack of evidence leads.
        expected: value of a source of which nothing is known, where a target row's own is 1; it has weight ``start``.
        steepness: how far a value of 1 more moves a weight, in logits.
        ahead_passes: passes over the target that a target tower may take ahead of the model, at most.
        enough_rows: source rows after which no more are valued, since nothing more is to be learned of sources.
        companion: keep the pure tower. Without it there is no gain to read, and a second set of weights is saved.
        control: keep a third tower that never sees a source and is never set back.
        show_scores: the flow network sees both towers' scores of a sample, at the price of two forwards.
        overfit_gap: guard; largest (fresh loss - loss on rows just trained on) / fresh loss.
        borrow_above: a source whose settled mean weight is lower is not worth borrowing from.
    """

    targets: tuple[int, ...]
    mode: Literal["influence", "reinforce", "uniform"] = "influence"
    share: float = 1.0
    largest: float = 1.0
    sync_every: int = 100
    warm_up_steps: int = 1000
    update_every: int = 1
    learning_rate: float = 0.01
    start: float = 0.9
    expected: float = 0.2
    steepness: float = 16.0
    ahead_passes: int = 8
    enough_rows: int = 50_000
    companion: bool = True
    control: bool = False
    show_scores: bool = False
    overfit_gap: float = 0.2
    guarded: bool = True
    borrow_above: float = 0.35
    entropy: float = 0.01
    policy_mean: float = 0.5

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("name at least one target slot")
        if self.sync_every < 1 or self.update_every < 1 or self.warm_up_steps < 0:
            raise ValueError("sync_every and update_every must be positive, warm_up_steps not negative")
        if not 0 < self.start < 1 or self.steepness <= 0:
            raise ValueError("start must lie between 0 and 1, and steepness be positive")
        if self.mode == "reinforce" and not self.companion:
            raise ValueError("the reinforce mode is rewarded by the companion's loss: it needs the companion")


@dataclass(frozen=True)
class Verdict:
    """Whether to borrow from a source.

    ``influence`` is its rows' mean value, where a target row's is 1; ``certainty`` is that mean's t value. A source of
    which nothing is certain is borrowed from, since nothing speaks against it, but `word` does not call it useful.
    """

    source: int
    weight: float
    influence: float
    certainty: float
    borrow: bool
    reason: str

    @property
    def word(self) -> str:
        """borrow, do not borrow or not known."""
        if not self.borrow:
            return "do not borrow"
        return "borrow" if self.certainty > _SURE else "not known"


@dataclass(frozen=True)
class Part:
    """The rows of a source that share a code: of a feed, a placement, a kind of user.

    ``source`` is -1 for the rows of all sources; ``group`` is item, user or context, ``field`` the place among its
    fields, ``code`` the code there. ``value`` and ``certainty`` are of these rows by themselves; ``harms`` says that
    they tell the opposite, for certain.
    """

    source: int
    group: str
    field: int
    code: int
    rows: int
    value: float
    certainty: float
    harms: bool


@dataclass(frozen=True)
class TransferReport:
    """What was learned of the sources.

    ``weights`` has a row per window and source: step, source, rows, mean, p10, p50, p90. ``windows`` has a row per
    window: step, gain, control_gain, fresh_loss, seen_loss, frozen. Both are plain values, ready to be plotted.
    ``parts`` are those of sources of which enough is known, the most harmful first. ``target`` says how surely the
    target's own rows agree (t value), by which sources are judged; None in modes that judge none.
    """

    weights: list[dict[str, Any]]
    windows: list[dict[str, Any]]
    verdicts: dict[int, Verdict]
    parts: tuple[Part, ...] = ()
    target: float | None = None


def verdicts(
    config: TransferConfig,
    weight_rows: list[dict[str, Any]],
    window_rows: list[dict[str, Any]],
    evidence: Mapping[int, tuple[float, float]],
) -> dict[int, Verdict]:
    """A verdict on each source from its settled weights and its influence with its t value."""
    steps = sorted({row["step"] for row in weight_rows})
    settled = set(steps[-max(1, int(len(steps) * _SETTLED_SHARE)) :])
    alone = _t_value([row["control_gain"] for row in window_rows if row["step"] in settled])
    found = {}
    for source in sorted({row["source"] for row in weight_rows}):
        rows = [row for row in weight_rows if row["source"] == source]
        late = [row for row in rows if row["step"] in settled] or rows[-1:]
        weight = sum(row["mean"] * row["rows"] for row in late) / sum(row["rows"] for row in late)
        influence, certainty = evidence.get(source, (0.0, 0.0))
        harmful = harms(influence, certainty)
        better_alone = alone < -_SURE and certainty < _SURE
        borrow = weight >= config.borrow_above * config.largest and not harmful and not better_alone
        reason = (
            "its samples help the target"
            if borrow and certainty > _SURE
            else "nothing about it is certain: its samples neither help nor harm the target beyond chance"
            if borrow
            else f"its samples push the target the wrong way (t = {certainty:.1f})"
            if harmful
            else "the target does better alone, as its control tower shows, and nothing speaks for this source"
            if better_alone
            else f"its weight settled at {weight:.2f}: it brings nothing that others do not"
        )
        found[source] = Verdict(source, weight, influence, certainty, borrow, reason)
    return found


def harms(influence: float, certainty: float) -> bool:
    """Whether rows tell the opposite for certain; chance in a target tower's path asks for more than a t value."""
    return certainty < -_SURE and influence < _HARM


def _t_value(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    if len(known) < 3:
        return 0.0
    mean = sum(known) / len(known)
    spread = (sum((value - mean) ** 2 for value in known) / (len(known) - 1)) ** 0.5
    return mean / max(spread / len(known) ** 0.5, 1e-12)
