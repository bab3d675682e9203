"""LCN's pyramid against a textbook that projects every event, and its choices."""

import math

import pytest
import torch
from torch import Tensor

from models.layers.embeddings import EventContext
from models.layers.pyramid import Pyramid, PyramidConfig, _best, _threshold
from models.layers.shared_history import History
from orchestrator.training.fit import pyramid_of
from orchestrator.training.recipe import Recipe

CHUNKS, CELLS, LENGTH, WIDTH = 2, 3, 20, 8


class Case:
    """One pyramid with a history of which each row sees its own part."""

    def __init__(self, config: PyramidConfig, *, visible: float = 0.7, repeats: bool = False) -> None:
        torch.manual_seed(2)
        self.pyramid = Pyramid(config, WIDTH).double()
        context = EventContext(3, WIDTH).double()
        codes = context.codes(
            torch.randint(0, 3, (CHUNKS, LENGTH)),
            torch.rand(CHUNKS, LENGTH).double() * 5,
            torch.randint(0, 10**9, (CHUNKS, LENGTH)),
            torch.randint(10**9, 10**13, (CHUNKS, CELLS)),
        )
        items = torch.randn(CHUNKS, LENGTH, WIDTH, dtype=torch.float64)
        if repeats:
            items = items[:, torch.arange(LENGTH) % 3].clone()
        self.items = items.requires_grad_()
        mask = torch.rand(CHUNKS, CELLS, LENGTH) < visible
        self.history = History(self.items, mask, codes, context.weight)
        self.context = context.vectors(codes)
        self.candidate = torch.randn(CHUNKS, CELLS, WIDTH, dtype=torch.float64)

    def row(self, chunk: int, cell: int) -> tuple[Tensor, Tensor, Tensor]:
        """Candidate, item vectors and context vectors of the visible events of one row."""
        mask = self.history.mask[chunk, cell]
        return self.candidate[chunk, cell], self.items[chunk][mask], self.context[chunk, cell][mask]


def held(scores: Tensor, norm: str) -> Tensor:
    if norm == "softmax":
        return scores.softmax(-1)
    return scores / len(scores) if norm == "1/n_valid" else scores


def textbook(pyramid: Pyramid, candidate: Tensor, items: Tensor, context: Tensor) -> Tensor:
    """Equations 7 to 13 for one row, every chosen event projected."""
    config = pyramid.config
    answers = []
    raw = items @ candidate
    if "csa" in config.levels:
        answers.append(held(raw, config.norm) @ items)
    chosen = torch.arange(len(raw))
    both = torch.cat([items, context], -1)
    if pyramid.msa is not None:
        chosen = raw.topk(min(config.k1, len(raw))).indices
        raw = (candidate @ pyramid.msa.query) @ (both[chosen] @ pyramid.msa.key).T / math.sqrt(WIDTH)
        answers.append(held(raw, config.norm) @ (both[chosen] @ pyramid.msa.value))
    if pyramid.fsa is not None:
        chosen = chosen[raw.topk(min(config.k2, len(raw))).indices]
        size = WIDTH // config.heads
        query = (candidate @ pyramid.fsa.query).view(config.heads, size)
        key = (both[chosen] @ pyramid.fsa.key).view(-1, config.heads, size)
        value = (both[chosen] @ pyramid.fsa.value).view(-1, config.heads, size)
        share = (torch.einsum("hf,khf->hk", query, key) / math.sqrt(size)).softmax(-1)
        weighted = share.T[..., None] * value  # [K, H, F]
        if config.reading == "A":
            answers.append(pyramid.fsa.feed_forward(weighted.sum(0).flatten()))
        else:
            answers.append(pyramid.fsa.feed_forward(weighted.flatten(1)).mean(0))
    return torch.cat(answers)


@pytest.mark.parametrize("norm", ["none", "1/n_valid", "softmax"])
@pytest.mark.parametrize("reading", ["A", "B"])
@pytest.mark.parametrize("levels", [("csa", "msa", "fsa"), ("csa", "fsa"), ("csa", "msa"), ("csa",), ("fsa",)])
def test_the_pyramid_equals_the_textbook(norm: str, reading: str, levels: tuple[str, ...]) -> None:
    """Each reading, norm and ablation, to 1e-8 in float64."""
    config = PyramidConfig(k1=8, k2=4, heads=2, norm=norm, reading=reading, levels=levels)  # type: ignore[arg-type]
    case = Case(config)
    view = case.pyramid(case.history, case.candidate)
    assert view.shape == (CHUNKS, CELLS, len(levels) * WIDTH)
    for chunk in range(CHUNKS):
        for cell in range(CELLS):
            expected = textbook(case.pyramid, *case.row(chunk, cell))
            torch.testing.assert_close(view[chunk, cell], expected, atol=1e-8, rtol=1e-8)


def test_tiling_the_query_of_reading_a_changes_nothing() -> None:
    """Equation 13's mean over K2 equal rows is the row itself, so reading A needs no K2."""
    case = Case(PyramidConfig(k1=8, k2=4, heads=2))
    row = case.pyramid(case.history, case.candidate)
    assert torch.equal(row, torch.stack([row] * 4).mean(0))


def test_the_top_never_holds_padding() -> None:
    """Every product with a visible event is negative, so a padding of zeros would outrank them all."""
    case = Case(PyramidConfig(k1=6, k2=3, heads=2), visible=0.5)
    with torch.no_grad():
        visible = case.history.mask.any(1)
        case.items.copy_(torch.where(visible[..., None], -case.items.abs(), torch.zeros(())))
        case.candidate = case.candidate.abs()
    selection = case.pyramid.read(case.history, case.candidate)[1]
    chosen = selection.mask(LENGTH)
    assert not (chosen & ~case.history.mask).any()
    assert (chosen.sum(-1) == case.history.mask.sum(-1).clamp(max=3)).all()


def test_a_row_with_no_events_has_a_finite_answer_and_gradient() -> None:
    """All padding: nothing is selected, nothing is undefined."""
    case = Case(PyramidConfig(k1=6, k2=3, heads=2), visible=-1.0)
    view, selection = case.pyramid.read(case.history, case.candidate)
    view.sum().backward()
    assert torch.isfinite(view).all()
    assert not selection.real.any()
    assert case.items.grad is not None
    assert (case.items.grad == 0).all()


@pytest.mark.parametrize("level", ["csa", "msa", "fsa"])
def test_gradients_reach_each_level(level: str) -> None:
    """Each third of the answer moves the events that its level reads, and its own weights."""
    case = Case(PyramidConfig(k1=8, k2=4, heads=2))
    place = ("csa", "msa", "fsa").index(level)
    view, selection = case.pyramid.read(case.history, case.candidate)
    view[..., place * WIDTH : (place + 1) * WIDTH].square().sum().backward()
    assert case.items.grad is not None
    reached = (case.items.grad.abs().sum(-1) > 0).sum()
    read_by_level = {"csa": case.history.mask.any(1), "fsa": selection.mask(LENGTH).any(1)}.get(level)
    assert reached > 0
    if read_by_level is not None:
        assert reached == read_by_level.sum()
    own = {"csa": None, "msa": case.pyramid.msa, "fsa": case.pyramid.fsa}[level]
    if own is not None:
        assert all(p.grad is not None and (p.grad != 0).any() for p in own.parameters())


@pytest.mark.parametrize("levels", [("csa", "msa", "fsa"), ("csa", "msa")])
def test_the_order_of_events_does_not_matter_even_where_items_repeat(levels: tuple[str, ...]) -> None:
    """CSA cannot tell apart an item's repeats; all that tie with the last go on, so no order decides."""
    case = Case(PyramidConfig(k1=5, k2=3, heads=2, levels=levels), repeats=True)  # type: ignore[arg-type]
    order = torch.randperm(LENGTH)
    shuffled = History(
        case.items[:, order],
        case.history.mask[..., order],
        tuple(code[..., order] for code in case.history.codes),
        case.history.table,
    )
    torch.testing.assert_close(
        case.pyramid(case.history, case.candidate), case.pyramid(shuffled, case.candidate), atol=1e-10, rtol=1e-10
    )


def test_consistency_is_one_where_the_levels_agree() -> None:
    """FSA with MSA's own scores hands on exactly its top; rows with too few events are marked."""
    config = PyramidConfig(k1=LENGTH, k2=4, heads=1)
    case = Case(config)
    assert case.pyramid.msa is not None
    assert case.pyramid.fsa is not None
    with torch.no_grad():
        case.pyramid.fsa.query.copy_(case.pyramid.msa.query)
        case.pyramid.fsa.key.copy_(case.pyramid.msa.key)
    share, counts = case.pyramid.consistency(case.history, case.candidate, top=4)
    assert (share == 1).all()
    assert torch.equal(counts, case.history.mask.sum(-1) > 4)
    other = Case(PyramidConfig(k1=6, k2=4, heads=2))
    assert other.pyramid.consistency(other.history, other.candidate, top=4)[0].mean() < 1
    with pytest.raises(ValueError, match="FSA"):
        Case(config.without("fsa")).pyramid.consistency(case.history, case.candidate)


def test_the_papers_pyramids_have_names() -> None:
    """LCN-200-50 and LCN-500-100; nonsense is refused."""
    assert (PyramidConfig.named("LCN-200-50").k1, PyramidConfig.named("LCN-200-50").k2) == (200, 50)
    assert (PyramidConfig.named("lcn-500-100").k1, PyramidConfig.named("lcn-500-100").k2) == (500, 100)
    with pytest.raises(ValueError, match="LCN-<K1>-<K2>"):
        PyramidConfig.named("SIM-50")
    with pytest.raises(ValueError, match="k2 <= k1"):
        PyramidConfig.named("LCN-50-200")


@pytest.mark.parametrize("count", [1, 7, 40])
def test_the_threshold_is_the_last_of_the_best(count: int) -> None:
    """As by a full sort, in either precision; where fewer are visible, it hides none of them."""
    scores = torch.randn(3, 2, 40) * 100
    scores[0, 0, 10:] = -torch.inf
    for kind in (torch.float32, torch.float64):
        exact = scores.to(kind).sort(-1, descending=True).values[..., count - 1, None]
        found = _threshold(scores.to(kind), count)
        visible = exact > -torch.inf
        assert torch.equal(found[visible], exact[visible])
        assert (found[~visible] < scores[scores > -torch.inf].min()).all()


def test_a_recipe_without_a_pyramid_leaves_nothing_to_select_from() -> None:
    """Said when the recipe is written, before anything starts."""
    assert Recipe(architecture="dacdr+lcn", pyramid="none").pyramid == "none"
    with pytest.raises(ValueError, match=r"architecture=dacdr\+lcn"):
        Recipe(architecture="domain_over_pyramid", pyramid="none")


def test_a_pyramid_stands_by_itself_where_it_has_something_to_leave_out() -> None:
    """Beside cross-attention only over long histories; always where nothing else reads them."""
    assert not pyramid_of(Recipe(architecture="dacdr+lcn", lifelong=200)).levels
    assert pyramid_of(Recipe(architecture="dacdr+lcn", lifelong=201)).levels
    assert pyramid_of(Recipe(architecture="lcn", lifelong=50)) == PyramidConfig.named("LCN-200-50")
    assert pyramid_of(Recipe(pyramid="LCN-500-100")).k1 == 500
    assert not pyramid_of(Recipe(pyramid="none", lifelong=800)).levels


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_the_best_are_chosen_among_ties_and_where_few_are_seen(kind: torch.dtype) -> None:
    """As many as asked for, none worse than one left out, and no hidden event counts as real."""
    torch.manual_seed(4)
    scores = torch.randint(0, 6, (2, 3, 30)).to(kind)  # ties everywhere
    scores[0] = torch.randn(3, 30)
    mask = torch.rand(2, 3, 30) < torch.tensor([0.9, 0.5, 0.1])[:, None]
    chosen = _best(scores, mask, 8)
    assert torch.equal(chosen.real.sum(-1), mask.sum(-1).clamp(max=8))
    assert all(len(set(row.tolist())) == 8 for row in chosen.position.flatten(0, 1))
    taken = chosen.mask(30)
    assert not (taken & ~mask).any()
    least = torch.where(taken, scores, torch.inf).amin(-1)
    left = torch.where(mask & ~taken, scores, -torch.inf).amax(-1)
    assert (least >= left).all()
