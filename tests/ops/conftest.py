"""What every op test shares: the device it runs on, and memory that is poisoned before an op fills it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# With it, the products of matrices in mamba_inner_fn repeat themselves bit for bit on a GPU, and torch knows.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Only the references use ops without a deterministic version, which `poisoned_memory` makes torch report.
    references = pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(references)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fills fresh tensors with NaN, so that an element no kernel writes fails its comparison."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def needs_sm_90() -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("only GPUs of compute capability 9.0 have this kernel")
