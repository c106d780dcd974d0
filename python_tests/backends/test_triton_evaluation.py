"""fold, head and loss_and_rank as Triton kernels: against reference, and compiled ahead.

linear_scores, whose own tests run it in the interpreter, is compiled here.
"""

from __future__ import annotations

import importlib
import math
import re
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deevo_ext.backends import reference, triton
from deevo_ext.backends.reference.head import logits_of
from deevo_ext.errors import DeevoError
from support.ahead import TRITONS, compiled
from support.convolutions import DEVICE
from support.folding import DTYPES, Builder, Problem, varied
from support.operators import same_bits

Losses = tuple[torch.Tensor, torch.Tensor]


def to_device(arguments: tuple[Any, ...]) -> list[Any]:
    """Copies on the device, matrices with a row stride of their own."""
    moved = []
    for argument in arguments:
        if not isinstance(argument, torch.Tensor) or argument.dim() != 2:
            moved.append(argument.to(DEVICE) if isinstance(argument, torch.Tensor) else argument)
            continue
        outer = argument.new_empty(argument.shape[0], argument.shape[1] + 8)
        outer[:, : argument.shape[1]] = argument
        moved.append(outer.to(DEVICE)[:, : argument.shape[1]])
    return moved


def assert_folds_alike(p: Problem, dtype: torch.dtype) -> None:
    wanted, found = p.arguments(dtype), to_device(p.arguments(dtype))
    found[3] = wanted[3].to(DEVICE)  # a table is contiguous
    reference.fold(*wanted)
    triton.fold(*found)
    for position in (5, 6):
        assert same_bits(found[position].cpu().contiguous(), wanted[position].contiguous())


@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
def test_fold_is_reference(source: torch.dtype, target: torch.dtype) -> None:
    assert_folds_alike(varied().problem(source, members=2, seed=3), target)


def test_folding_again_allocates_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the launch, for which the interpreter makes tensors of its own."""
    module = importlib.import_module("deevo_ext.backends.triton.fold")
    monkeypatch.setattr(module, "launch", lambda *_, **__: None)
    without = Builder().add(2, 3, 1, statistics=None).problem()
    for problem in (varied().problem(), without):
        arguments = [argument.to(DEVICE) for argument in problem.arguments(torch.float16)]
        triton.fold(*arguments)
        with Allocations() as found:
            triton.fold(*arguments)
        assert found.operators == []


class Allocations(TorchDispatchMode):
    """Which of torch's operators made tensors with memory of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if re.match(r"aten\.(new_)?(empty|zeros|ones|full)", str(func)):
            self.operators.append(str(func))
        return func(*args, **(kwargs or {}))


def test_fold_of_one_entry_and_of_none() -> None:
    one = Builder().add(1, 1, 1, affine=None, statistics=None).problem(members=1)
    assert_folds_alike(one, torch.float16)
    none = Problem([], torch.ones(1, 8), torch.empty(1, 0), torch.empty(0), 8, 8)
    assert_folds_alike(none, torch.float16)


def outputs(members: int, samples: int) -> Losses:
    """Slices of longer rows."""
    losses = torch.full((members, samples + 5), 7.0, device=DEVICE)
    ranks = torch.full((members, samples + 2), 7, dtype=torch.int32, device=DEVICE)
    return losses[:, 2:-3], ranks[:, 1:-1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", [1, 2, 10, 257, 600])
def test_losses_are_reference(dtype: torch.dtype, smoothing: float, classes: int) -> None:
    draw = torch.Generator().manual_seed(classes)
    logits = (torch.randn(2, 19, classes, generator=draw) * 5).to(dtype)
    logits[0, 0] = logits[0, 0].round()  # ties
    logits[0, 3, 0], logits[1, 2, classes - 1] = math.nan, -math.inf
    logits[1, 4] *= 2.0**12
    labels = torch.arange(19) % classes
    wanted = (torch.empty(2, 19), torch.empty(2, 19, dtype=torch.int32))
    reference.loss_and_rank(logits, labels, smoothing, *wanted)
    found = outputs(2, 19)
    triton.loss_and_rank(logits.to(DEVICE), labels.to(DEVICE), smoothing, *found)
    for a, b in zip(found, wanted, strict=True):
        assert same_bits(a.cpu().contiguous(), b)


def test_an_impossible_label_is_an_infinite_loss() -> None:
    """On a GPU nobody looks at labels beforehand."""
    logits = torch.randn(1, 3, 4, device=DEVICE)
    losses, ranks = outputs(1, 3)
    triton.loss_and_rank(logits, torch.tensor([4, 1, -1], device=DEVICE), 0.0, losses, ranks)
    assert losses.isinf().tolist() == [[True, False, True]]
    assert ranks[0, 0] == ranks[0, 2] == 4


HEAD_DTYPES = (torch.float32, torch.float16) + ((torch.bfloat16,) if DEVICE == "cuda" else ())


@pytest.mark.parametrize("dtype", HEAD_DTYPES)
@pytest.mark.parametrize("shape", [(2, 17, 9, 40, 5), (1, 3, 1, 130, 150), (3, 1, 4, 16, 2)])
def test_head(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Logits are summed in another order, and a mean is split into two parts of dtype."""
    members, samples, positions, channels, classes = shape
    draw = torch.Generator().manual_seed(classes)
    features = torch.randn(members, samples, positions, channels, generator=draw).relu().to(dtype)
    weight = torch.randn(members, classes, channels, generator=draw).to(dtype)
    bias = torch.randn(members, classes, generator=draw)
    labels = torch.arange(samples) % classes
    wanted = (torch.empty(members, samples), torch.empty(members, samples, dtype=torch.int32))
    arguments = (features, weight, bias, labels, 0.1)
    reference.head(*arguments, *wanted)
    found = outputs(members, samples)
    triton.head(*[a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in arguments],
                     *found)  # fmt: skip
    parts = {torch.float32: 0.0, torch.float16: 2.0**-21, torch.bfloat16: 2.0**-15}[dtype]
    for k in range(members):
        x = features[k].double().abs().mean(1)
        size = (x @ weight[k].double().abs().T + bias[k].abs()).amax(1)
        error = size * ((positions + channels + 3) * 2.0**-24 + parts) + 2.0**-25
        allowed = 2 * error + wanted[0][k].double() * 2.0**-23
        assert bool(((found[0][k].cpu() - wanted[0][k]).abs() <= allowed).all())
        logits = logits_of(features[k], weight[k], bias[k])
        own = logits.gather(1, labels[:, None])
        clear = ((logits - own).abs() > 2 * error[:, None]) | (logits == own)
        same = found[1][k].cpu() == wanted[1][k]
        assert bool((same | ~clear.all(1)).all()) and bool(same.sum() >= samples // 2)


@pytest.mark.skipif(DEVICE == "cuda", reason="about the interpreter")
def test_the_interpreter_refuses_bfloat16_features() -> None:
    features = torch.ones(1, 1, 1, 16, dtype=torch.bfloat16)
    weight = torch.ones(1, 2, 16, dtype=torch.bfloat16)
    with pytest.raises(DeevoError, match="interpreter converts it"):
        triton.head(
            features,
            weight,
            torch.ones(1, 2),
            torch.zeros(1, dtype=torch.int64),
            0.0,
            *outputs(1, 1),
        )


@pytest.mark.parametrize("version", TRITONS)
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_compiled_ahead(architecture: int, version: str) -> None:
    """Nothing spills; tensor cores for 16-bit heads; the exact arithmetic stays what it is."""
    kernels = {r["kernel"]: r for r in compiled("compile_evaluation", version, architecture)}
    scores = {name: kernels.pop(name) for name in list(kernels) if name.startswith("linear")}
    assert len(kernels) == 6 + 3 and len(scores) == 5
    for name, kernel in scores.items():
        assert kernel["spills"] == 0 and kernel["mma"] > 0, name
        if name.endswith("1000"):
            assert kernel["narrow_loads"] == 0, name
    for name, kernel in kernels.items():
        assert kernel["spills"] == 0, name
        assert kernel["flushes"] == kernel["approximate"] == 0, name
        assert (kernel["mma"] > 0) == (name == "head float16"), name
        if name != "head float32":  # whose products are float32 sums in no stated order
            assert kernel["fused"] == 0, name
