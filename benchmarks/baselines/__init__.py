"""Baselines of the papers' tables that no launch trains: bridges, lifelong networks, self-supervised losses.

Bridges are fitted with `fit(source, target, config=...)`, all other networks with `models.training.loop.train`. The
dicts say what there is, by the names of the papers' tables; `models.baselines` has those of the product.
"""

from collections.abc import Callable

from benchmarks.baselines.bridges import CMF, EMCDR, PTUPCDR, TMCDR
from benchmarks.baselines.factors import Bridge
from benchmarks.baselines.feature_contrast import AT4CTR, CL4CTR, SSL, PoolNCE
from benchmarks.baselines.lifelong import ETA, SDIM, TWIN, Lifelong, SIMSoft
from benchmarks.baselines.metric_bridge import SSCDR
from benchmarks.baselines.self_supervised import DSS, SAC, SQN, AuxiliaryTask, BERT4Rec, CL4SRec, CLRec

BRIDGES: dict[str, Callable[..., Bridge]] = {
    "CMF": CMF,
    "SSCDR": SSCDR,
    "EMCDR": EMCDR,
    "PTUPCDR": PTUPCDR,
    "TMCDR": TMCDR,
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
