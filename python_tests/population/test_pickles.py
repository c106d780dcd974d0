"""Pickled objects beside the weights: stand-ins, NumPy's values, and nothing that runs."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import enum
import functools
import os
import pathlib
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deevo_ext.errors import DeevoError
from deevo_ext.population.checkpoint_file import read_wrapped
from deevo_ext.population.checkpoints import unwrap
from deevo_ext.population.pickles import StandIn
from deevo_ext.population.population import Population
from support.networks import ConvNet, members
from support.populations import assert_equal

STATES = members(ConvNet, 2)
EXPECTED = Population.from_state_dicts(ConvNet(), STATES)


@dataclasses.dataclass
class Config:
    lr: float = 0.1
    where: pathlib.Path = pathlib.Path("runs")


@dataclasses.dataclass(slots=True)
class Slots:
    lr: float = 0.1


class Phase(enum.Enum):
    TRAIN = 1


class AttributeDict(dict[str, Any]):
    """As Lightning keeps hyper-parameters."""


class Bag(list[int]):
    """Filled as lists are, by a name that does not tell."""


class Runs:
    """Would make a file if it were made again as pickle makes it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


class Evaluates(Runs):
    def __reduce__(self) -> Any:
        return eval, (f"__import__('os').mkdir({self.path!r})",)


@pytest.mark.parametrize(
    "extra",
    [
        argparse.Namespace(lr=0.1, out=pathlib.Path("runs")),
        pathlib.Path("runs"),
        pathlib.PureWindowsPath("runs"),
        Config(),
        Slots(),
        Phase.TRAIN,
        AttributeDict(lr=0.1),
        collections.defaultdict(list, a=[1]),
        collections.Counter("aab"),
        collections.deque([1, 2], 3),
        datetime.datetime(2025, 1, 1),
        re.compile("a"),
        functools.partial(print, 1),
        np.random.default_rng(0),
        np.float64(71.3),
        np.int32(3),
        np.zeros((2, 3), np.float16),
        np.array(["a", None], object),
        {torch.float16, torch.device("cpu")},
        range(3),
        complex(1, 2),
        nn.Linear(2, 2),
    ],
    ids=lambda extra: type(extra).__name__,
)
def test_what_scripts_keep_beside_the_weights(tmp_path: Path, extra: Any) -> None:
    for i, state in enumerate(STATES):
        torch.save({"epoch": i, "extra": extra, "model": state}, tmp_path / f"{i}.pth")
    population = Population.from_checkpoints(ConvNet(), tmp_path)
    assert torch.equal(population.rows, EXPECTED.rows)
    held = read_wrapped(tmp_path / "0.pth")["extra"]
    if isinstance(extra, argparse.Namespace):
        assert held.lr == 0.1  # class maps may be there
    elif isinstance(extra, (np.generic, np.ndarray)):
        assert type(held) is type(extra) and np.array_equal(held, extra)
    elif isinstance(extra, (Config, Phase)):
        assert isinstance(held, StandIn)
        assert held.kind == f"{type(extra).__module__}.{type(extra).__qualname__}"


def test_the_format_before_zip_has_the_usual_ones(tmp_path: Path) -> None:
    extra = {
        "args": argparse.Namespace(lr=0.1),
        "best": np.float64(1),
        "out": pathlib.PosixPath("x"),
        "log": collections.defaultdict(list),
    }
    path = tmp_path / "old.pth"
    torch.save({"model": STATES[0], **extra}, path, _use_new_zipfile_serialization=False)
    assert_equal(unwrap(read_wrapped(path), None, path)[0], STATES[0])
    torch.save({"model": STATES[0], "c": Config()}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(DeevoError, match=r"old\.pth: holds pickled objects.*Config"):
        read_wrapped(path)


def test_weights_as_numpy_arrays(tmp_path: Path) -> None:
    for i, state in enumerate(STATES):
        torch.save({name: t.numpy() for name, t in state.items()}, tmp_path / f"{i}.pth")
    assert_equal(Population.from_checkpoints(ConvNet(), tmp_path).state_dict(0), STATES[0])


@pytest.mark.parametrize("kind", [Runs, Evaluates])
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_runs(tmp_path: Path, kind: type[Runs], zipped: bool) -> None:
    mark = tmp_path / "ran"
    path = tmp_path / "bad.pth"
    content = {"model": STATES[0], "extra": kind(str(mark))}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    try:
        state, _ = unwrap(read_wrapped(path), None, path)
    except DeevoError as error:
        assert "pickled objects" in str(error) or "cannot be read" in str(error)
    else:
        assert_equal(state, STATES[0])
    assert not mark.exists()
    pickle.loads(pickle.dumps(kind(str(mark))))  # the trap itself works
    assert mark.exists()


def test_pickled_models_are_named_and_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "one.pth"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(DeevoError, match=r"pickled torch.nn.modules.linear.Linear: .*state_dict"):
        unwrap(read_wrapped(path), None, path)
    torch.save({"model": nn.Linear(2, 2), "epoch": 1}, path)
    with pytest.raises(DeevoError, match=r"'model' \(torch.nn.modules.linear.Linear\)"):
        unwrap(read_wrapped(path), None, path)
    torch.save({"model": STATES[0], "bag": Bag([1, 2])}, path)
    with pytest.raises(
        DeevoError, match=r"holds pickled objects.*got <class '.*test_pickles.Bag'>"
    ):
        read_wrapped(path)
    torch.save({**STATES[0], "head": Config()}, path)
    with pytest.raises(DeevoError, match=r"beside 15 tensors 'head' is a .*Config"):
        unwrap(read_wrapped(path), None, path)


def test_what_is_allowed_is_so_for_the_reading_only(tmp_path: Path) -> None:
    torch.save({"model": STATES[0], "args": argparse.Namespace(a=1)}, tmp_path / "one.pth")
    before = torch.serialization.get_safe_globals()
    read_wrapped(tmp_path / "one.pth")
    assert set(torch.serialization.get_safe_globals()) == set(before)
