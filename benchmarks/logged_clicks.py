"""Impressions as they were logged, with their own clicks and non-clicks: sets of which a user has the original files.

The days of the target's log are cut as LCN cuts Taobao's: the last day is the test, the day before chooses, the six
before that teach (of a log of eight days LCN takes seven and has no day to choose by). Histories hold what came before
an impression's moment, from before the days that teach, too.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from benchmarks.public_pairs import Pair
from benchmarks.sampled_negatives import Parts, first_us
from orchestrator.data.batches import Examples

_TAOBAO = ("raw_sample.csv*", "ad_feature.csv*", "behavior_log.csv*")
LOGS: Mapping[str, Pair] = {
    "taobao-ads": Pair("taobao-ads", "taobao_ads", _TAOBAO),
    "taobao-ads-twentieth": Pair("taobao-ads", "taobao_ads", _TAOBAO, {"user_share": 0.05}),
    "kuairand": Pair("kuairand", "kuairand", ("**/log_standard_*.csv*",), {"sources": ["1"], "targets": ["0"]}),
}
"""By setting. Taobao's log of 700 million events is read whole, or that of one user in twenty."""

DAY_US = 86_400_000_000
TAUGHT_DAYS = 6


def cut(impressions: Examples, *, seed: int, people: int | None) -> Parts:
    """Split a target's impressions by its last days.

    Args:
        people: how many users to take, drawn by the seed among those with a row in any part; None for all.
    """
    age = (impressions.time_us.max() - impressions.time_us) // DAY_US
    used = age < 2 + TAUGHT_DAYS
    users = np.unique(impressions.user[used])
    if people is not None:
        users = np.random.default_rng([seed, 1]).permutation(users)[:people]
    used &= np.isin(impressions.user, users)
    train, validation, test = (impressions.take(used & days) for days in (age >= 2, age == 1, age == 0))
    return Parts(train, validation, test, first_us(impressions, used), first_us(impressions, used & (age == 0)))
