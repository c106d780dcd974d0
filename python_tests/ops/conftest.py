"""What the tests of operators share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deevo_ext import backends


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs tests that ask for a backend once with each that their module names as SERVING."""
    serving = getattr(metafunc.module, "SERVING", None)
    if serving is not None and "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", serving, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The backend that the operators run on."""
    with backends.use(request.param):
        yield request.param
