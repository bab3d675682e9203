"""Speed comparisons and reproductions of the papers' tables; each prints one table and writes JSON.

``CATALOGUE`` and ``SETS`` are what ``graft bench`` lists: it finds this package at run time, by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PublicSet:
    """Files of a public data set: a folder under ``--data``, what lies in it, and where a user gets it."""

    files: str
    origin: str


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: the module of this package that runs it, what it measures, and the sets that it reads.

    ``simulated`` ones have settings that make their own data, too.
    """

    module: str
    measures: str
    sets: tuple[str, ...] = ()
    simulated: bool = False


SETS: Mapping[str, PublicSet] = {
    "douban": PublicSet("book_ratings.dat, music_ratings.dat", "the Data folder of the GA-DTCDR repository"),
    "amazon_movie_tv": PublicSet(
        "user_item.dat, item_category.dat, item_brand.dat", "Amazon in the HIN collection for recommendation"
    ),
    "amazon": PublicSet(
        "reviews_Movies_and_TV_5.json.gz, reviews_CDs_and_Vinyl_5.json.gz, reviews_Books_5.json.gz: two are enough",
        "Amazon product data of 2014, 5-core, J. McAuley's pages at UC San Diego",
    ),
    "food_kitchen": PublicSet("afk_50_preprocessed.txt, map_item_50.txt", "the repository of ABXI"),
    "game_video": PublicSet("game_video/ and video_game/, each {train,valid,test}.txt", "the repository of CDRIB"),
    "kuairand_sequences": PublicSet("sequences.npz", "AutoCDSR's cut of KuaiRand-1K (original: Zenodo 10439422)"),
    "movielens": PublicSet("ml-1m/{ratings,movies,users}.dat", "MovieLens-1M, GroupLens"),
    "ali_ccp": PublicSet(
        "sample_skeleton_train.csv, common_features_train.csv, with those of test or without",
        "Ali-CCP, Tianchi data set 408",
    ),
    "kuairand": PublicSet("log_standard_*.csv, with the features' files or without", "KuaiRand, Zenodo 10439422"),
    "taobao_ads": PublicSet(
        "raw_sample.csv, ad_feature.csv, behavior_log.csv and user_profile.csv",
        "Ali_Display_Ad_Click, Tianchi data set 56",
    ),
}
"""By folder."""

CATALOGUE: Mapping[str, Benchmark] = {
    "cold-start-ratings": Benchmark(
        "cold_start_ratings", "ratings of cold users beside bridges and biases", ("douban", "amazon_movie_tv", "amazon")
    ),
    "lifelong-ctr": Benchmark(
        "lifelong_ctr",
        "clicks predicted from 800 events, beside lifelong and self-supervised baselines",
        ("kuairand_sequences", "kuairand", "taobao_ads"),
    ),
    "multi-domain-ctr": Benchmark(
        "multi_domain_ctr",
        "clicks in two domains, cold and warm, and a new domain",
        ("douban", "amazon_movie_tv", "amazon", "movielens", "kuairand", "ali_ccp"),
    ),
    "next-item": Benchmark("next_item", "next items and cold users' items, ranked", ("food_kitchen", "game_video")),
    "source-reweighting": Benchmark(
        "source_reweighting",
        "transfer with and without weights, where sources are spoilt",
        ("amazon_movie_tv",),
        simulated=True,
    ),
    "training": Benchmark("training", "speed of training beside other libraries and the machine, goals P1 to P8"),
    "serving": Benchmark("serving", "a rank request: queue, features, model, HTTP"),
    "ingest": Benchmark("ingest", "rows a second and memory of taking data in"),
    "simulator": Benchmark("simulator", "how fast the simulated marketplace is written"),
}
"""By the name that the command line takes."""
