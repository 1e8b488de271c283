"""What every op test shares: the device it runs on, and memory that is poisoned before an op fills it."""

import warnings
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fills fresh tensors with NaN, so that an element no kernel writes fails its comparison."""
    with warnings.catch_warnings():
        # Only the references use ops that have no deterministic version; the package's own have no other.
        warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
        torch.use_deterministic_algorithms(True, warn_only=True)
        yield
        torch.use_deterministic_algorithms(False)
