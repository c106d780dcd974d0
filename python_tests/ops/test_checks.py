"""Wrong arguments: one DeevoError that names operator and argument, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from deevo_ext.errors import DeevoError
from deevo_ext.ops.tables import Setting
from deevo_ext.search.presets import configure
from support.operators import OPERATORS, SHADE, evolution, same_bits
from support.weights import random_weights

Change = Callable[[torch.Tensor], Any]
NAMES = ("plan", "trials", "tell", "commit")
# Of each operator: its tensors, dtype and shape as the documentation gives them.
SMALL_TENSORS = {
    "plan": (
        *("settings", "strategies", "state", "fitness", "alive", "generation", "choices"),
        *("parameters", "coefficients", "gene_mask"),
    ),
    "trials": ("choices", "coefficients", "genes", "gene_mask", "members"),
    "tell": (
        *("settings", "strategies", "trial_fitness", "choices", "parameters", "state", "fitness"),
        *("alive", "generation", "accepted", "archive_slot"),
    ),
    "commit": ("choices", "coefficients", "genes", "gene_mask", "accepted", "archive_slot"),
}
ROWS = {"trials": ("population", "archive", "out"), "commit": ("population", "archive")}
EVERY = [(op, name) for op in NAMES for name in (*SMALL_TENSORS[op], *ROWS.get(op, ()))]


def arguments(operator: str) -> dict[str, Any]:
    c = configure("paper", strategies=SHADE, archive_size=3)
    run = evolution(c, torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0]), genes=32)
    run.plan()
    w = random_weights(5, 40, archive_rows=3)
    w.choices, w.coefficients = run.choices.clone(), run.coefficients.clone()
    w.genes, w.gene_mask = torch.arange(32), run.gene_mask.clone()
    losses = torch.tensor([1.0, 2.0, 1.0, 1.0, 9.0], dtype=torch.float64)
    accepted = torch.tensor([1, 0, 1, 1, 0], dtype=torch.uint8)
    slots = torch.tensor([2, -1, -1, 0, -1], dtype=torch.int32)
    operands: tuple[Any, ...] = {
        "plan": run.plan_arguments(),
        "trials": w.trials_arguments(torch.tensor([4, 0, 4]), torch.zeros(3, 40)),
        "tell": run.tell_arguments(losses),
        "commit": w.commit_arguments(accepted, slots),
    }[operator]
    names = [a.name for a in getattr(OPERATORS, operator).default._schema.arguments]
    return dict(zip(names, operands, strict=True))


def refused(operator: str, message: str, **changes: Any) -> None:
    """The call with these arguments changed fails with the message and writes nothing."""
    operands = arguments(operator) | changes
    originals = {k: v for k, v in operands.items() if isinstance(v, torch.Tensor) and not v.is_meta}
    before = {name: tensor.detach().clone() for name, tensor in originals.items()}
    with pytest.raises(DeevoError, match=f"^deevo::{operator}: {message}"):
        getattr(OPERATORS, operator)(*operands.values())
    for name, tensor in originals.items():
        assert same_bits(tensor.detach(), before[name]), name


@pytest.mark.parametrize("operator", NAMES)
def test_the_arguments_are_right_before_they_are_spoilt(operator: str) -> None:
    getattr(OPERATORS, operator)(*arguments(operator).values())


@pytest.mark.parametrize(("operator", "name"), EVERY)
def test_device(operator: str, name: str) -> None:
    """One tensor elsewhere: the message names it, or the first that differs from it."""
    operands = arguments(operator)
    first = next(n for n, value in operands.items() if isinstance(value, torch.Tensor))
    blamed = name if name != first else r"\w+"
    refused(operator, f"{blamed} is on (meta|cpu); expected", **{name: operands[name].to("meta")})


@pytest.mark.parametrize(("operator", "name"), EVERY)
def test_dtype(operator: str, name: str) -> None:
    wrong = arguments(operator)[name].to(torch.float16)
    refused(operator, f"({name}|archive|out) is torch", **{name: wrong})


@pytest.mark.parametrize(
    ("operator", "name"), [(op, name) for op in NAMES for name in SMALL_TENSORS[op]]
)
def test_shape_and_layout(operator: str, name: str) -> None:
    tensor = arguments(operator)[name]
    # A longer fitness makes the others look too short.
    blamed = r"\w+" if name in ("fitness", "strategies", "members", "genes") else name
    longer = torch.cat([tensor, tensor[-1:]])
    refused(operator, f"{blamed} is of (shape|1|3)", **{name: longer})
    refused(operator, f"{name} is of shape", **{name: tensor[None]})
    spread = torch.stack([tensor, tensor], dim=-1)[..., 0]
    if not spread.is_contiguous():
        refused(operator, f"{name} is of strides", **{name: spread})


@pytest.mark.parametrize(("operator", "name"), EVERY)
def test_requires_grad(operator: str, name: str) -> None:
    tensor = arguments(operator)[name]
    if tensor.is_floating_point():
        spoilt = tensor.detach().clone().requires_grad_()
        refused(operator, f"{name} is a tensor that requires grad", **{name: spoilt})


@pytest.mark.parametrize(("operator", "name"), [(op, n) for op in ROWS for n in ROWS[op]])
def test_rows(operator: str, name: str) -> None:
    rows = arguments(operator)[name]
    refused(operator, f"{name} is of shape", **{name: rows[0]})
    refused(operator, f"{name} is of strides .*unit stride", **{name: rows.t().contiguous().t()})
    refused(operator, f"{name} is of strides .*unit stride",
            **{name: torch.stack([rows, rows], dim=-1)[..., 0]})  # fmt: skip
    overlapping = torch.zeros(500).as_strided(rows.shape, (39, 1))
    refused(operator, f"{name} is of strides .*rows that do not overlap", **{name: overlapping})
    same = torch.zeros(1, 40).expand(rows.shape[0], 40)
    refused(operator, f"{name} is of strides .*rows that do not overlap", **{name: same})
    if name != "population":
        shapes = r"is of shape \(\d, 39\); expected shape \((any|3), 40\)"
        refused(operator, f"{name} {shapes}", **{name: rows[:, :39]})
        refused(operator, f"{name} is torch.bfloat16", **{name: rows.bfloat16()})


@pytest.mark.parametrize("operator", NAMES)
def test_seed(operator: str) -> None:
    refused(operator, "seed is -1; expected an integer in 0..2", seed=-1)
    operands = arguments(operator) | {"seed": 2**63}
    with pytest.raises((RuntimeError, TypeError, OverflowError)):  # the schema's int has 64 bits
        getattr(OPERATORS, operator)(*operands.values())
    getattr(OPERATORS, operator)(*(arguments(operator) | {"seed": 2**63 - 1}).values())


@pytest.mark.parametrize("operator", ["trials", "commit"])
def test_columns(operator: str) -> None:
    refused(operator, "nonneg_start is -1", nonneg_start=-1)
    refused(operator, "first_weight is 4; expected a multiple of 8", first_weight=4)
    refused(operator, "first_weight is -8", first_weight=-8)


def test_trials_and_members_match() -> None:
    refused(
        "trials", r"out is of shape \(4, 40\); expected shape \(3, 40\)", out=torch.zeros(4, 40)
    )


@pytest.mark.parametrize(
    ("operator", "a", "b"),
    [
        ("trials", "population", "out"),
        ("trials", "archive", "out"),
        ("commit", "population", "archive"),
    ],
)
def test_overlapping_rows_of_two_arguments(operator: str, a: str, b: str) -> None:
    buffer = torch.zeros(9, 40)
    parts = {a: buffer[: arguments(operator)[a].shape[0]]}
    last = parts[a].shape[0] - 1
    parts[b] = buffer[last : last + arguments(operator)[b].shape[0]]
    refused(operator, f"({a}|{b}) is memory that ({a}|{b}) overlaps", **parts)
    apart = torch.zeros(20, 40)
    parts = {a: apart[:5][: parts[a].shape[0]], b: apart[5:][: parts[b].shape[0]]}
    getattr(OPERATORS, operator)(*(arguments(operator) | parts).values())


@pytest.mark.parametrize(
    ("operator", "a", "b"),
    [
        ("plan", "fitness", "parameters"),
        ("plan", "settings", "parameters"),
        ("tell", "trial_fitness", "fitness"),
        ("tell", "state", "fitness"),
    ],
)
def test_overlapping_small_tensors(operator: str, a: str, b: str) -> None:
    operands = arguments(operator)
    need = max(operands[a].numel(), operands[b].numel())
    buffer = torch.zeros(need, dtype=torch.float64)
    parts = {name: buffer[: operands[name].numel()].view(operands[name].shape) for name in (a, b)}
    parts[a].copy_(operands[a])
    refused(operator, f"({a}|{b}) is memory that ({a}|{b}) overlaps", **parts)


@pytest.mark.parametrize("operator", ["plan", "tell"])
@pytest.mark.parametrize("value", [0.0, -3.0, 2.5, float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize(
    "setting", [Setting.MEMORY_SIZE, Setting.STRATEGY_PERIOD, Setting.SINUSOID_PERIOD]
)
def test_settings_that_fix_sizes(operator: str, setting: Setting, value: float) -> None:
    settings = arguments(operator)["settings"]
    settings[setting] = value
    refused(operator, "settings is .*; expected whole numbers from 1", settings=settings)


@pytest.mark.parametrize("operator", ["plan", "tell"])
def test_state_of_another_configuration(operator: str) -> None:
    settings = arguments(operator)["settings"]
    settings[Setting.MEMORY_SIZE] = 6
    refused(operator, "state is of shape", settings=settings)
    refused(operator, "strategies is empty", strategies=torch.zeros(0, 32, dtype=torch.float64))


def test_plan_needs_two_members() -> None:
    run = evolution(configure("paper"), torch.ones(1))
    with pytest.raises(DeevoError, match="deevo::plan: fitness is of 1 members; expected at least"):
        run.plan()
