"""Weights of wide features in closed form: right where there is something to learn, and silent where there is not."""

import numpy as np

from models.layers.wide import RATING_FEATURES
from orchestrator.training.wide_fit import PENALTIES, solve, solve_clicks


def some_features(people: int, rows_each: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Wide features (N, RATING_FEATURES) that say all users are known, and whose user each row is of."""
    chance = np.random.default_rng(seed)
    features = chance.normal(size=(people * rows_each, RATING_FEATURES))
    features[:, 0] = 1.0
    return features, np.repeat(np.arange(people), rows_each)


def test_a_linear_truth_is_found():
    """With many users the weights of the features that tell come out, the constant with them."""
    features, user = some_features(400, 20, 0)
    target = 0.3 + 0.7 * features[:, 1] - 0.2 * features[:, 2] + np.random.default_rng(1).normal(0, 0.1, len(features))
    weight = solve(features, target, user, seed=0)
    np.testing.assert_allclose(weight[:3], [0.3, 0.7, -0.2], atol=0.01)
    assert np.abs(weight[3:]).max() < 0.02


def test_facts_that_tell_nothing_of_other_users_are_left_out():
    """Noise that is each user's own is seen through, since whole users are held out."""
    features, user = some_features(40, 30, 2)
    features[:, 5] = np.random.default_rng(3).normal(size=40)[user]
    target = np.random.default_rng(4).normal(size=40)[user]
    own = solve(features, target - target.mean(), user, seed=0, firm=PENALTIES)
    assert np.abs(features @ own).mean() < 0.15


def test_users_without_history_teach_nothing_and_few_users_too():
    """Rows that say nothing is seen are left out; with a handful of users the answer is nothing at all."""
    features, user = some_features(400, 5, 5)
    target = features[:, 1].copy()
    features[::2], target[::2] = 0.0, 100.0
    assert abs(solve(features, target, user, seed=0)[1] - 1) < 0.02
    assert not solve(features[user < 5], target[user < 5], user[user < 5], seed=0).any()


def test_the_same_rows_give_the_same_weights():
    """A run that starts again stands on the same weights."""
    features, user = some_features(50, 5, 6)
    target = features[:, 1] * 0.5
    assert np.array_equal(solve(features, target, user, seed=3), solve(features, target, user, seed=3))


def test_a_logistic_truth_is_found_beside_logits_that_are_there():
    """What the offset already says is not learnt again."""
    features, user = some_features(600, 30, 6)
    features = features[:, :4]
    chance = np.random.default_rng(7)
    offset = chance.normal(size=len(features))
    truth = offset + 0.2 + 0.9 * features[:, 1] - 0.4 * features[:, 3]
    label = (chance.random(len(features)) < 1 / (1 + np.exp(-truth))).astype(np.float32)
    weight = solve_clicks(features, offset, label, user, seed=0)
    np.testing.assert_allclose(weight, [0.2, 0.9, 0.0, -0.4], atol=0.06)


def test_a_domains_own_weights_of_clicks_are_nothing_where_nothing_is_its_own():
    """Held-out users choose to add nothing to what the shared weights say."""
    features, user = some_features(60, 10, 8)
    chance = np.random.default_rng(9)
    expected = features[:, 1]
    label = (chance.random(len(features)) < 1 / (1 + np.exp(-expected))).astype(np.float32)
    own = solve_clicks(features, expected, label, user, seed=0, penalties=PENALTIES)
    assert np.abs(features @ own).mean() < 0.1
