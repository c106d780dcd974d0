"""Every public function and method with arguments that its signature does not mean.

One argument after another is replaced: by things of other types, and by extremes of its own type as
the type hints say it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import io
import signal
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

import deevo_ext as deevo
import deevo_ext.data
from campaigns.outcomes import Outcomes, some
from deevo_ext.data import (
    DatasetPictures,
    Transform,
    build_cache,
    image_sets,
    load,
    open_cache,
    open_pictures,
)
from deevo_ext.data.images import split_class_balanced
from deevo_ext.data.sets import open_data
from deevo_ext.runs.given import GROUPS, Keywords
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


EXTREMES: dict[Any, list[Any]] = {
    int: [-(2**63), 2**63 - 1, 7],
    float: [0.0, 5e-324, 1e308, float("-inf")],
    str: ["a", "a/b", " ", "%s{}"],
    bool: [False],
    torch.Tensor: [
        torch.zeros(()),
        torch.zeros(2, 0),
        torch.full((2, 3, 4, 4), float("inf")),
        torch.ones(5, 104),
        torch.ones(104),
        torch.ones(104, dtype=torch.bfloat16),
        torch.full((4,), -1),
        torch.full((4,), 2**62),
        torch.ones(2, 2).to_sparse(),
        torch.ones(3, device="meta"),
        torch.ones(3, dtype=torch.complex64),
    ],
    torch.dtype: [torch.int8, torch.complex64, torch.bfloat16, torch.float16],
    torch.device: ["cpu:7", "meta", "cuda:99", torch.device("meta")],
    Path: [Path("/dev/null"), Path("/proc/self/mem"), Path("."), Path("/etc/shadow/x")],
}
# What functions return, or users derive from: made by nobody from arguments.
RESULTS = {
    "ImageSets",
    "LabelledImages",
    "Fitness",
    "Losses",
    "Merged",
    "Result",
    "SourceSets",
    "Trials",
}
SECONDS = 10  # after which a call hangs


class Begun(Exception):
    """Raised by a preliminary: all that could be checked was."""


def begun(_: object) -> None:
    raise Begun


@functools.wraps(deevo.evolve)
def evolve_until_begun(**arguments: Any) -> None:
    with contextlib.suppress(Begun):
        deevo.evolve(**arguments)


def extremes(hint: Any) -> list[Any]:
    """Values of a type, or of each part of a type hint, that few functions can use."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return [value for part in parts for value in extremes(part)]
    if origin is typing.Literal:
        return list(parts)
    kind = origin or hint
    if kind in EXTREMES:
        return EXTREMES[kind]
    if not isinstance(kind, type):
        return []
    if issubclass(kind, Sequence) and parts:
        inner = extremes(parts[0])
        make = tuple if kind is tuple else list
        return [make(inner), *(make([value]) for value in inner[:4])]
    if issubclass(kind, Mapping) and len(parts) == 2:
        return [dict.fromkeys(["a", "fc.weight"], value) for value in extremes(parts[1])]
    return []


def of(make: Callable[[], object], method: Callable[..., Any]) -> Callable[..., Any]:
    """A method as a function of its arguments alone, each time of another object."""

    @functools.wraps(method)
    def call(**arguments: Any) -> Any:
        result = method(make(), **arguments)
        return list(result) if inspect.isgenerator(result) else result

    parameters = list(inspect.signature(method).parameters.values())[1:]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Callable, Callable]]:
    """Each function and what makes good arguments for it, without which nothing is tested."""
    folder = tmp_path_factory.mktemp("arguments")
    checkpoints = save_members(folder / "c", 6)
    parts = (images(60, 1), images(30, 2))
    whole, states = population(), members(Net, 3)
    evaluator = deevo.Evaluator(Net(), whole, engine="eager")
    inputs = images(8, 5).images
    forward = deevo.PopulationForward(Net(), whole, engine="eager")
    pixels = deevo.CachedImages(
        torch.arange(16, dtype=torch.uint8).view(4, 2, 2, 1),
        torch.arange(4) % 2,
        (0.5,),
        (0.5,),
        "a",
    )
    for part in ("train", "val"):
        for name in ("a", "b"):
            (folder / "tree" / part / name).mkdir(parents=True)
            for k in range(3):
                picture = Image.new("RGB", (4, 4), (80 * k, 200 * (name == "a"), 10))
                picture.save(folder / "tree" / part / name / f"{k}.png")
    pictures = open_pictures(folder / "tree")
    small = Transform(4, (4, 4), "bilinear", (0.5,) * 3, (0.5,) * 3)
    cache = build_cache(pictures, folder / "c.safetensors", small, workers=0, progress=False)

    def optimizer(asked: bool = True) -> deevo.DifferentialEvolution:
        de = deevo.DifferentialEvolution(population(5), generations=2)
        if asked:
            de.ask()
        return de

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
        **{group.__name__: (group, dict) for group in GROUPS},
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
        "DatasetFitness": (
            deevo.DatasetFitness,
            lambda: {
                "model": Net(),
                "population": whole,
                "data": list(zip(parts[0].images, parts[0].labels, strict=True)),
                "loss": torch.nn.CrossEntropyLoss(),
            },
        ),
        "Tracker": (deevo.Tracker, lambda: {"logger": Mock(spec=["init", "log", "finish"])}),
        "FitnessValidation": (
            deevo.FitnessValidation,
            lambda: {
                "fitness": deevo.DatasetFitness(
                    Net(),
                    whole,
                    torch.utils.data.TensorDataset(parts[1].images, parts[1].labels),
                    torch.nn.CrossEntropyLoss(),
                )
            },
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
        "open_data": (
            open_data,
            lambda: {
                "data": folder / "tree",
                "transform": small,
                "cache": folder / "c.safetensors",
                "workers": 0,
                "progress": False,
            },
        ),
        "build_cache": (
            build_cache,
            lambda: {
                "pictures": pictures,
                "path": folder / "c.safetensors",
                "transform": small,
                "workers": 0,
                "progress": False,
            },
        ),
        "DatasetPictures": (
            DatasetPictures,
            lambda: {"dataset": [(np.zeros((2, 2), np.uint8), 0)], "fingerprint": "1"},
        ),
        "Metric": (deevo.Metric, lambda: {"name": "loss"}),
        "Metric.of": (deevo.Metric.of, lambda: {"metric": "loss"}),
        "from_manifest": (
            deevo.Population.from_manifest,
            lambda: {"manifest": whole.manifest(), "paths": checkpoints},
        ),
        "state_dict": (of(lambda: whole, deevo.Population.state_dict), lambda: {"i": 0}),
        "state_dict_of": (
            of(lambda: whole, deevo.Population.state_dict_of),
            lambda: {"row": whole.rows[0]},
        ),
        "views": (of(lambda: whole, deevo.Population.views), lambda: {"i_or_row": 0}),
        "mean": (of(lambda: whole, deevo.Population.mean), dict),
        "mean_statistics": (of(lambda: whole, deevo.Population.mean_statistics), dict),
        "reread": (of(lambda: whole, deevo.Population.reread), lambda: {"i": 0}),
        "append_average": (
            of(lambda: population(4, spare=1), deevo.Population.append_average),
            lambda: {"name": "mean", "members": [0, 1]},
        ),
        "tell": (
            of(optimizer, deevo.DifferentialEvolution.tell),
            lambda: {"fitness": [1.0] * 5},
        ),
        "load_state_dict": (
            of(optimizer, deevo.DifferentialEvolution.load_state_dict),
            lambda: {"state": optimizer().state_dict()},
        ),
        "rows": (of(lambda: optimizer().ask(), deevo.Trials.rows), lambda: {"members": [0]}),
        "chunks": (of(lambda: optimizer().ask(), deevo.Trials.chunks), lambda: {"size": 2}),
        "forward": (
            of(lambda: forward, deevo.PopulationForward.__call__),
            lambda: {"rows": whole.rows, "images": inputs, "labels": torch.zeros(8).long()},
        ),
        "logits": (
            of(lambda: forward, deevo.PopulationForward.logits),
            lambda: {"row": whole.rows[0], "images": inputs},
        ),
        "graph": (
            of(lambda: forward, deevo.PopulationForward.find_graph),
            lambda: {"image_shape": (1, 10, 10)},
        ),
        "score": (
            of(lambda: evaluator, deevo.Evaluator.score),
            lambda: {"row": whole.rows[0], "images": parts[1]},
        ),
        "scores": (
            of(lambda: evaluator, deevo.Evaluator.scores),
            lambda: {"rows": whole.rows, "images": parts[1]},
        ),
        "losses": (
            of(lambda: evaluator, deevo.Evaluator.losses),
            lambda: {"rows": whole.rows, "images": parts[1]},
        ),
        **{
            f"{name}.{method.__name__}": (of(lambda s=images_: s, method), good)
            for name, images_ in (("images", parts[0]), ("cached", pixels))
            for method, good in (
                (type(images_).pixels, lambda: {"start": 0, "stop": 2}),
                (type(images_).slice, lambda: {"start": 0, "stop": 2}),
                (type(images_).subset, lambda: {"indices": [0, 1]}),
            )
        },
        "cache.images": (
            of(lambda: cache, type(cache).images),
            lambda: {"part": "train", "transform": small},
        ),
        "cache.part": (
            of(lambda: cache, type(cache).part),
            lambda: {"part": "train", "transform": small},
        ),
        "size_of": (of(lambda: small, Transform.size_of), lambda: {"height": 4, "width": 4}),
        "from_file": (Transform.from_file, lambda: {"path": folder / "none.json"}),
    }


def cases(function: Callable[..., Any], good: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each parameter of a function with each value that is tried for it."""
    parameters = inspect.signature(function).parameters
    named = [n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD]
    hints = typing.get_type_hints(inspect.unwrap(function))
    if isinstance(function, type):
        hints |= typing.get_type_hints(function.__init__)
    if len(named) < len(parameters):  # **parameters are fields of Configuration
        further = typing.get_type_hints(Keywords)
        fields = [f.name for f in dataclasses.fields(deevo.Configuration)]
        named += [name for name in fields if name not in named]
        hints = further | hints
    assert good.keys() <= {*named}
    for name in named:
        for value in (*NOTHING_OF_THE_KIND, *extremes(hints.get(name))):
            yield name, value


def hangs(signal_number: int, frame: object) -> None:
    raise TimeoutError(f"no end after {SECONDS} s")


def test_arguments_end_in_a_result_or_an_error_that_names_them(
    public: dict[str, tuple[Callable, Callable]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = {name: getattr(deevo, name) for name in deevo.__all__}
    exported |= {name: getattr(deevo_ext.data, name) for name in deevo_ext.data.__all__}
    known = {inspect.unwrap(function) for function, _ in public.values()}
    known |= {getattr(function, "__self__", None) for function, _ in public.values()}
    for name, thing in exported.items():
        error = isinstance(thing, type) and issubclass(thing, Exception)
        if callable(thing) and not error and name not in RESULTS:
            assert inspect.unwrap(thing) in known, name
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "multiprocessing.get_context", lambda *_: pytest.fail("processes were begun")
    )
    before = signal.signal(signal.SIGALRM, hangs)
    whole = Outcomes("arguments", type_errors=0.01)
    for name, (function, good) in public.items():
        outcomes = Outcomes(f"arguments of {name}", type_errors=1.0)
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(deevo.DeevoError):  # of files that are not there
                function(**good())  # and imports once
            for parameter, value in some(list(cases(function, good())), 30):
                if parameter == "preliminaries" and (value is None or callable(value)):
                    continue  # the run would begin
                what = f"{name}: {parameter}={type(value).__name__} {str(value)[:40]!a}"
                signal.alarm(SECONDS)
                outcomes.of(what, functools.partial(function, **{**good(), parameter: value}))
                signal.alarm(0)
        whole.counts += outcomes.counts
        whole.failures += outcomes.failures
    signal.signal(signal.SIGALRM, before)
    whole.check()
