"""What all tests share: Triton's interpreter where there is no GPU, a cache, workers, threads.

The marker `gpu`: skipped without a CUDA device, a failure instead when DEEVO_REQUIRE_GPU=1.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # must be said before Triton's import
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))  # of all, one a core


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Returns how many workers `-n auto` starts: one a core, and few enough for the memory."""
    return min(8, len(os.sched_getaffinity(0)))


def pytest_configure(config: pytest.Config) -> None:
    """Gives all processes of a run one compiled module of support.cuda_on_host."""
    if "DEEVO_CUDA_ON_HOST" not in os.environ:  # workers find it there
        folder = tempfile.TemporaryDirectory()
        config.add_cleanup(folder.cleanup)
        config.add_cleanup(lambda: os.environ.pop("DEEVO_CUDA_ON_HOST"))
        name = f"deevo_cuda_on_host{EXTENSION_SUFFIXES[0]}"
        os.environ["DEEVO_CUDA_ON_HOST"] = os.path.join(folder.name, name)


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


@pytest.fixture
def restored_threads() -> Iterator[None]:
    """Gives torch, after a test, the number of threads that it had before."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


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
