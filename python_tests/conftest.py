"""What all tests share: Triton's interpreter where there is no GPU, and a cache of their own."""

import os
import tempfile
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # must be said before Triton's import


@pytest.fixture(scope="session", autouse=True)
def _engine_cache() -> Iterator[None]:
    """Keeps measured engines out of the user's cache, and the user's out of the tests."""
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("DEEVO_CACHE_DIR")
        os.environ["DEEVO_CACHE_DIR"] = folder
        yield
        if before is None:
            del os.environ["DEEVO_CACHE_DIR"]
        else:
            os.environ["DEEVO_CACHE_DIR"] = before
