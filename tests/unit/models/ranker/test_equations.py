"""Every equation of DACDR and LCN is found by its number, in the file that the network's table names."""

import re
from pathlib import Path

import pytest

from models.ranker import network

ROOT = Path(network.__file__).parents[2]
ROW = re.compile(r"^ +(DACDR|LCN) eqs?\. (.*?) +((?:models|benchmarks)/\S+\.py)  +\S", re.MULTILINE)


def numbers(text: str) -> list[int]:
    """The numbers of "(3)", "(1), (2)" or "(3) to (6)"."""
    found = [int(number) for number in re.findall(r"\((\d+)\)", text)]
    return list(range(found[0], found[-1] + 1)) if " to " in text else found


TABLE = [
    (paper, number, file) for paper, which, file in ROW.findall(network.__doc__ or "") for number in numbers(which)
]


def test_the_table_names_every_equation() -> None:
    assert [number for paper, number, _ in TABLE if paper == "DACDR"] == list(range(1, 9))
    assert [number for paper, number, _ in TABLE if paper == "LCN"] == list(range(3, 15))


@pytest.mark.parametrize(("paper", "number", "file"), TABLE)
def test_an_equation_is_named_where_it_is_computed(paper: str, number: int, file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(rf"{paper} eq\. \({number}\)", text), f"{file} names no {paper} eq. ({number})"
