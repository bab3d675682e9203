"""Loaders of public data sets in their original formats: files in, a spec and canonical rows out.

Every loader is called ``load(path, out_dir, **options)`` with the folder of the original files, writes under
``out_dir/<domain>/`` and returns ``PreparedDomain`` values, sources first. Which domain lends and which borrows is an
option (``sources``, ``targets``) wherever the set allows a choice. Files are refused with their name and line.
"""

from collections.abc import Callable

from domains.public import (
    ali_ccp,
    amazon,
    amazon_heterogeneous,
    douban,
    ebnerd,
    food_kitchen,
    game_video,
    kuairand,
    kuairand_sequences,
    movielens,
    taobao_ads,
    taobao_behaviour,
)
from domains.public.reading import PreparedDomain

LOADERS: dict[str, Callable[..., list[PreparedDomain]]] = {
    "ali-ccp": ali_ccp.load,
    "amazon": amazon.load,
    "amazon-heterogeneous": amazon_heterogeneous.load,
    "douban": douban.load,
    "ebnerd": ebnerd.load,
    "food-kitchen": food_kitchen.load,
    "game-video": game_video.load,
    "kuairand": kuairand.load,
    "kuairand-sequences": kuairand_sequences.load,
    "movielens": movielens.load,
    "taobao-ads": taobao_ads.load,
    "taobao-behaviour": taobao_behaviour.load,
}
"""Loader by the name that the command line takes."""

__all__ = ["LOADERS", "PreparedDomain"]
