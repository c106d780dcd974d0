"""What tells a user's function from another one."""

from __future__ import annotations

import functools
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deevo_ext.identity import full_name, function_identity

SOURCE = """
import numpy, torch
SCALE = torch.tensor([1.0, 2.0])
TABLE = {"a": [1, 2], "b": {"three", "four", "five"}}

def half(x):
    return x / 2

class Share:
    least = 1
    def __init__(self, share):
        self.share = share
        self.itself = self
    def of(self, x):
        return max(self.share * x, self.least)
    def __call__(self, logits, labels):
        return self.of(half(logits))

def score(logits, labels, weight=0.5, *, kind="mean"):
    def inner(x):
        return SCALE * TABLE["a"][0] * half(x)
    return [inner(x) for x in logits if x in {"x", "y", "z"}] + [weight, kind, numpy.float32(1)]

def scorer(share):
    def made(logits, labels):
        return share * logits + made.again
    return made

shared = Share(0.5)
bound = shared.of
short = lambda logits, labels: logits
"""
FUNCTIONS = ("score", "shared", "bound", "short", "Share")
HALVED = {"score", "shared", "bound", "Share"}
CHANGES = [
    ("x / 2", "x / 3", HALVED),
    ("1.0, 2.0", "1.0, 2.5", {"score"}),
    ('"four"', '"4"', {"score"}),
    ("weight=0.5", "weight=0.6", {"score"}),
    ('kind="mean"', 'kind="sum"', {"score"}),
    ('"y"', '"w"', {"score"}),
    ("Share(0.5)", "Share(0.6)", {"shared", "bound"}),
    ("least = 1", "least = 2", HALVED - {"score"}),
    ("self.share * x", "self.share + x", HALVED - {"score"}),
    ("labels: logits", "labels: labels", {"short"}),
]


def made_of(source: str, name: str = "users") -> types.ModuleType:
    module = types.ModuleType(name)
    exec(compile(source, f"{name}.py", "exec"), module.__dict__)
    return module


def identities(module: types.ModuleType) -> dict[str, dict[str, str]]:
    return {name: function_identity(getattr(module, name)) for name in FUNCTIONS}


@pytest.mark.parametrize(("part", "other", "reached"), CHANGES)
def test_a_change_changes_the_functions_that_it_reaches_and_no_others(
    part: str, other: str, reached: set[str]
) -> None:
    assert SOURCE.count(part) == 1
    before, after = (identities(made_of(text)) for text in (SOURCE, SOURCE.replace(part, other)))
    assert {name for name in FUNCTIONS if before[name] != after[name]} == reached


def test_comments_and_places_change_nothing() -> None:
    moved = "# a comment\n\n" + SOURCE.replace("def half", "# more\ndef half")
    assert identities(made_of(moved)) == identities(made_of(SOURCE))


def test_another_process_finds_the_same(tmp_path: Path) -> None:
    (tmp_path / "users.py").write_text(SOURCE)
    program = (
        "import users\nfrom deevo_ext.identity import function_identity as of\n"
        f"print({{n: of(getattr(users, n)) for n in {FUNCTIONS}}})"
    )
    found = []
    for seed in ("1", "2"):  # the second one reads what the first one compiled
        result = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        )
        found.append(result.stdout)
    assert found[0] == found[1] and "sha256" in found[0]


def test_names_are_the_functions_own() -> None:
    module = made_of(SOURCE)
    assert full_name(module.score) == "users.score"
    assert full_name(module.shared) == full_name(module.Share) == "users.Share"
    assert full_name(functools.partial(module.score, weight=1)) == "users.score"
    assert function_identity(module.short)["function"] == "users.<lambda>"
    assert function_identity(torch.relu)["function"].endswith("relu")


@pytest.mark.parametrize(
    "values",
    [
        (1, 2),
        (torch.ones(3), torch.zeros(3)),
        (torch.ones(2, dtype=torch.bfloat16), torch.ones(2)),
        (np.ones(3), np.ones(4)),
        (torch.nn.Linear(2, 3), torch.nn.Linear(3, 3)),
        ([1, [2]], [1, [3]]),
        ({"a": 1}, {"a": 2}),
        (Path("a"), Path("b")),
        (torch.relu, torch.tanh),
        ("a", b"a"),
    ],
)
def test_what_a_closure_holds_counts(values: tuple[Any, Any]) -> None:
    module = made_of(SOURCE)
    one, other = (function_identity(module.scorer(value)) for value in values)
    assert one["function"] == other["function"] and one["sha256"] != other["sha256"]
    assert function_identity(module.scorer(values[0])) == one
    one, other = (function_identity(functools.partial(module.score, weight=v)) for v in values)
    assert one["sha256"] != other["sha256"]


def test_networks_count_by_their_structure_and_handles_by_their_type() -> None:
    module = made_of(SOURCE)
    networks = (function_identity(module.scorer(torch.nn.Linear(2, 3))) for _ in range(2))
    assert next(networks) == next(networks)
    handles = (function_identity(module.scorer(torch.Generator())) for _ in range(2))
    assert next(handles) == next(handles)


def test_a_version_stands_for_the_code() -> None:
    module, other = made_of(SOURCE), made_of(SOURCE.replace("x / 2", "x / 3"))
    module.score.version, other.score.version = 3, "3"
    assert function_identity(module.score) == {"function": "users.score", "version": "3"}
    assert function_identity(other.score) == function_identity(module.score)
    other.score.version = "4"
    assert function_identity(other.score) != function_identity(module.score)


@pytest.mark.parametrize(
    "source",
    [
        "class Base:\n def __call__(self, x): return x * {}\nclass Own(Base): pass\nmetric = Own()",
        "class Base:\n def of(self, x): return x * {}\n"
        "class Own(Base):\n def __call__(self, x): return self.of(x)\nmetric = Own()",
        "import functools\n@functools.lru_cache\ndef of(x): return x * {}\n"
        "def metric(x): return of(x)",
        "class Own:\n __slots__ = ('share',)\n def __init__(self, share): self.share = share\n"
        " def __call__(self, x): return self.share * x\nmetric = Own({})",
        "import collections\nlast = collections.deque([{}])\ndef metric(x): return x * last[0]",
    ],
    ids=["inherited", "inherited helper", "cached helper", "slots", "deque"],
)
def test_what_a_function_is_made_of_by_other_ways_counts(source: str) -> None:
    one, other, again = (made_of(source.format(share)).metric for share in (2, 3, 2))
    assert function_identity(one) != function_identity(other)
    assert function_identity(one) == function_identity(again)


def test_what_is_called_by_a_module_of_the_package_counts_and_no_more_of_it() -> None:
    def metric(helpers: str) -> dict[str, str]:
        module = made_of("def metric(x): return helpers.of(x)", "users.metrics")
        module.helpers = made_of(helpers, "users.helpers")
        return function_identity(module.metric)

    before = metric("def of(x): return x * 2\ndef unused(x): return x")
    assert metric("def of(x): return x * 3\ndef unused(x): return x") != before
    assert metric("def of(x): return x * 2\ndef unused(x): return -x") == before


def test_an_installed_library_counts_by_the_function_and_not_by_all_that_it_calls() -> None:
    before = function_identity(torch.nn.CrossEntropyLoss())
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:  # what torch holds differs between processes
        assert function_identity(torch.nn.CrossEntropyLoss()) == before
    finally:
        hook.remove()
    assert function_identity(torch.nn.CrossEntropyLoss(label_smoothing=0.1)) != before
