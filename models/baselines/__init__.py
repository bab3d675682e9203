"""The baselines that a launch can be compared with, behind the same batch and the same training loop.

Plain baselines are fitted with `fit(user, item, label, source=...)`, networks with `models.training.loop.train`. The
dicts say what there is, by the names of the papers' tables; `benchmarks.baselines` has those that only tables need.
"""

from collections.abc import Callable

from models.baselines.inputs import Baseline
from models.baselines.multi_domain import PLE, STAR, DNNMulti, DNNSingle, MMoE, SharedBottom
from models.baselines.plain import (
    BiasedFactors,
    CoOccurrence,
    ImplicitFactors,
    ItemMean,
    ItemUserBias,
    MappedSourceBias,
    PlainBaseline,
    Popularity,
    TrainMean,
)

PLAIN: dict[str, Callable[..., PlainBaseline]] = {
    "train mean": TrainMean,
    "item mean": ItemMean,
    "item + user bias": ItemUserBias,
    "mapped source bias": MappedSourceBias,
    "popularity": Popularity,
    "co-occurrence": CoOccurrence,
    "biased MF": BiasedFactors,
    "implicit MF": ImplicitFactors,
}
MULTI_DOMAIN: dict[str, Callable[..., Baseline]] = {
    "DNN-single": DNNSingle,
    "DNN-multi": DNNMulti,
    "Shared-Bottom": SharedBottom,
    "MMoE": MMoE,
    "PLE": PLE,
    "STAR": STAR,
}
