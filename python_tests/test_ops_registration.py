"""The operators are good citizens of torch: schemas, fakes, version counters, torch.compile."""

from __future__ import annotations

import math
import shutil
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from deevo_ext.evolution.configuration import configure
from support.operators import (
    OPERATORS,
    SHADE,
    Evolution,
    Weights,
    evolution,
    random_weights,
    same_bits,
)

NAMES = ("plan", "trials", "tell", "commit")
MUTATED = {
    "plan": ("choices", "parameters", "coefficients", "gene_mask"),
    "trials": ("out",),
    "tell": ("state", "fitness", "alive", "generation", "accepted", "archive_slot"),
    "commit": ("population", "archive"),
}


def run_and_weights() -> tuple[Evolution, Weights]:
    c = configure("paper", strategies=SHADE, archive_size=3)
    run = evolution(c, torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0]))
    run.state[c.layout().archive_count] = 3
    run.plan()
    w = random_weights(5, 40, archive_rows=3)
    w.choices, w.coefficients = run.choices.clone(), run.coefficients.clone()
    return run, w


def arguments(name: str) -> tuple[Any, ...]:
    run, w = run_and_weights()
    return {
        "plan": run.plan_arguments(),
        "trials": w.trials_arguments(torch.tensor([4, 0, 4]), torch.zeros(3, 40)),
        "tell": run.tell_arguments(torch.tensor([1.0, 2.0, 1.0, 1.0, 9.0], dtype=torch.float64)),
        "commit": w.commit_arguments(
            torch.tensor([1, 0, 1, 1, 0], dtype=torch.uint8),
            torch.tensor([2, -1, -1, 0, -1], dtype=torch.int32),
        ),
    }[name]


def operator(name: str) -> Any:
    return getattr(OPERATORS, name).default


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "check",
    ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"],
)
def test_opcheck(name: str, check: str) -> None:
    torch.library.opcheck(operator(name), arguments(name), test_utils=check)


@pytest.mark.parametrize("name", NAMES)
def test_schema_says_what_changes(name: str) -> None:
    schema = operator(name)._schema
    written = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
    assert tuple(written) == MUTATED[name]
    assert schema.returns == []


@pytest.mark.parametrize("name", NAMES)
def test_only_what_the_schema_says_changes(name: str) -> None:
    before, after = arguments(name), arguments(name)
    versions = [a._version if isinstance(a, torch.Tensor) else 0 for a in after]
    operator(name)(*after)
    for argument, old, new, version in zip(
        operator(name)._schema.arguments, before, after, versions, strict=True
    ):
        if not isinstance(new, torch.Tensor):
            continue
        if argument.name in MUTATED[name]:
            assert new._version == version + 1, argument.name
        else:
            assert new._version == version, argument.name
            assert same_bits(old, new), argument.name


def test_autograd_notices_a_changed_input() -> None:
    """A backward through a row that commit has replaced is an error, not a wrong gradient."""
    _, w = run_and_weights()
    scale = torch.ones(40, requires_grad=True)
    loss = (w.population[0] * scale).sum()
    w.commit(torch.ones(5, dtype=torch.uint8), torch.full((5,), -1, dtype=torch.int32))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_works_in_inference_mode() -> None:
    with torch.inference_mode():
        _, w = run_and_weights()
        inside = w.trials()
    _, w = run_and_weights()
    assert same_bits(inside.clone(), w.trials())


def test_lazily_negated_inputs_are_read_right() -> None:
    _, w = run_and_weights()
    negated = w.clone()
    negated.population = torch._neg_view(w.population)
    w.population = -w.population
    assert same_bits(negated.trials(), w.trials())


@pytest.mark.parametrize("name", NAMES)
def test_fake_tensors_and_the_meta_device(name: str) -> None:
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments(name)]
        assert operator(name)(*fakes) is None
    metas = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments(name)]
    assert operator(name)(*metas) is None


@pytest.mark.parametrize("name", NAMES)
def test_random_state_is_untouched(name: str) -> None:
    given = arguments(name)
    before = torch.get_rng_state()
    operator(name)(*given)
    assert torch.equal(torch.get_rng_state(), before)


# A whole generation in one graph


def generation(
    run: dict[str, torch.Tensor], w: dict[str, torch.Tensor], members: torch.Tensor
) -> torch.Tensor:
    """plan, trials, a fitness, tell, commit."""
    OPERATORS.plan(
        *(run["settings"], run["strategies"], run["state"], run["fitness"], run["alive"]),
        *(run["generation"], 1, run["choices"], run["parameters"], run["coefficients"]),
        run["gene_mask"],
    )
    rows = torch.zeros_like(w["population"])
    plan = (run["choices"], run["coefficients"], w["genes"], run["gene_mask"])
    bounds = (-math.inf, 4.0)
    OPERATORS.trials(w["population"], w["archive"], *plan, members, 1, 30, 0, *bounds, rows)
    fitness = (rows * 2.0).abs().double().amax(1)  # exact in any order of the reduction
    OPERATORS.tell(
        *(run["settings"], run["strategies"], fitness, run["choices"], run["parameters"], 1),
        *(run["state"], run["fitness"], run["alive"], run["generation"]),
        *(run["accepted"], run["archive_slot"]),
    )
    outcome = (run["accepted"], run["archive_slot"])
    OPERATORS.commit(w["population"], w["archive"], *plan, *outcome, 1, 30, 0, *bounds)
    return rows.sum(0) + w["population"].sum(0)


def inputs() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    c = configure("paper", strategies=SHADE, archive_size=3)
    source = torch.Generator().manual_seed(0)
    population = torch.randn(5, 40, generator=source).abs() + 0.1
    run = evolution(c, (population * 2.0).abs().double().amax(1))
    weights = {"population": population, "archive": torch.zeros(3, 40)}
    weights["genes"] = torch.empty(0, dtype=torch.int64)
    return run.tensors(), weights, torch.arange(5)


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=pytest.mark.skipif(
                not (shutil.which("g++") or shutil.which("clang++")),
                reason="inductor needs a C++ compiler",
            ),
        ),
    ],
)
def test_compiled_generations_equal_eager_ones(backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(generation, fullgraph=True, backend=backend)
    eager_arguments, compiled_arguments = inputs(), inputs()
    with torch._dynamo.config.patch(error_on_recompile=True):  # generation is data, no constant
        for _ in range(4):
            eager = generation(*eager_arguments)
            assert torch.allclose(compiled(*compiled_arguments), eager)
            for given, expected in zip(compiled_arguments[:2], eager_arguments[:2], strict=True):
                for name, tensor in expected.items():
                    assert same_bits(given[name], tensor), name
    assert int(eager_arguments[0]["generation"]) == 5
