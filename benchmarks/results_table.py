"""Every model on the same splits and seeds, one result for each, in a table that a kill cannot spoil.

A result is one model on one seed of one setting. Results are JSON lines under a folder and their test scores lie beside
them, so a run that was killed goes on where it stopped, and a new model joins without training the others again.
A model is given rows to train on, rows to choose by and bare queries; the answers to those stay in here, and each set
of scores is evaluated on them once.

    table = Table(folder)
    run(table, settings=["douban-book-to-music-20"], seeds=range(5), methods=methods, open_task=open_task)
    print(markdown(table, subject="Graft, shared + adapter"))
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from scipy import stats

from models import metrics
from models.intervals import Interval, paired_difference, seed_interval
from models.ranking_metrics import GAINS, rank_counts

SAMPLED_EVERY_S = 0.02


@dataclass(frozen=True)
class Task:
    """One seed of one setting.

    Attributes:
        given: whatever models learn from; it holds no test label.
        label, user: (N,) the answers to the test rows and whose rows they are. In the kind ``ranking`` a row is a
            query and its answer the position of the right one among its candidates, which models see shuffled.
        bounds: labels cannot lie outside, so scores are also evaluated clipped to them; None for no bounds.
        segments: (N,) bool each; the rows so named are also evaluated by themselves, as ``segment/metric``.
    """

    given: Any
    label: np.ndarray
    user: np.ndarray
    bounds: tuple[float, float] | None = None
    segments: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """A model's answers to the test rows, and what it says of itself: parameters, chosen epoch.

    ``score`` is (N,) in the rows' order, or in the kind ``ranking`` (N, candidates).
    """

    score: np.ndarray
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A model, or several rows of the table that come of one training.

    ``config`` is all that its result depends on beside the task: a result with another config is trained anew.
    """

    names: tuple[str, ...]
    fit: Callable[[Task, int], Mapping[str, Scored]]
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.config, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Result:
    """One result. ``seconds`` of processor time and ``megabytes`` (the growth of resident memory) are of training."""

    setting: str
    seed: int
    model: str
    fingerprint: str
    metrics: dict[str, float]
    rows: int
    seconds: float
    megabytes: float
    detail: dict[str, Any]


class Table:
    """Results on disk. Only whole lines count, so a process that dies while writing loses that result alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._path = self.folder / "results.jsonl"
        self._results: dict[tuple[str, int, str], Result] = {}
        whole = 0
        if self._path.is_file():
            text = self._path.read_bytes()
            whole = text.rfind(b"\n") + 1
            for line in text[:whole].splitlines():
                self._remember(Result(**json.loads(line)))
            if whole < len(text):
                os.truncate(self._path, whole)

    def results(self) -> list[Result]:
        return list(self._results.values())

    def result(self, setting: str, seed: int, model: str) -> Result | None:
        return self._results.get((setting, seed, model))

    def has(self, setting: str, seed: int, method: Method) -> bool:
        """Whether every row of the method is there, of this very config."""
        held = [self.result(setting, seed, name) for name in method.names]
        return all(result is not None and result.fingerprint == method.fingerprint for result in held)

    def add(self, result: Result, score: np.ndarray) -> None:
        """Keep a result and its test scores; one of the same place is replaced."""
        scores = self._scores_path(result.setting, result.seed, result.model)
        _write_array(scores, score)
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(result), default=float) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._remember(result)

    def keep_answers(self, setting: str, seed: int, task: Task) -> None:
        """Store what scores are evaluated on, for intervals over users."""
        parts = {"label": task.label, "user": task.user}
        parts |= {f"segment-{_plain(name)}": rows for name, rows in task.segments.items()}
        for name, array in parts.items():
            _write_array(self._folder(setting, seed) / f"answers-{name}.npy", np.asarray(array))

    def scores(self, setting: str, seed: int, model: str) -> np.ndarray:
        """What is kept of a model's answers: scores (N,), in the kind ``ranking`` rank counts (N, 2)."""
        return np.load(self._scores_path(setting, seed, model))

    def answers(self, setting: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels and users of the test rows."""
        folder = self._folder(setting, seed)
        return np.load(folder / "answers-label.npy"), np.load(folder / "answers-user.npy")

    def segment(self, setting: str, seed: int, name: str) -> np.ndarray:
        """Which test rows a segment holds, (N,) bool."""
        rows: np.ndarray = np.load(self._folder(setting, seed) / f"answers-segment-{_plain(name)}.npy")
        return rows

    def only(self, settings: Sequence[str], *, without: Sequence[str] = ()) -> Table:
        """The same results of these settings alone, perhaps without some models, to be read and not added to."""
        part = Table(self.folder)
        part._results = {
            place: result
            for place, result in part._results.items()
            if result.setting in settings and result.model not in without
        }
        return part

    def settings(self) -> list[str]:
        return list(dict.fromkeys(result.setting for result in self.results()))

    def models(self) -> list[str]:
        return list(dict.fromkeys(result.model for result in self.results()))

    def values(self, setting: str, model: str, metric: str) -> dict[int, float]:
        """A metric by seed; empty where the setting does not have it, as another set's segment."""
        found = [c for c in self.results() if c.setting == setting and c.model == model and metric in c.metrics]
        return {result.seed: result.metrics[metric] for result in sorted(found, key=lambda c: c.seed)}

    def _remember(self, result: Result) -> None:
        self._results[result.setting, result.seed, result.model] = result

    def _folder(self, setting: str, seed: int) -> Path:
        return self.folder / "scores" / setting / str(seed)

    def _scores_path(self, setting: str, seed: int, model: str) -> Path:
        return self._folder(setting, seed) / f"{_plain(model)}.npy"


def run(
    table: Table,
    *,
    settings: Sequence[str],
    seeds: Iterable[int],
    methods: Sequence[Method],
    open_task: Callable[[str, int], Task],
    kind: str = "rating",
    on_result: Callable[[Result], None] | None = None,
) -> None:
    """Fill every result that is missing, seed by seed, so that a stopped run has whole seeds to show.

    Raises:
        ValueError: an method did not answer every test row, or answered with what is no number.
    """
    for seed in seeds:
        for setting in settings:
            missing = [method for method in methods if not table.has(setting, seed, method)]
            if not missing:
                continue
            task = open_task(setting, seed)
            table.keep_answers(setting, seed, task)
            for method in missing:
                with measured() as used:
                    answers = method.fit(task, seed)
                for name in method.names:
                    result = Result(
                        setting=setting,
                        seed=seed,
                        model=name,
                        fingerprint=method.fingerprint,
                        metrics=evaluate(task, answers[name].score, kind),
                        rows=len(task.label),
                        seconds=round(used.seconds, 3),
                        megabytes=round(used.megabytes, 1),
                        detail=dict(answers[name].detail),
                    )
                    table.add(result, _kept(task, answers[name].score, kind))
                    if on_result is not None:
                        on_result(result)


def evaluate(task: Task, score: np.ndarray, kind: str) -> dict[str, float]:
    """The metrics of a kind (rating, ctr or ranking) over all rows, and over each segment as ``segment/metric``.

    Where labels have bounds the headline is clipped to them and ``raw_...`` is not.

    Raises:
        ValueError: not one finite number a test row, or a candidate of it.
    """
    score = np.asarray(score, np.float32 if kind == "ranking" else np.float64)
    ranked = kind == "ranking" and score.ndim == 2 and len(score) == len(task.label)
    if not (ranked or (kind != "ranking" and score.shape == task.label.shape)) or not np.isfinite(score).all():
        raise ValueError(f"expected {len(task.label)} finite scores, got shape {score.shape}")
    kept = rank_counts(score, task.label) if kind == "ranking" else score
    found = _metrics(task.label, kept, task.user, task.bounds, kind)
    for name, rows in task.segments.items():
        own = _metrics(task.label[rows], kept[rows], task.user[rows], task.bounds, kind)
        found |= {f"{name}/{metric}": value for metric, value in own.items()}
    return found


def _metrics(
    label: np.ndarray, kept: np.ndarray, user: np.ndarray, bounds: tuple[float, float] | None, kind: str
) -> dict[str, float]:
    if kind == "ranking":
        return {name: float(gain(kept).mean()) for name, gain in GAINS.items()} | {"rows": float(len(label))}
    raw = metrics.summary(kind, label, kept, user)  # type: ignore[arg-type]
    if bounds is None:
        return raw
    clipped = metrics.summary(kind, label, np.clip(kept, *bounds), user)  # type: ignore[arg-type]
    return clipped | {f"raw_{name}": value for name, value in raw.items() if name != "rows"}


def _kept(task: Task, score: np.ndarray, kind: str) -> np.ndarray:
    """What the table keeps of answers: rank counts of queries, which are a five hundredth of their scores."""
    return rank_counts(score, task.label) if kind == "ranking" else np.asarray(score, np.float32)


@dataclass
class Used:
    seconds: float = 0.0
    megabytes: float = 0.0


@contextmanager
def measured() -> Iterator[Used]:
    """Processor time of this process, which a busy machine does not stretch, and the growth of its resident memory."""
    process, used, done = psutil.Process(), Used(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(SAMPLED_EVERY_S):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    begun = time.process_time()
    watcher.start()
    try:
        yield used
    finally:
        done.set()
        watcher.join()
        used.seconds = time.process_time() - begun
        used.megabytes = (max(peak, process.memory_info().rss) - before) / 2**20


@dataclass(frozen=True)
class Paired:
    """subject - baseline over seeds: mean and t interval, two-sided p, and in how many seeds the subject was lower."""

    difference: Interval
    p: float
    lower: int
    seeds: int


def paired_over_seeds(table: Table, setting: str, metric: str, subject: str, baseline: str) -> Paired:
    """Paired t test on the seeds that both have."""
    ours, theirs = table.values(setting, subject, metric), table.values(setting, baseline, metric)
    both = sorted(ours.keys() & theirs.keys())
    gaps = np.array([ours[seed] - theirs[seed] for seed in both])
    p = float("nan")
    if len(gaps) > 1:
        p = float(stats.ttest_1samp(gaps, 0.0).pvalue) if np.ptp(gaps) > 1e-12 else float(gaps.mean() == 0)
    if not len(gaps):
        return Paired(Interval(float("nan"), float("nan"), float("nan")), p, 0, 0)
    return Paired(seed_interval(gaps.tolist()), p, int((gaps < 0).sum()), len(gaps))


def paired_over_users(
    table: Table,
    setting: str,
    metric: str,
    subject: str,
    baseline: str,
    *,
    bounds: tuple[float, float] | None = None,
    draws: int = 400,
) -> Interval:
    """Interval of metric(subject) - metric(baseline), each draw taking the same users again with replacement.

    Users of all seeds are drawn together, a user as often as they were a test user.

    Args:
        metric: its name, perhaps of one segment: ``auc``, ``mrr``, ``cold/auc``.
    """
    segment, _, name = metric.rpartition("/")
    low, high = bounds or (-np.inf, np.inf)
    labels: list[np.ndarray] = []
    users: list[np.ndarray] = []
    both: dict[str, list[np.ndarray]] = {subject: [], baseline: []}
    for seed in sorted(table.values(setting, subject, "rows").keys() & table.values(setting, baseline, "rows").keys()):
        label, user = table.answers(setting, seed)
        chosen = table.segment(setting, seed, segment) if segment else slice(None)
        labels.append(label[chosen])
        users.append(user[chosen])  # the same person in two seeds is drawn with both: seeds do not make people
        for model, scores in both.items():
            kept = table.scores(setting, seed, model)[chosen]
            scores.append(GAINS[name](kept) if name in GAINS else np.clip(kept, low, high))
    parts = [np.concatenate(part) for part in (labels, both[subject], both[baseline], users)]
    return paired_difference(metrics.METRICS[name], *parts, draws=draws)


def _plain(name: str) -> str:
    """A name as part of a file's name."""
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def _write_array(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(f"{path.stem}.{os.getpid()}.building.npy")
    np.save(building, array)
    building.replace(path)
