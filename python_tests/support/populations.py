"""Populations of the tiny networks, and what their tests compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from torch import Tensor, nn

from deevo_ext.errors import DeevoError
from deevo_ext.population.population import Population
from support.networks import ConvNet, MaskedNet, TiedNet, members

POLICIES = ["evolve", "inherit", "recalibrate"]
FACTORIES = [ConvNet, TiedNet, MaskedNet]
State = dict[str, Tensor]


def frozen_of(factory: type[nn.Module]) -> list[str]:
    return ["mask"] if factory is MaskedNet else []


def build(factory: type[nn.Module] = ConvNet, count: int = 3, **kwargs: Any) -> Population:
    kwargs.setdefault("frozen", frozen_of(factory))
    return Population.from_state_dicts(factory(), members(factory, count), **kwargs)


def assert_equal(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert actual[name].shape == tensor.shape, name
        assert actual[name].numpy().tobytes() == tensor.numpy().tobytes(), name


def changed(state: Mapping[str, Tensor], **changes: Any) -> State:
    """A copy with tensors replaced, or dropped where None; `__` in a keyword means a dot."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return {n: t.clone() for n, t in ({**state, **changes}).items() if t is not None}


def refused(match: str, *states: State, factory: type[nn.Module] = ConvNet, **kwargs: Any) -> None:
    kwargs.setdefault("frozen", frozen_of(factory))
    with pytest.raises(DeevoError, match=match):
        Population.from_state_dicts(factory(), states, **kwargs)
