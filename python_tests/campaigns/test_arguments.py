"""Every public function with one argument after another replaced by what it should not be."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deevo_ext as deevo
from campaigns.outcomes import Outcomes, some
from deevo_ext.data import Transform, image_sets, load, open_cache, open_pictures
from deevo_ext.data.images import split_class_balanced
from deevo_ext.training.trainings import PopulationOptions
from support.evolution import images, population, save_members, sphere
from support.networks import Net, members

NOTHING_OF_THE_KIND: list[Any] = [
    *(None, True, -1, 0, 2**31, 2**63, 2**70, 1.5, -0.5, 1e30, float("nan"), float("inf")),
    *("", "banana", "a\0b", "ü\ud800", "x" * 5000, b"bytes", 1j),
    *([], {}, (), set(), [None], ["banana"], [[1.0]], {"a": 1}, range(3)),
    *(object(), int, len, Path("/nowhere/at/all"), Path("\0"), torch.float64),
    *(torch.zeros(0), torch.full((3,), float("nan")), torch.zeros(2, 2, dtype=torch.bool)),
    *(np.array("x"), np.zeros(3)),
]


class Begun(Exception):
    """Raised by a preliminary: all that could be checked was."""


def begun(_: object) -> None:
    raise Begun


@functools.wraps(deevo.evolve)
def evolve_until_begun(**arguments: Any) -> None:
    with contextlib.suppress(Begun):
        deevo.evolve(**arguments)


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Callable, Callable]]:
    """Each function and what makes good arguments for it, without which nothing is tested."""
    folder = tmp_path_factory.mktemp("arguments")
    checkpoints = save_members(folder / "c", 6)
    parts = (images(60, 1), images(30, 2))
    whole, states = population(), members(Net, 3)
    evaluator = deevo.Evaluator(Net(), whole, engine="eager")
    run = {"progress": False, "engine": "eager", "preliminaries": begun}
    evolve = {"model": Net(), "paths": checkpoints, "fitness_images": parts[0], **run}
    evolve |= {"validation_images": parts[1], "test_images": None}
    maps = {"resize": 8, "crop": (8, 8), "interpolation": "bilinear", "mean": (0.5,), "std": (0.5,)}
    made = PopulationOptions()
    options = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    return {
        "evolve": (evolve_until_begun, lambda: {**evolve, "search": "weights"}),
        "evolve, coefficients": (evolve_until_begun, lambda: {**evolve, "search": "coefficients"}),
        "merge": (deevo.merge, lambda: {"recipe": folder / "r.yaml", "out": folder / "m.pth"}),
        "replay": (deevo.replay, lambda: {"run_dir": folder / "run"}),
        "from_checkpoints": (
            deevo.Population.from_checkpoints,
            lambda: {"model": Net(), "paths": checkpoints},
        ),
        "from_state_dicts": (
            deevo.Population.from_state_dicts,
            lambda: {"model": Net(), "state_dicts": states},
        ),
        "from_rows": (deevo.Population.from_rows, lambda: {"rows": torch.rand(4, 3)}),
        "DifferentialEvolution": (
            deevo.DifferentialEvolution,
            lambda: {"population": population(5), "seed": 1, "generations": 2},
        ),
        "Configuration": (deevo.Configuration, dict),
        "Strategy": (
            deevo.Strategy,
            lambda: {"name": "a", "formula": "target + F*(r1 - r2)"},
        ),
        "Evaluator": (deevo.Evaluator, lambda: {"model": Net(), "population": whole}),
        "PopulationForward": (deevo.PopulationForward, lambda: {"model": Net(), "layout": whole}),
        "ClassificationFitness": (
            deevo.ClassificationFitness,
            lambda: {"evaluator": evaluator, "images": parts[0]},
        ),
        "Evolution": (
            deevo.Evolution,
            lambda: {
                "de": deevo.DifferentialEvolution(population(5), generations=1),
                "fitness": sphere,
                "progress": False,
            },
        ),
        "ImageSet": (
            deevo.ImageSet,
            lambda: {"images": parts[0].images, "labels": parts[0].labels, "name": "a"},
        ),
        "CachedImages": (
            deevo.CachedImages,
            lambda: {
                "all_pixels": torch.zeros(4, 2, 2, 1, dtype=torch.uint8),
                "labels": torch.zeros(4, dtype=torch.int64),
                "mean": (0.5,),
                "std": (0.5,),
                "name": "a",
            },
        ),
        "image_sets": (
            image_sets,
            lambda: {
                "data": None,
                "transform": Transform(**maps),
                "fitness": parts[0],
                "validation": parts[1],
                "test": images(20, 3),
            },
        ),
        "Transform": (Transform, lambda: maps),
        "PopulationOptions": (PopulationOptions, lambda: options),
        "load": (load, lambda: {"name_or_dir": "digits"}),
        "open_cache": (open_cache, lambda: {"path": folder / "none"}),
        "open_pictures": (open_pictures, lambda: {"source": folder}),
        "split_class_balanced": (
            split_class_balanced,
            lambda: {"images": parts[0], "sizes": (30, 30), "seed": 0, "names": ("a", "b")},
        ),
    }


NAMES = [
    *("evolve", "evolve, coefficients", "merge", "replay", "from_checkpoints", "from_state_dicts"),
    *("from_rows", "DifferentialEvolution", "Configuration", "Strategy", "Evaluator"),
    *("PopulationForward", "ClassificationFitness", "Evolution", "ImageSet", "CachedImages"),
    *("image_sets", "Transform", "PopulationOptions", "load", "open_cache", "open_pictures"),
    "split_class_balanced",
]


def cases(function: Callable[..., Any], good: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    parameters = inspect.signature(function).parameters
    named = [n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD]
    if len(named) < len(parameters):  # **parameters are fields of Configuration
        named += [f.name for f in dataclasses.fields(deevo.Configuration) if f.name not in named]
    assert good.keys() <= {*named}
    yield from itertools.product(named, NOTHING_OF_THE_KIND)


@pytest.mark.parametrize("name", NAMES)
def test_arguments_of_every_type_end_in_a_result_or_an_error_that_names_them(
    public: dict[str, tuple[Callable, Callable]],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert [*public] == NAMES
    monkeypatch.chdir(tmp_path)
    function, good = public[name]
    outcomes = Outcomes(f"arguments of {name}")
    for parameter, value in some(list(cases(function, good())), 40):
        if parameter == "preliminaries" and (value is None or callable(value)):
            continue  # the run would begin
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            what = f"{parameter}={type(value).__name__} {str(value)[:40]!a}"
            outcomes.of(what, lambda p=parameter, v=value: function(**{**good(), p: v}))
    outcomes.check()
