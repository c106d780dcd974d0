"""The operators are good citizens of torch: schemas, fakes, version counters, torch.compile."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from support.operators import same_bits
from support.registration import NAMES, arguments, generation, inputs, operator, run_and_weights

MUTATED = {
    "plan": ("choices", "parameters", "coefficients", "gene_mask"),
    "trials": ("out",),
    "tell": ("state", "fitness", "alive", "generation", "accepted", "archive_slot"),
    "commit": ("population", "archive"),
}


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
