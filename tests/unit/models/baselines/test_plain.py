"""The baselines with no network, against sums done by hand and against maintained libraries."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import Ridge

from models.baselines.plain import (
    BiasedFactors,
    CoOccurrence,
    ImplicitFactors,
    ItemMean,
    ItemUserBias,
    MappedSourceBias,
    Popularity,
    Rows,
    TrainMean,
)

USER = np.array([0, 0, 1, 1, 2])
ITEM = np.array([0, 1, 0, 2, 1])
LABEL = np.array([5.0, 3.0, 4.0, 1.0, 2.0])


def every_baseline():
    return [TrainMean(), ItemMean(), ItemUserBias(), MappedSourceBias(), Popularity(), CoOccurrence(), BiasedFactors()]


def random_rows(seed=0, users=40, items=30, rows=400):
    generator = np.random.default_rng(seed)
    user, item = generator.integers(0, users, rows), generator.integers(0, items, rows)
    taste, quality = generator.normal(0, 0.7, users), generator.normal(0, 0.5, items)
    return user, item, 3.5 + taste[user] + quality[item] + generator.normal(0, 0.3, rows), taste


def test_the_train_mean_is_the_mean():
    assert TrainMean().fit(USER, ITEM, LABEL).predict(USER, ITEM).tolist() == [3.0] * 5


def test_the_item_mean_is_drawn_toward_the_train_mean_by_its_smoothing():
    fitted = ItemMean(smoothing=2).fit(USER, ITEM, LABEL)
    # item 0: (5 + 4 + 2 rows of 3) / 4; item 2: (1 + 6) / 3; item 9 was never seen
    assert fitted.predict(np.zeros(3, int), np.array([0, 2, 9])) == pytest.approx([3.75, 7 / 3, 3.0])


def test_item_and_user_bias_equal_a_ridge_regression_on_one_hot_columns():
    user, item, label, _ = random_rows()
    fitted = ItemUserBias(item_ridge=3.0, user_ridge=3.0, sweeps=500, tolerance=1e-12).fit(user, item, label)
    one_hot = sparse.csr_matrix(
        (np.ones(2 * len(user)), (np.tile(np.arange(len(user)), 2), np.concatenate([user, 40 + item]))),
        shape=(len(user), 70),
    )
    ridge = Ridge(alpha=3.0, fit_intercept=False, solver="cholesky").fit(one_hot.toarray(), label - label.mean())
    assert fitted.predict(user, item) == pytest.approx(label.mean() + ridge.predict(one_hot.toarray()), abs=1e-8)


def test_the_mapped_bias_recovers_a_line_between_the_domains_and_never_reads_cold_users():
    user, item, label, taste = random_rows(rows=4000)
    source = Rows.of(user, item, label)
    target_label = 3.0 + 0.5 * taste[user]
    warm = user < 20
    fitted = MappedSourceBias(smoothing=0, source_ridge=0.01).fit(user[warm], item[warm], target_label[warm], source)
    assert fitted.slope == pytest.approx(0.5, abs=0.05)
    cold = np.arange(20, 40)
    predicted = fitted.predict(cold, np.full(20, 9))
    assert np.corrcoef(predicted, taste[20:])[0, 1] > 0.98
    assert fitted.predict(np.array([999]), np.array([9])) == pytest.approx(ItemMean(0).fit(
        user[warm], item[warm], target_label[warm]
    ).predict(np.array([0]), np.array([9])))  # fmt: skip


def test_popularity_counts_positive_rows_only():
    fitted = Popularity(positive_above=2.5).fit(USER, ITEM, LABEL)
    assert fitted.predict(np.zeros(4, int), np.array([0, 1, 2, 3])).tolist() == [2.0, 1.0, 0.0, 0.0]


def test_co_occurrence_counts_users_who_liked_both():
    # users 0 and 1 liked source item 0 and target item 1; user 2 liked source item 1 and target item 0; user 3 is cold
    target = np.array([0, 1, 2]), np.array([1, 1, 0]), np.ones(3)
    source = Rows.of(np.array([0, 1, 2, 3]), np.array([0, 0, 1, 0]), np.ones(4))
    plain = CoOccurrence(normalised=False).fit(*target, source)
    assert plain.predict(np.array([3, 3]), np.array([0, 1])) == pytest.approx([0.0, 2.0], abs=1e-6)
    cosine = CoOccurrence().fit(*target, source)
    assert cosine.predict(np.array([3]), np.array([1])) == pytest.approx(2 / np.sqrt(3 * 2), abs=1e-6)


def test_co_occurrence_orders_users_without_history_by_popularity():
    fitted = CoOccurrence().fit(np.array([0, 1, 2]), np.array([1, 1, 0]), np.ones(3))
    score = fitted.predict(np.array([50, 50, 50]), np.array([0, 1, 70]))
    assert score[1] > score[0] > score[2]


def test_an_item_does_not_co_occur_with_itself():
    fitted = CoOccurrence(normalised=False).fit(np.array([0, 1]), np.array([0, 1]), np.ones(2))
    assert fitted.predict(np.array([0]), np.array([0])) == pytest.approx([0.0], abs=1e-6)


def test_biased_factors_without_width_are_the_biases():
    user, item, label, _ = random_rows()
    factors = BiasedFactors(width=0, ridge=4.0, sweeps=300).fit(user, item, label)
    biases = ItemUserBias(4.0, 4.0, sweeps=300).fit(user, item, label)
    assert factors.predict(user, item) == pytest.approx(biases.predict(user, item), abs=1e-6)


def test_each_half_step_of_biased_factors_is_the_ridge_regression_of_one_item():
    user, item, label, _ = random_rows()
    fitted = BiasedFactors(width=3, ridge=2.0, sweeps=5).fit(user, item, label)
    mine = item == 7  # items are solved last, so they are exact given the users
    columns = np.hstack([np.ones((mine.sum(), 1)), fitted.user_factors[user[mine]]])
    wanted = label[mine] - label.mean() - fitted.user_bias[user[mine]]
    ridge = Ridge(alpha=2.0, fit_intercept=False).fit(columns, wanted)
    assert np.r_[fitted.item_bias[7], fitted.item_factors[7]] == pytest.approx(ridge.coef_, abs=1e-6)


def test_pooled_factors_know_a_cold_user_by_the_source():
    user, item, label, taste = random_rows(rows=4000)
    warm = user < 30
    fitted = BiasedFactors(width=2, ridge=1.0, pool_source=True).fit(
        user[warm], item[warm], label[warm], Rows.of(user, item, label)
    )
    assert np.corrcoef(fitted.predict(np.arange(30, 40), np.full(10, 3)), taste[30:])[0, 1] > 0.95


def test_factors_of_likes_rank_a_cold_users_own_group_first():
    pytest.importorskip("implicit")
    group = np.arange(40) % 2
    user = np.repeat(np.arange(40), 3)
    source = Rows.of(user, np.tile(np.arange(3), 40) + 3 * group[user], np.ones(120))
    warm = np.arange(30)
    fitted = ImplicitFactors(width=4).fit(warm, group[warm], np.ones(30), source)
    cold = np.arange(30, 40)
    right, wrong = fitted.predict(cold, group[cold]), fitted.predict(cold, 1 - group[cold])
    assert (right > wrong).all()
    assert fitted.predict(np.array([900]), np.array([0])).tolist() == [0.0]


def test_permuted_rows_give_permuted_predictions_and_batch_mates_do_not_matter():
    user, item, label, _ = random_rows()
    source = Rows.of(user, item, label)
    order = np.random.default_rng(1).permutation(len(user))
    for baseline in every_baseline():
        fitted = baseline.fit(user, item, label, source)
        whole = fitted.predict(user, item)
        assert fitted.predict(user[order], item[order]) == pytest.approx(whole[order]), baseline
        assert fitted.predict(user[:1], item[:1]) == pytest.approx(whole[:1]), baseline


def test_unseen_users_and_items_get_a_finite_answer_from_every_baseline():
    user, item, label, _ = random_rows()
    for baseline in every_baseline():
        fitted = baseline.fit(user, item, label, Rows.of(user, item, label))
        assert np.isfinite(fitted.predict(np.array([10_000, 0]), np.array([0, 10_000]))).all(), baseline


@pytest.mark.parametrize(
    ("user", "item", "label", "words"),
    [([0], [0, 1], [1.0], "length"), ([], [], [], "no rows"), ([-1], [0], [1.0], "negative")],
)
def test_impossible_rows_are_refused(user, item, label, words):
    with pytest.raises(ValueError, match=words):
        Rows.of(np.array(user, int), np.array(item, int), np.array(label))


def test_the_mapped_bias_without_a_source_is_refused():
    with pytest.raises(ValueError, match="source"):
        MappedSourceBias().fit(USER, ITEM, LABEL)


@pytest.mark.real_data
def test_on_douban_the_mapped_bias_beats_the_item_mean_for_cold_users(public_data):
    """Half of the shared users of books and music are cold in music: the known plain numbers come out again."""
    book, music = (np.loadtxt(public_data / "douban" / f"{name}_ratings.dat") for name in ("book", "music"))
    users, items = np.unique(np.r_[book[:, 0], music[:, 0]]), np.unique(music[:, 1])
    source = Rows.of(np.searchsorted(users, book[:, 0]), np.unique(book[:, 1], return_inverse=True)[1], book[:, 2])
    user, item, label = np.searchsorted(users, music[:, 0]), np.searchsorted(items, music[:, 1]), music[:, 2]
    shared = np.intersect1d(source.user, user)
    errors = []
    for seed in range(3):
        cold = np.isin(user, np.random.default_rng(seed).permutation(shared)[: len(shared) // 2])
        for baseline in (TrainMean(), ItemMean(), MappedSourceBias()):
            fitted = baseline.fit(user[~cold], item[~cold], label[~cold], source)
            errors.append(np.abs(fitted.predict(user[cold], item[cold]).clip(1, 5) - label[cold]).mean())
    train_mean, item_mean, mapped = np.mean(np.reshape(errors, (3, 3)), axis=0)
    assert mapped < item_mean - 0.01 < train_mean - 0.04
    assert mapped == pytest.approx(0.673, abs=0.01)
