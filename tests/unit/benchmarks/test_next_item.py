"""The ranking benchmark on a small made market: nothing of the answers is given away, and what counts is learnt."""

import json

import numpy as np
import pytest
import torch

from benchmarks import next_item, ranking_features, results_page
from benchmarks.next_item import Sizes, Training, task_of
from benchmarks.ranking_features import Counts, features, others_features, weigh
from benchmarks.ranking_network import Bins, Lists, Reach, answers, batch_of, new_network
from benchmarks.ranking_queries import DAY_US, TEST, TRAIN, VALIDATION, Log, Market, ask, food_kitchen, game_video
from benchmarks.results_table import Method, Scored, Table, Task, run
from models.ranking_metrics import rank_counts, reciprocal_rank

USERS, ITEMS = 60, 40  # items of each domain
SMALL = Sizes(test=60, validation=60, training=200, test_negatives=19, validation_negatives=9, training_negatives=9)


def written(folder, seed: int = 0):
    """Food and kitchen files in their public form: a user's items all come from their half of each domain."""
    chance = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    names = {f"F{i}": [i, 0] for i in range(1, ITEMS + 1)} | {f"K{i}": [ITEMS + i, 1] for i in range(1, ITEMS + 1)}
    (folder / "map_item_50.txt").write_text(json.dumps(names))
    titles = [f"{name}\t{'red' if index % 2 else 'blue'} thing number{index % 5}" for name, (index, _) in names.items()]
    for letter in "AB":
        (folder / f"food-kitchen_titles_{letter}.tsv").write_text("\n".join(titles))
    lines = []
    for user in range(USERS):
        half = user % 2
        bought = [
            int(item) + domain * ITEMS
            for domain in (0, 1)
            for item in 1 + half + 2 * chance.choice(ITEMS // 2, 8, replace=False)
        ]
        days = np.sort(chance.integers(0, 12, len(bought))) * 86_400 + 1_400_025_600
        order = chance.permutation(bought)
        lines.append(" ".join([str(user), *(f"{item}|{day}" for item, day in zip(order, days, strict=True))]))
    (folder / "afk_50_preprocessed.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def market(tmp_path_factory) -> Market:
    return food_kitchen(written(tmp_path_factory.mktemp("food")), np.random.default_rng(0))


@pytest.fixture(scope="module")
def task(market):
    return task_of(market, 0, SMALL)


def test_each_user_is_asked_for_his_last_event_of_each_domain(market):
    log = market.log
    for user in range(USERS):
        for domain in (0, 1):
            role = log.role[(log.user == user) & (log.domain == domain)]
            assert role.tolist() == [TRAIN] * (len(role) - 2) + [VALIDATION, TEST]


def test_events_of_one_day_stand_in_drawn_order_and_keep_their_day(tmp_path):
    """Two draws differ within days only, and no two events of a user share a moment."""
    folder = written(tmp_path / "food")
    one, other = (food_kitchen(folder, np.random.default_rng(seed)).log for seed in (0, 1))
    assert (one.item != other.item).any()
    for log in (one, other):
        assert len(np.unique(log.user * 2**33 + log.time_us // 1_000_000)) == len(log)
    days = [sorted(zip(log.user, log.item, log.time_us // DAY_US, strict=True)) for log in (one, other)]
    assert days[0] == days[1]


def test_no_test_event_is_given_to_models(task, market):
    """Neither among what is known, nor in any history, and the right one stands in no fixed place."""
    given, log = task.given, market.log
    asked = {(u, i) for u, i, r in zip(log.user, log.item, log.role, strict=True) if r == TEST}
    for seen in (given.known, given.training.seen, given.validation.seen, given.asked.seen):
        assert not asked & set(zip(seen.user.tolist(), seen.item.tolist(), strict=True))
    assert len(np.unique(task.label)) > SMALL.test_negatives // 2
    right = np.take_along_axis(given.asked.candidates, task.label[:, None], 1)[:, 0]
    assert {(u, i) for u, i in zip(given.asked.user, right, strict=True)} <= asked


def test_who_chooses_teaches_nothing(task):
    """Users are apart, and what they are asked for is not among what is counted or seen."""
    given = task.given
    assert not set(given.training.user.tolist()) & set(given.validation.user.tolist())
    for queries in (given.training, given.validation):
        shown = set(zip(queries.seen.user.tolist(), queries.seen.item.tolist(), strict=True))
        assert not shown & set(zip(queries.user.tolist(), queries.candidates[:, 0].tolist(), strict=True))


def test_wrong_candidates_are_of_the_domain_and_strangers_to_the_user(task, market):
    given = task.given
    mine = {user: set(market.log.item[market.log.user == user].tolist()) for user in range(USERS)}
    right = np.take_along_axis(given.asked.candidates, task.label[:, None], 1)[:, 0]
    for user, domain, row, answer in zip(
        given.asked.user, given.asked.domain, given.asked.candidates, right, strict=True
    ):
        assert (market.domain_of[row] == domain).all()
        assert len(set(row.tolist())) == len(row)
        assert mine[user] & set(row.tolist()) == {answer}


def test_a_history_holds_what_came_before_and_nothing_else(task):
    given = task.given
    for queries in (given.training, given.validation, given.asked):
        seen = queries.seen
        for q in range(len(queries)):
            mine = np.flatnonzero((seen.user == queries.user[q]) & (seen.time_us < queries.now_us[q]))
            assert mine.tolist() == list(range(queries.start[q], queries.stop[q]))


def test_features_of_a_training_query_do_not_know_its_own_answer(market):
    """Two people who share all they have, and nobody beside them: each one's features come from the other alone."""
    log = Log(
        np.repeat([0, 1], 4), np.array([1, 2, 41, 42, 1, 3, 41, 43]), np.tile(np.arange(1, 5) * DAY_US, 2),
        np.array([0, 0, 1, 1, 0, 0, 1, 1]), np.zeros(8, np.int64),
    )  # fmt: skip
    queries = ask(market, log, log.take(np.array([1, 5])), negatives=3, random=np.random.default_rng(0), known=log)
    for seed in range(20):
        fold = np.random.default_rng(seed).integers(0, 2, 2)
        if fold[0] != fold[1]:
            break
    options = {"timed": True, "width": 2, "seed": seed}
    found = others_features(queries, log, len(market.domain_of), folds=2, **options)
    names = ranking_features.names(timed=True, titled=False)
    assert found.shape == (2, 4, len(names))
    assert (found[:, 0, names.index("together, own")] == 0).all()
    assert (found[:, 0, names.index("popularity")] == 0).all()
    leaky = features(queries, Counts.of(log, len(market.domain_of), **options))
    assert (leaky[:, 0, names.index("together, own")] > 0).all()


def test_what_was_met_lately_ends_before_the_day_of_the_query(market):
    """Events of the same day and after it are not counted."""
    times = np.array([1, 5, 5, 9]) * DAY_US + 1_000_000
    log = Log(np.arange(4), np.full(4, 7), times, np.zeros(4, np.int64), np.zeros(4, np.int64))
    about = Log(np.array([0]), np.array([7]), np.array([5 * DAY_US + 5_000_000]), np.array([0]), np.array([0]))
    queries = ask(market, log, about, negatives=3, random=np.random.default_rng(0), known=about)
    counts = Counts.of(log, len(market.domain_of), timed=True, width=2, seed=0)
    names = ranking_features.names(timed=True, titled=False)
    found = features(queries, counts)[0, 0]
    assert found[names.index("before")] == pytest.approx(np.log(2))
    assert found[names.index("popularity")] == pytest.approx(np.log(5))


def test_weighed_features_find_the_half_that_a_user_buys_from(task):
    """Far better than chance on what the made market holds, and never told by the order of candidates."""
    given = task.given
    weights = weigh(given.training_features, given.training.domain)
    placed = rank_counts(weights.score(given.asked_features, given.asked.domain), task.label)
    chance = reciprocal_rank(rank_counts(np.zeros((1, SMALL.test_negatives + 1)), np.zeros(1, int)))[0]
    assert reciprocal_rank(placed).mean() > 1.3 * chance


def test_rows_of_a_query_share_a_history_and_their_own_domain_stands_apart(task):
    given = task.given
    some = given.training.take(np.arange(6))
    nothing = np.zeros((*some.candidates.shape, 0), np.int64)
    batch = batch_of(Lists(some, np.zeros(some.candidates.shape, np.float32), nothing), Reach(lifelong=6, short=3))
    width = some.candidates.shape[1]
    assert batch.label.view(-1, width)[:, 0].eq(1).all()
    assert batch.label.sum() == len(some)
    assert batch.lifelong.item.shape[0] == len(some)
    half = ITEMS
    for row, domain in enumerate(some.domain):
        for events, inside in ((batch.short_target, domain), (batch.short_source, 1 - domain)):
            items = events.item[row][events.item[row] > 0]
            assert len(items) <= 3
            assert ((items > half).long() == inside).all()
        shown = batch.lifelong.item[row][batch.lifelong.item[row] > 0].tolist()
        assert shown == some.seen.item[some.start[row] : some.stop[row]][-6:].tolist()


def test_the_network_orders_the_first_and_the_others_keep_their_order_behind(task):
    given = task.given
    prior = np.random.default_rng(0).normal(size=given.asked.candidates.shape).astype(np.float32)
    lists = Lists(given.asked, prior, np.zeros((*prior.shape, 0), np.int64))
    ranker = new_network(given.items, (), {"architecture": "dacdr", "width": 8}, 0)
    score = answers(ranker, lists, Reach(8, 4), first=5)
    first = np.argsort(-prior, 1)[:, :5]
    behind = np.argsort(-prior, 1)[:, 5:]
    assert (np.take_along_axis(score, first, 1).min(1) > np.take_along_axis(score, behind, 1).max(1)).all()
    assert (np.diff(np.take_along_axis(score, behind, 1), axis=1) < 0).all()


def test_lists_that_are_learnt_from_hold_the_best_where_the_right_one_is_among_them(task):
    given = task.given
    prior = np.random.default_rng(0).normal(size=given.training.candidates.shape).astype(np.float32)
    lists = Lists(given.training, prior, np.zeros((*prior.shape, 0), np.int64))
    kept = lists.contested(4)
    best = np.sort(np.argsort(-prior, 1)[:, :4], 1)
    among = (best == 0).any(1)
    assert (kept.queries.candidates[:, 0] == given.training.candidates[among, 0]).all()
    assert (np.sort(kept.offset, 1) == np.sort(np.take_along_axis(prior, best, 1), 1)[among]).all()
    assert 0 < len(kept.queries) < len(lists.queries)


def test_a_ranker_with_no_level_of_the_pyramid_still_reads_short_histories(task):
    """The ablation without LAP."""
    some = task.given.training.take(np.arange(4))
    nothing = np.zeros((*some.candidates.shape, 0), np.int64)
    lists = Lists(some, np.zeros(some.candidates.shape, np.float32), nothing)
    ranker = new_network(task.given.items, (), {"architecture": "lcn", "pyramid": {"levels": ()}}, 0).eval()
    assert ranker.pyramid is None
    with torch.inference_mode():
        one, three = (ranker(batch_of(lists, Reach(lifelong=8, short=short))) for short in (1, 3))
    assert not torch.equal(one, three)
    with pytest.raises(ValueError, match="no level"):
        new_network(9, (), {"architecture": "domain_over_pyramid", "pyramid": {"levels": ()}}, 0)


def test_a_page_has_a_column_only_for_settings_that_know_the_measure(tmp_path):
    """Two sets, each with domains of its own, in one table."""
    rng = np.random.default_rng(0)

    def open_task(setting: str, seed: int) -> Task:
        return Task(None, rng.integers(0, 5, 8), np.arange(8), segments={setting: np.arange(8) < 4})

    def guess(task: Task, seed: int) -> dict[str, Scored]:
        return {"guess": Scored(rng.normal(size=(8, 5)))}

    table = Table(tmp_path)
    row = Method(("guess",), guess)
    run(table, settings=["one", "two"], seeds=[0, 1], methods=[row], open_task=open_task, kind="ranking")
    page = results_page.markdown(table, subject="guess", measures=("one/mrr", "two/mrr"))
    assert "| model | one |" in page
    assert "| model | two |" in page
    assert "one | two" not in page


def test_bins_are_codes_from_one_on():
    known = np.random.default_rng(0).normal(size=(50, 4, 3)).astype(np.float32)
    bins = Bins.of(known, 5)
    codes = bins.codes(known)
    assert codes.min() >= 1
    assert all(codes[..., feature].max() < size for feature, size in enumerate(bins.sizes))


def test_a_network_row_is_filled_once_and_says_what_validation_thought(market, tmp_path):
    """Through the results table, whose second run trains nothing."""
    how = Training(epochs=1, batch=32, lifelong=8, short=4, learnt=5, chosen_by=8, ordered=10, bins=3)
    opened = []

    def open_task(setting: str, seed: int):
        opened.append(seed)
        return task_of(market, seed, SMALL, tmp_path / f"{seed}.npz")

    rows = [
        one
        for one in next_item.methods(how, SMALL)
        if one.names[0] in (next_item.SUBJECT, "popularity", "network on features alone")
    ]
    for _ in range(2):
        table = Table(tmp_path / "table")
        run(table, settings=["food-kitchen"], seeds=[0], methods=rows, open_task=open_task, kind="ranking")
    assert opened == [0]
    result = table.result("food-kitchen", 0, next_item.SUBJECT)
    assert result is not None
    assert {"Food/mrr", "Kitchen/ndcg@10", "mrr"} <= set(result.metrics)
    assert result.detail["validation_mrr"] > 0
    next_item.write(table, tmp_path)
    assert "plain" not in (tmp_path / "next-item.md").read_text().split("## Cost")[1]


def test_every_row_has_a_name_of_its_own_and_a_config_that_tells_it_apart():
    rows: list[Method] = next_item.methods()
    assert len({row.names for row in rows}) == len(rows)
    networks = [row for row in rows if "network" in row.config]
    assert len({row.fingerprint for row in networks}) == len(networks)


def test_cold_users_are_asked_with_the_other_domain_alone(tmp_path):
    """Person 0 and 1 are shared, 0 is cold in Game; a user of Video above the bound is somebody else."""
    files = {
        "game_video": {"train": "1\t0\n1\t1\n2179\t0\n2179\t2", "valid": "0\t1", "test": "0\t2"},
        "video_game": {"train": "0\t0\n0\t1\n1\t1\n1\t0\n2179\t2", "valid": "1\t2", "test": "1\t3"},
    }
    for folder, parts in files.items():
        (tmp_path / folder).mkdir()
        for name, text in parts.items():
            (tmp_path / folder / f"{name}.txt").write_text(text)
    market = game_video(tmp_path, np.random.default_rng(0))
    assert len(np.unique(market.log.user)) == 4
    train = market.log.take(market.log.role == TRAIN)
    about = market.log.take((market.log.role == TEST) & (market.log.domain == 0))
    queries = ask(market, train, about, negatives=1, random=np.random.default_rng(0), known=market.log)
    visible = train.take(np.arange(queries.start[0], queries.stop[0]))
    assert (visible.domain == 1).all()
    assert (visible.user == about.user[0]).all()
    assert len(visible) == 2
    assert torch.from_numpy(queries.candidates).unique().numel() == 2


def test_validation_rows_of_a_cold_user_are_not_known_at_the_test():
    """They are of the users that the test asks: with them nobody were cold."""
    people, each = 12, 6
    user = np.repeat(np.arange(people), each)
    domain = np.tile([0, 0, 0, 1, 1, 1], people)
    item = np.concatenate([np.r_[1 + (u + np.arange(3)) % 20, 21 + (u + np.arange(3)) % 20] for u in range(people)])
    role = np.where((user < 4) & (domain == 0), np.tile([VALIDATION, TEST, TEST, 0, 0, 0], people), TRAIN)
    log = Log(user, item, np.ones(len(user), np.int64), domain, role)
    market = Market(log, np.r_[-1, np.zeros(20, int), np.ones(20, int)], ("Game", "Video"), timed=False, cold=True)
    given = task_of(market, 0, Sizes(30, 10, 10, 5, 5, 5)).given
    cold = given.known.take(given.known.user < 4)
    assert (cold.domain == 1).all()
    for queries in (given.training, given.validation, given.asked):
        assert not (queries.seen.domain[queries.seen.user < 4] == 0).any()
