"""Every baseline that the papers name, behind the same batch and the same training loop.

Plain baselines are fitted with `fit(user, item, label, source=...)`, bridges with `fit(source, target, config=...)`,
and all other networks with `models.training.loop.train`. The dicts say what there is, by the names of the papers'
tables.
"""

from collections.abc import Callable

from models.baselines.bridges import CMF, EMCDR, PTUPCDR, TMCDR
from models.baselines.factors import Bridge
from models.baselines.feature_contrast import AT4CTR, CL4CTR, SSL, PoolNCE
from models.baselines.inputs import Baseline
from models.baselines.lifelong import ETA, SDIM, TWIN, Lifelong, SIMSoft
from models.baselines.metric_bridge import SSCDR
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
from models.baselines.self_supervised import DSS, SAC, SQN, AuxiliaryTask, BERT4Rec, CL4SRec, CLRec

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
BRIDGES: dict[str, Callable[..., Bridge]] = {
    "CMF": CMF,
    "SSCDR": SSCDR,
    "EMCDR": EMCDR,
    "PTUPCDR": PTUPCDR,
    "TMCDR": TMCDR,
}
MULTI_DOMAIN: dict[str, Callable[..., Baseline]] = {
    "DNN-single": DNNSingle,
    "DNN-multi": DNNMulti,
    "Shared-Bottom": SharedBottom,
    "MMoE": MMoE,
    "PLE": PLE,
    "STAR": STAR,
}
LIFELONG: dict[str, Callable[..., Lifelong]] = {
    "SIM Soft": SIMSoft,
    "ETA": ETA,
    "SDIM": SDIM,
    "TWIN": TWIN,
}
# Losses for `WithAuxiliary(backbone, task)`; all are built of the width, SSL also of the items' feature codes.
SELF_SUPERVISED: dict[str, Callable[..., AuxiliaryTask]] = {
    "DSS": DSS,
    "BERT4Rec": BERT4Rec,
    "SQN": SQN,
    "SAC": SAC,
    "SSL": SSL,
    "CLRec": CLRec,
    "AT4CTR": AT4CTR,
    "CL4CTR": CL4CTR,
    "CL4SRec": CL4SRec,
    "NCE(target pool, source pool)": PoolNCE,
}
