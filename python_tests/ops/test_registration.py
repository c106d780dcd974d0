"""The operators are good citizens of torch: schemas, fakes, version counters, torch.compile."""

from __future__ import annotations

import math
import shutil
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from deevo_ext.search.configuration import configure
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
    run.state[c.offsets().archive_count] = 3
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
    operands = arguments(name)
    before = torch.get_rng_state()
    operator(name)(*operands)
    assert torch.equal(torch.get_rng_state(), before)


# A whole generation in one graph


ARGUMENTS = {name: [a.name for a in operator(name)._schema.arguments] for name in NAMES}


def call(name: str, tensors: dict[str, torch.Tensor], **values: Any) -> None:
    """An operator on the tensors that have its arguments' names, and values for the rest."""
    named = {**tensors, **values}
    getattr(OPERATORS, name)(*(named[argument] for argument in ARGUMENTS[name]))


def generation(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """plan, trials, a fitness, tell, commit; of torch's own there is one kernel, as each is slow to
    compile.
    """
    place = {"nonneg_start": 30, "first_weight": 0, "lower": -math.inf, "upper": 4.0}
    call("plan", tensors, seed=1)
    call("trials", tensors, seed=1, **place)
    fitness = (tensors["out"] * 2.0).abs().double().amax(1)  # exact in any order of the reduction
    call("tell", tensors, seed=1, trial_fitness=fitness)
    call("commit", tensors, seed=1, **place)
    return fitness


def inputs() -> dict[str, torch.Tensor]:
    c = configure("paper", strategies=SHADE, archive_size=3)
    source = torch.Generator().manual_seed(0)
    population = torch.randn(5, 40, generator=source).abs() + 0.1
    run = evolution(c, (population * 2.0).abs().double().amax(1))
    return run.tensors() | {
        "population": population,
        "archive": torch.zeros(3, 40),
        "genes": torch.empty(0, dtype=torch.int64),
        "members": torch.arange(5),
        "out": torch.zeros(5, 40),
    }


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
    eager, compiled_tensors = inputs(), inputs()
    with torch._dynamo.config.patch(error_on_recompile=True):  # generation is data, no constant
        for _ in range(4):
            assert same_bits(compiled(compiled_tensors), generation(eager))
            for name, tensor in eager.items():
                assert same_bits(compiled_tensors[name], tensor), name
    assert int(eager["generation"]) == 5
