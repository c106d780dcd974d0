"""What the tests of backends share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deevo_ext import backends


@pytest.fixture(params=[n for n, devices in backends.DEVICES.items() if "cuda" in devices])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every backend for GPUs whose operators this installation has."""
    if (reason := backends.why_unavailable(request.param)) is not None:
        pytest.skip(reason)
    with backends.use(request.param):
        yield request.param
