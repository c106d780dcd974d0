"""The cases: what each measures, on which sizes, and with what it can be varied."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deevo_ext import backends

SIZES = {
    "resnet8": 78_042,
    "resnet20": 269_722,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "vit_b": 86_567_656,
}
"""Weights of models that populations are made of."""

NETWORKS = ("resnet8", "resnet20", "resnet18", "resnet50")
"""Networks that are run; what they are: `bench.networks`."""

ALL = 0
"""Threads: as many as there are usable cores."""

DTYPES = ("float32", "bfloat16", "float16")
OPERATORS = tuple(backends.NAMES)
DE_PEERS = (
    "torch-loop", "torch-vectorised", "torch-compile", "evox-de", "evox-jade", "evox-shade",
    "evosax-de",
)  # fmt: skip
STANDARD_PEERS = tuple(name for name in DE_PEERS if name != "evox-jade")
FORWARD_PEERS = ("eager", "channels-last", "compile", "compile-max", "vmap")
ENGINES = ("fused", "members")
PEERS = (*DE_PEERS, *FORWARD_PEERS)
BACKENDS = (*OPERATORS, *ENGINES, *PEERS)


@dataclass(frozen=True)
class Axes:
    """A product of rows."""

    size: tuple[str, ...] = ("-",)
    np: tuple[int, ...] = (20,)
    dtype: tuple[str, ...] = ("float64",)
    backend: tuple[str, ...] = ("cpu",)
    threads: tuple[int, ...] = (ALL,)
    isa: tuple[str, ...] = ("",)
    repetitions: int = 15


@dataclass(frozen=True)
class Case:
    """Something to measure.

    module: of bench, whose `run_job(job)` makes the row, or several. axes: what it can be varied
    in. standard: what it measures unless told otherwise; options vary the first of these. quick:
    what --quick measures. by_name: only where it is asked for.
    """

    module: str
    what: str
    axes: tuple[str, ...]
    backends: tuple[str, ...]
    standard: tuple[Axes, ...]
    quick: Axes
    by_name: bool = False

    def run(self, job: Any) -> Any:
        """Measures; a row without the columns that all have in common, or a list of rows."""
        module = importlib.import_module(f"bench.{self.module}")
        run: Callable[[Any], Any] = module.run_job
        return run(job)


_WEIGHTS = ("size", "np", "dtype", "backend", "threads", "isa")
_SMALL = Axes(("resnet8",), (20,), ("float32",), repetitions=5)
_BOTH = (ALL, 1)


def _weights(what: str, *standard: Axes, module: str = "operators", **rest: Any) -> Case:
    given = {"axes": _WEIGHTS, "backends": OPERATORS, "quick": _SMALL, **rest}
    return Case(module, what, standard=standard, **given)


def _tables(what: str, **rest: Any) -> Case:
    numbers = Axes(np=(20, 50, 100), repetitions=300)
    quick = Axes(repetitions=100)
    return Case("operators", what, ("np", "backend"), OPERATORS, (numbers,), quick, **rest)


def _runs(what: str, *standard: Axes, backends: tuple[str, ...] = ("fused",)) -> Case:
    axes = ("size", "np", "dtype", "backend", "threads")
    quick = Axes(("resnet8",), (6,), ("float32",), ("fused",), repetitions=5)
    return Case("evolve", what, axes, backends, standard, quick)


_RESNET18 = Axes(("resnet18",), (20,), DTYPES)
_HALVES = ("float32", "bfloat16")

CASES: dict[str, Case] = {
    "copy": Case(
        "limits",
        "the machine's copy bandwidth",
        ("threads",),
        ("cpu", "cuda"),
        (Axes(np=(1,), dtype=("float32",), threads=_BOTH),),
        Axes(np=(1,), dtype=("float32",), repetitions=5),
    ),
    "matmul": Case(
        "limits",
        "the machine's rate of matrix products",
        ("dtype", "threads"),
        ("cpu", "cuda"),
        (Axes(np=(1,), dtype=_HALVES, threads=_BOTH, repetitions=9),),
        Axes(np=(1,), dtype=("float32",), repetitions=5),
    ),
    "plan": _tables("strategies, F, CR, parents and coefficients of a generation"),
    "tell": _tables("selection and adaptation of a generation"),
    "plan+tell": _tables("both, one after the other", by_name=True),
    "trials": _weights(
        "mutation and crossover of all members",
        _RESNET18,
        Axes(("resnet18",), (20,), DTYPES, threads=(1,)),
        Axes(("resnet18",), (20,), ("float32",), isa=("avx2", "baseline")),
        Axes(("resnet50",), (20,), _HALVES, repetitions=9),
        Axes(("vit_b",), (10,), ("float32",), repetitions=9),
        Axes(("resnet8",), (20, 100), ("float32",), repetitions=100),
        Axes(("1000000",), (20,), ("float32",), ("reference",), repetitions=5),
    ),
    "trials-six": _weights("trials of strategies with six rows", _RESNET18, by_name=True),
    "commit": _weights(
        "accepted trials replace their parents",
        _RESNET18,
        Axes(("resnet18",), (20,), ("float32",), threads=(1,)),
        Axes(("resnet50",), (20,), _HALVES, repetitions=9),
        Axes(("1000000",), (20,), ("float32",), ("reference",), repetitions=5),
    ),
    "generation": _weights(
        "plan, all trials, tell, commit; and one generation of what others offer",
        _RESNET18,
        Axes(("1000000",), (20,), ("float32",), ("cpu", *STANDARD_PEERS), repetitions=7),
        Axes(("resnet18",), (20,), ("float32",), ("torch-loop",), repetitions=5),
        backends=(*OPERATORS, *DE_PEERS),
    ),
    # Triton's plan and tell run on the CPU, which no graph captures.
    "graph": _weights(
        "tell, commit and the next plan as one CUDA graph",
        _RESNET18,
        backends=("cuda",),
        by_name=True,
    ),
    "step": _weights(
        "ask, trials and tell of the optimizer as a user calls it",
        Axes(("30",), (20, 50, 100), ("float32",), repetitions=300),
        quick=Axes(("30",), (20,), ("float32",), repetitions=100),
    ),
    "fold": _weights(
        "batch norms folded into 8 members' weights", _RESNET18, module="evaluation"
    ),
    "fold_trials": _weights(
        "the same of 8 trials that are never stored", _RESNET18, module="evaluation"
    ),
    "head": Case(
        "evaluation",
        "pooling, classifier, loss and rank of 64 images of a ResNet-50",
        ("dtype", "backend", "threads", "isa"),
        OPERATORS,
        (Axes(np=(1,), dtype=DTYPES),),
        Axes(np=(1,), dtype=("float32",), repetitions=5),
    ),
    "memory": _weights(
        "peak memory of a run's loop, and against the number of members",
        Axes(("resnet18",), (20,), _HALVES, repetitions=2),
        Axes(("1000000",), (8, 32, 128), ("float32",), repetitions=1),
        module="memory",
        quick=Axes(("resnet8",), (8,), ("float32",), repetitions=1),
    ),
    "scaling": _weights(
        "a generation against the number of weights and of members",
        Axes(
            ("10000", "100000", "1000000", "10000000", "100000000"), (8,), ("float32",),
            repetitions=7,
        ),
        Axes(("1000000",), (8, 16, 32, 64, 128, 256, 512), ("float32",), repetitions=7),
        quick=Axes(("3000", "30000"), (8,), ("float32",), repetitions=5),
    ),
    "evolve": _runs(
        "a generation of a run, evaluation included, by a user's call",
        Axes(("resnet8",), (12,), ("float32",), ("fused", "eager"), repetitions=5),
        Axes(("resnet18",), (12,), ("float32",), ("fused",), repetitions=5),
        backends=("fused", "eager"),
    ),
    "racing": _runs(
        "the same where trials that lose see part of the images",
        Axes(("resnet8",), (12,), ("float32",), ("fused",), repetitions=5),
    ),
    "layers": Case(
        "layers",
        "each layer of the inference plan, one member, on one thread",
        ("size", "dtype", "backend"),
        ("fused",),
        (Axes(("resnet50",), (1,), ("float32",), ("fused",), (1,), repetitions=7),),
        Axes(("resnet8",), (1,), ("float32",), ("fused",), (1,), repetitions=5),
    ),
    "forward": Case(
        "forward",
        "losses of K networks on the same images",
        ("size", "np", "dtype", "backend", "threads"),
        (*ENGINES, *FORWARD_PEERS),
        (
            Axes(("resnet18",), (8,), _HALVES, ("fused", "eager", "compile"), repetitions=7),
            Axes(("resnet18",), (8,), ("float32",), ("channels-last", "vmap"), repetitions=5),
            Axes(("resnet50",), (8,), _HALVES, ("fused",), repetitions=5),
            Axes(("resnet50",), (8,), ("float32",), ("eager", "compile"), repetitions=5),
            Axes(("resnet20",), (32,), _HALVES, ("fused",), repetitions=5),
            Axes(("resnet20",), (32,), ("float32",), ("eager",), repetitions=5),
        ),
        Axes(("resnet8",), (2,), ("float32",), ("fused", "eager"), repetitions=5),
    ),
    "decode": Case(
        "cache",
        "pictures into a cache by worker processes, against one process",
        ("threads",),
        ("cpu",),
        (Axes(np=(1,), threads=_BOTH, repetitions=5),),
        Axes(np=(1,), threads=(1,), repetitions=5),
        by_name=True,
    ),
    "feed": Case(
        "cache",
        "losses of networks on images from a cache, against images in memory",
        ("size", "np", "threads"),
        ("fused",),
        (Axes(("resnet18",), (2,), ("float32",), ("fused",), repetitions=9),),
        Axes(("resnet8",), (2,), ("float32",), ("fused",), repetitions=5),
        by_name=True,
    ),
}  # fmt: skip


def standard() -> list[str]:
    """The cases that are measured where none is named."""
    return [name for name, case in CASES.items() if not case.by_name]
