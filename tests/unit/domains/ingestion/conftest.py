"""A desk of its own for each test."""

import pytest

from tests.unit.domains.ingestion.fakes import Desk


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)
