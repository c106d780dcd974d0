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

OPERATORS = tuple(backends.DEVICES)
DE_PEERS = (
    "torch-loop", "torch-vectorised", "torch-compile", "evox-de", "evox-jade", "evox-shade",
    "evosax-de",
)  # fmt: skip
FORWARD_PEERS = ("eager", "channels-last", "compile", "compile-max", "vmap")
ENGINES = ("fused", "members")
PROBES = ("fused", "unshared", "eager", "compile")
BACKENDS = (*OPERATORS, *ENGINES, *DE_PEERS, *FORWARD_PEERS, "unshared")


_WORDS = {
    "all": (str(ALL),),
    "best": ("",),
    "each": ("float32", "bfloat16", "float16"),
    "two": ("float32", "bfloat16"),
    "tens": tuple(str(10**power) for power in range(4, 9)),
    "twos": tuple(str(2**power) for power in range(3, 10)),
    "operators": OPERATORS,
    "no-cuda": tuple(name for name in OPERATORS if name != "cuda"),
    "networks": (*ENGINES, *FORWARD_PEERS),
    "ways": PROBES,
    "anyone": (*OPERATORS, *DE_PEERS),
    "peers": tuple(name for name in DE_PEERS if name != "evox-jade"),
    "runs": ("size", "np", "dtype", "backend", "threads"),
    "weights": ("size", "np", "dtype", "backend", "threads", "isa"),
    "head": ("dtype", "backend", "threads", "isa"),
    "numbers": ("np", "backend"),
    "classes": ("np", "dtype", "backend", "threads", "isa"),
    "layer": ("size", "dtype", "backend"),
    "fed": ("size", "np", "threads"),
    "tables": ("plan", "tell", "plan+tell"),
    "on-weights": ("trials", "trials-six", "commit", "generation", "graph", "fold"),
}
"""Words of the tables below that stand for several."""

BY_NAME = ("plan+tell", "trials-six", "graph", "decode", "feed", "round")
"""Cases that are measured only where they are asked for."""
CPU_ALONE = ("step", "memory", "scaling", "decode", "feed")
"""Cases that are not measured on GPUs."""

# Triton has no row of `graph`: its plan and tell run on the CPU, which no graph captures.
_CASES = """
case         module      axes           backends     what
copy         limits      threads        cpu,cuda     the machine's copy bandwidth
peak         limits      dtype,threads  cpu          the CPU's rate of multiply-adds in registers
matmul       limits      dtype,threads  cpu,cuda     the rate of torch's products of matrices
plan         operators   numbers        operators    strategies, F, CR and parents of a generation
tell         operators   numbers        operators    selection and adaptation of a generation
plan+tell    operators   numbers        operators    both, one after the other
trials       operators   weights        operators    mutation and crossover of all members
trials-six   operators   weights        operators    trials of strategies with six rows
commit       operators   weights        operators    accepted trials replace their parents
generation   operators   weights        anyone       plan, trials, tell, commit; what others offer
graph        operators   weights        cuda         tell, commit, next plan as one CUDA graph
step         operators   weights        operators    ask, trials and tell as a user calls them
fold         evaluation  weights        operators    batch norms folded into 8 members' weights
head         evaluation  head           operators    pooling, classifier, loss, rank of 64 images
memory       memory      weights        operators    peak of a run's loop, and against the members
scaling      operators   weights        operators    a generation against weights and members
compose      recipes     weights        operators    rows of 8 recipes, from the members
linear_scores recipes    classes       no-cuda      losses of 64 candidates; np stands for classes
evolve       evolve      runs           fused,eager  a generation of a user's run, with evaluation
racing       evolve      runs           fused        the same where losing trials see fewer images
ranks        evolve      runs           fused        the same by two ranks, of so many threads each
layers       layers      layer          fused        each layer of a network graph, on one thread
forward      forward     runs           networks     losses of K networks on the same images
round        probes      runs           ways         a round's probes, which share prefixes
decode       cache       threads        cpu          pictures into a cache by worker processes
feed         cache       fed            fused        losses on images from a cache, or in memory
"""
# What is measured unless told otherwise, a product of rows in each line. Options vary the first
# line of a case.
_STANDARD = """
cases          reps  threads  isa            np         dtype    backend              size
copy           15    all,1    best           1          float32  cpu                  -
peak           15    all,1    best           1          two      cpu                  -
matmul         9     all,1    best           1          two      cpu                  -
tables         300   all      best           20,50,100  float64  cpu                  -
on-weights     15    all      best           20         each     cpu                  resnet18
trials         15    1        best           20         each     cpu                  resnet18
commit         15    1        best           20         float32  cpu                  resnet18
trials         15    all      avx2,baseline  20         float32  cpu                  resnet18
trials,commit  9     all      best           20         two      cpu                  resnet50
trials         9     all      best           10         float32  cpu                  vit_b
trials         100   all      best           20,100     float32  cpu                  resnet8
trials,commit  5     all      best           20         float32  reference            1000000
generation     7     all      best           20         float32  cpu,peers            1000000
generation     5     all      best           20         float32  torch-loop           resnet18
step           300   all      best           20,50,100  float32  cpu                  30
head           15    all      best           1          each     cpu                  -
compose        15    all      best           4,12,16    each     cpu                  resnet18
linear_scores  15    all      best           10         float32  cpu                  -
linear_scores  9     all      best           1000       float32,float16  cpu            -
memory         2     all      best           20         two      cpu                  resnet18
memory         1     all      best           8,32,128   float32  cpu                  1000000
scaling        7     all      best           8          float32  cpu                  tens
scaling        7     all      best           twos       float32  cpu                  1000000
evolve         5     all      best           12         float32  fused,eager          resnet8
evolve         5     all      best           12         float32  fused                resnet18
racing         5     all      best           12         float32  fused                resnet8
evolve,ranks   5     1        best           12         float32  fused                resnet8
layers         7     1        best           1          float32  fused                resnet50
forward        7     all      best           8          two      fused,eager,compile  resnet18
forward        5     all      best           8          float32  channels-last,vmap   resnet18
forward        5     all      best           8          two      fused                resnet50
forward        5     all      best           8          float32  eager,compile        resnet50
forward        5     all      best           32         two      fused                resnet20
forward        5     all      best           32         float32  eager                resnet20
round          3     all      best           12         float32  ways                 resnet8
round          3     all      best           12         float32  ways                 resnet18
decode         5     all,1    best           1          float64  cpu                  -
feed           9     all      best           2          float32  fused                resnet18
"""
# What --quick measures.
_QUICK = """
cases             reps  threads  isa   np  dtype    backend      size
copy,peak,matmul,head  5     all      best  1   float32  cpu          -
tables            100   all      best  20  float64  cpu          -
on-weights        5     all      best  20  float32  cpu          resnet8
compose           5     all      best  4   float32  cpu          resnet8
linear_scores     5     all      best  10  float32  cpu          -
step              100   all      best  20  float32  cpu          30
memory            1     all      best  8   float32  cpu          resnet8
scaling           5     all      best  8   float32  cpu          3000,30000
evolve,racing     5     all      best  6   float32  fused        resnet8
ranks             5     1        best  6   float32  fused        resnet8
layers            5     1        best  1   float32  fused        resnet8
forward           5     all      best  2   float32  fused,eager  resnet8
round             3     all      best  3   float32  fused        resnet8
decode            5     1        best  1   float64  cpu          -
feed              5     all      best  2   float32  fused        resnet8
"""


@dataclass(frozen=True)
class Axes:
    """The values that rows of a case are the product of."""

    repetitions: int
    threads: tuple[int, ...]
    isa: tuple[str, ...]
    np: tuple[int, ...]
    dtype: tuple[str, ...]
    backend: tuple[str, ...]
    size: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """Something to measure.

    module: of bench, whose `run_job(job)` makes the row, or several. axes: what it can be varied
    in. standard: what it measures unless told otherwise. quick: what --quick measures.
    """

    module: str
    axes: tuple[str, ...]
    backends: tuple[str, ...]
    what: str
    standard: tuple[Axes, ...]
    quick: tuple[Axes, ...]

    def run(self, job: Any) -> Any:
        """Measures; a row without the columns that all have in common, or a list of rows."""
        module = importlib.import_module(f"bench.{self.module}")
        run: Callable[[Any], Any] = module.run_job
        return run(job)


def _words(cell: str) -> tuple[str, ...]:
    return tuple(word for part in cell.split(",") for word in _WORDS.get(part, (part,)))


def _axes(table: str, case: str) -> tuple[Axes, ...]:
    """The axes of a case, one for each line of a table that names it."""
    result = []
    for line in table.strip().splitlines()[1:]:
        names, *cells = line.split()
        if case in (*names.split(","), *_words(names)):
            repetitions, threads, isa, np, dtype, backend, size = map(_words, cells)
            numbers = tuple(map(int, threads)), isa, tuple(map(int, np))
            result.append(Axes(int(repetitions[0]), *numbers, dtype, backend, size))
    return tuple(result)


def _cases() -> dict[str, Case]:
    result = {}
    for line in _CASES.strip().splitlines()[1:]:
        name, module, axes, backends, what = line.split(maxsplit=4)
        rows = _axes(_STANDARD, name), _axes(_QUICK, name)
        result[name] = Case(module, _words(axes), _words(backends), what, *rows)
    return result


CASES: dict[str, Case] = _cases()


def standard() -> list[str]:
    """The cases that are measured where none is named."""
    return [name for name in CASES if name not in BY_NAME]
