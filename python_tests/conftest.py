"""What all tests share: Triton's interpreter where there is no GPU, and a cache of their own.

The marker `gpu`: skipped without a CUDA device, a failure instead when DEEVO_REQUIRE_GPU=1.
"""

from __future__ import annotations

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


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None or torch.cuda.is_available():
        return
    if os.environ.get("DEEVO_REQUIRE_GPU") == "1":
        pytest.fail("DEEVO_REQUIRE_GPU=1, but torch sees no CUDA device", pytrace=False)
    pytest.skip("torch sees no CUDA device")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):  # type: ignore[no-untyped-def]
    """With DEEVO_REQUIRE_GPU=1, a GPU test that skips for whatever other reason has failed too."""
    outcome = yield
    report = outcome.get_result()
    marks = {mark.name for mark in item.iter_markers()}
    needed = os.environ.get("DEEVO_REQUIRE_GPU") == "1" and "gpu" in marks
    if needed and "multigpu" not in marks and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"DEEVO_REQUIRE_GPU=1, but the test was skipped: {report.longrepr}"
