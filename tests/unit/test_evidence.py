"""The plain facts that a score starts from: the item's mean and the user's own leaning."""

from dataclasses import replace

import torch

from models.batch import Events
from models.evidence import SHRINKAGE, as_score, history_evidence


def some_events() -> Events:
    return Events(
        item=torch.tensor([[1, 2, 3, 0], [2, 2, 9, 1]]),
        action=torch.zeros(2, 4).long(),
        value=torch.tensor([[5.0, 1.0, 4.0, 0.0], [3.0, 4.0, 2.0, 1.0]]),
        time=torch.arange(4).repeat(2, 1),
        row=torch.tensor([0, 0, 1]),
        start=torch.tensor([0, 1, 0]),
        stop=torch.tensor([3, 1, 2]),
    )


MEANS = torch.tensor([3.0, 4.0, 2.0, 3.5])


def test_evidence_is_the_shrunken_mean_residual_of_the_visible_events():
    """Row 0 saw 5 - 4, 1 - 2 and 4 - 3.5; row 1 saw nothing; row 2 saw 3 - 2 and 4 - 2."""
    evidence = history_evidence(some_events(), MEANS)
    torch.testing.assert_close(evidence[:, 0], torch.tensor([0.5 / (3 + SHRINKAGE), 0.0, 3.0 / (2 + SHRINKAGE)]))
    assert evidence[1].tolist() == [0.0, 0.0, 0.0]


def test_what_a_row_may_not_see_never_changes_its_evidence():
    """Padding, the future and the value of hidden events have no part in it."""
    events = some_events()
    hidden = events.value.clone()
    hidden[0, 3], hidden[1, 2:] = 1e6, -1e6
    assert torch.equal(history_evidence(events, MEANS), history_evidence(replace(events, value=hidden), MEANS))


def test_an_unknown_item_is_compared_with_the_overall_mean():
    """Items beyond the table are read as row 0."""
    events = replace(some_events(), start=torch.tensor([0, 0, 2]), stop=torch.tensor([0, 0, 3]))
    assert history_evidence(events, MEANS)[2, 0] == torch.tensor((2.0 - 3.0) / (1 + SHRINKAGE))


def test_a_mean_click_rate_becomes_its_logit_and_a_mean_rating_stays():
    """The prior stands in the unit of the network's output."""
    torch.testing.assert_close(as_score(torch.tensor([0.5, 0.25]), "ctr").sigmoid(), torch.tensor([0.5, 0.25]))
    assert as_score(torch.tensor([3.5]), "rating").item() == 3.5
