from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(autouse=True, scope="module")
def one_blas_thread() -> Iterator[None]:
    """As `write_phantom` does: threads of small products only wait for each other on a busy machine."""
    with threadpool_limits(1):
        yield
