from __future__ import annotations

import pytest
from ring_world import make_dataset

from sidera.data.dataset import Dataset
from sidera.data.split import Split, leave_one_out


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    return make_dataset()


@pytest.fixture(scope="session")
def split(dataset: Dataset) -> Split:
    return leave_one_out(dataset)
