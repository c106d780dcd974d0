"""Genes and their changes: what they make of members, how they are drawn, kept and refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from deevo_ext.errors import DeevoError
from deevo_ext.population.blocks import Blocks
from deevo_ext.population.genes import Drawn, Genes
from deevo_ext.population.population import Population
from support import oracles
from support.networks import ConvNet, members

SEED = 2**40 + 11


def population(dtype: torch.dtype = torch.float32) -> Population:
    return Population.from_state_dicts(ConvNet(), members(ConvNet, 3), dtype=dtype)


def some_recipe(blocks: int, count: int = 3) -> Tensor:
    recipe = torch.randn(blocks, count, generator=torch.Generator().manual_seed(2))
    recipe[:, 0] = 1.0 - recipe[:, 1:].sum(dim=1)
    return recipe


def some_changes(genes: Genes, count: int = 3) -> Tensor:
    changes = 0.3 * torch.randn(len(genes), count, generator=torch.Generator().manual_seed(3))
    return changes - changes.mean(dim=1, keepdim=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_are_what_their_coefficients_make_of_the_members(dtype: torch.dtype) -> None:
    one = population(dtype)
    blocks = Blocks.by_tensor(one.layout)
    genes = Genes.of(one.layout, blocks)
    recipe, changes = some_recipe(len(blocks)), some_changes(genes)
    made = one.layout.views(genes.compose(one, recipe[None], changes[None])[0])
    parts = genes.by_tensor(changes)
    assert list(parts) == [entry.name for entry in one.layout.entries]
    views = [one.layout.views(row) for row in one.rows]
    unit = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-24
    for b, entry in enumerate(one.layout.entries):
        if entry.offset >= one.layout.nonneg_start:
            continue  # variances stay above 0 by a rule of their own
        for c, change in enumerate(parts[entry.name]):
            of_members = torch.stack([view[entry.name][c].double() for view in views])
            coefficients = recipe[b].double() + change.double()
            exact = torch.tensordot(coefficients, of_members, dims=1)
            size = float(coefficients.abs().sum() * of_members.abs().max())
            # Coefficients and each of three sums are rounded to float32, the result to the dtype.
            bound = 12 * 2.0**-24 * size + unit * float(exact.abs().max())
            assert float((made[entry.name][c].double() - exact).abs().max()) <= bound


def test_no_changes_leave_every_bit() -> None:
    one = population()
    blocks = Blocks.by_patterns(one.layout, ["conv*", "*"])
    genes = Genes.of(one.layout, blocks)
    recipe = torch.stack([some_recipe(2), some_recipe(2).flip(0)])
    plain = blocks.compose(one, recipe)
    assert torch.equal(genes.compose(one, recipe, torch.zeros(2, len(genes), 3)), plain)


def test_directions_are_drawn_as_the_contract_says() -> None:
    drawn = Drawn.of(9, 4, 30, 5, SEED)
    assert len(drawn) == 4 and drawn.r1.shape == (4, 30)
    for k in range(4):
        for g in range(30):
            w0, w1, w2, _ = oracles.words(12, 9, k, g, SEED)
            r1 = w0 * 5 >> 32
            r2 = [m for m in range(5) if m != r1][w1 * 4 >> 32]
            assert (drawn.r1[k, g], drawn.r2[k, g]) == (r1, r2)
            assert drawn.factor[k, g] == (sum(w2.to_bytes(4, "little")) - 510) / 512
    assert not np.array_equal(Drawn.of(8, 4, 30, 5, SEED).r1, drawn.r1)
    # Four bytes' variance is 4 (256^2 - 1) / 12; of 200,000 the mean errs by 0.0007 at one sigma.
    many = Drawn.of(1, 2, 100_000, 2, SEED)
    assert abs(float(many.factor.mean())) < 0.0035
    assert float(many.factor.std()) == pytest.approx(math.sqrt((256**2 - 1) / 3) / 512, rel=0.01)


def test_steps_add_up_along_their_directions() -> None:
    one = population()
    genes = Genes.of(one.layout, Blocks.whole(one.layout))
    drawn = Drawn.of(1, 6, len(genes), 3, SEED)
    changes, step = some_changes(genes), torch.tensor([0.5, 0.0, -2.0, 0.0, 1.5, 0.25])
    moved = drawn.after(changes, step, 0.6)
    exact = changes.double()
    for k, share in enumerate(step.tolist()):
        for g in range(len(genes)):
            exact[g, drawn.r1[k, g]] += 0.6 * share * drawn.factor[k, g]
            exact[g, drawn.r2[k, g]] -= 0.6 * share * drawn.factor[k, g]
    torch.testing.assert_close(moved.double(), exact, rtol=2.0**-23, atol=2.0**-40)
    # A gene's coefficients still add up to what they did.
    torch.testing.assert_close(moved.sum(dim=1), changes.sum(dim=1), rtol=0, atol=3 * 2.0**-22)
    assert torch.equal(drawn.after(changes, torch.zeros(6), 1.0), changes)


def test_changes_are_kept_by_tensor_and_what_does_not_fit_is_named() -> None:
    one = population()
    genes = Genes.of(one.layout, Blocks.whole(one.layout))
    changes = some_changes(genes)
    tensors = genes.by_tensor(changes)
    assert torch.equal(genes.from_tensors(tensors, 3, "f"), changes)
    name = next(iter(tensors))
    without = genes.from_tensors({n: t for n, t in tensors.items() if n != name}, 3, "f")
    parts = genes.by_tensor(without)
    assert not parts.pop(name).any()
    assert all(torch.equal(part, tensors[n]) for n, part in parts.items())
    for wrong, message in (
        ({name: tensors[name][:1, :2]}, f"f: the changes of '{name}' have shape"),
        ({name: tensors[name] * torch.inf}, "expected finite numbers"),
        ({"other": tensors[name]}, "f has changes of 'other'"),
    ):
        with pytest.raises(DeevoError, match=message):
            genes.from_tensors(wrong, 3, "f")
