"""A module as a program for one image shape and row dtype, and the check that it is the module."""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from deevo_ext.errors import DeevoError
from deevo_ext.inference.choose import Chooser, EngineTable
from deevo_ext.inference.cuda_graphs import GraphedProgram
from deevo_ext.inference.export import NotExportable, as_dtype, capture
from deevo_ext.inference.fuse import fuse
from deevo_ext.inference.members import MembersProgram
from deevo_ext.inference.plan import Convolution, Linear, Plan
from deevo_ext.inference.program import FusedProgram, ModuleProgram, Program
from deevo_ext.inference.schedule import logits_of
from deevo_ext.inference.weights import Stager
from deevo_ext.inference.workers import Workers
from deevo_ext.population.layout import Layout

# A plan is checked against the module on this many images of its first micro-batch.
CHECKED = 8
# Largest deviation of a right plan's logits from float32, relative to the largest logit: some 100
# roundings of 2^-24, 2^-11 (float16, tf32) or 2^-8 each, with room for networks that amplify. A
# wrong plan is off by the order of 1.
_DEVIATION = {"float32": 1e-2, "tf32": 0.1, "float16": 0.1, "bfloat16": 0.5}


@dataclass(frozen=True)
class Tensors:
    """Where a network's tensors are: in rows, in statistics held apart, or fixed for all."""

    layout: Layout
    statistics_layout: Layout | None
    fixed: Mapping[str, Tensor]

    def views(self, row: Tensor, statistics: Tensor | None) -> dict[str, Tensor]:
        """All of them by name, zero-copy."""
        tensors = {**self.fixed, **self.layout.views(row)}
        if self.statistics_layout is not None and statistics is not None:
            tensors.update(self.statistics_layout.views(statistics))
        return tensors


@dataclass
class Built:
    """A program, its plan where it has one, else why not."""

    program: Program
    plan: Plan | None
    why_unfused: str = ""


def build(
    module: nn.Module,
    tensors: Tensors,
    image_shape: tuple[int, ...],
    row_dtype: torch.dtype,
    *,
    engine: str,
    precision: str,
    dtype: torch.dtype,
    micro_batch: int,
    table: EngineTable,
    workers: Workers,
    device: torch.device,
) -> Built:
    """The program of `module` (float32, eval mode) on images [C, H, W]."""
    model = module if dtype == torch.float32 else as_dtype(module, dtype, device)
    why = f'engine="{engine}"'
    if engine in ("auto", "fused", "triton"):
        try:
            plan = fuse(capture(model, (micro_batch, *image_shape), dtype), dtype)
        except NotExportable as error:
            why = str(error)
            if engine == "triton":
                raise DeevoError(
                    f'engine="triton" cannot run {type(module).__name__}, which has no graph: {why}'
                ) from None
            warnings.warn(
                f"{type(module).__name__} is served unfused, by functional_call: {why}",
                stacklevel=2,
            )
        else:
            if engine == "triton":
                make = functools.partial(_stager, plan, tensors, row_dtype, device)
                return Built(MembersProgram(plan, make, device, tf32=precision == "tf32"), plan)

            def measure(task: Callable[[], float]) -> float:
                with float32_products(device, tf32=precision == "tf32"):
                    return workers.run([task])[0]

            chooser = Chooser(device, table, None if engine == "auto" else engine, measure)
            return Built(_fused(plan, tensors, row_dtype, chooser, device), plan)
    compiled = engine == "compile"
    program = ModuleProgram(model, tensors.views, dtype, workers.count, compiled=compiled)
    return Built(program, None, why)


def _fused(
    plan: Plan, tensors: Tensors, row_dtype: torch.dtype, chooser: Chooser, device: torch.device
) -> Program:
    bounds = {}
    for index, layer in enumerate(plan.layers):
        if isinstance(layer, (Convolution, Linear)):
            chosen = chooser.choose(layer)
            layer.engine = chosen.name
            bounds[index] = chosen.bind(layer)
    chooser.save()
    program = FusedProgram(plan, _stager(plan, tensors, row_dtype, device), bounds)
    if device.type == "cuda":
        return GraphedProgram(program, tensors.layout.stride, row_dtype)
    return program


def _stager(
    plan: Plan,
    tensors: Tensors,
    row_dtype: torch.dtype,
    device: torch.device,
    padded: Mapping[int, int] | None = None,
) -> Stager:
    own = (tensors.layout, tensors.statistics_layout, tensors.fixed)
    return Stager(plan, *own, row_dtype, device, padded)


def validate(
    built: Built,
    module: nn.Module,
    tensors: Tensors,
    row: Tensor,
    statistics: Tensor | None,
    batch: Tensor,
    *,
    precision: str,
    workers: Workers,
    name: str,
) -> None:
    """The plan against the module itself in float32, on the first images of a micro-batch.

    Raises DeevoError where they differ by more than rounding explains.
    """
    plan, count = built.plan, min(CHECKED, batch.shape[0])
    assert plan is not None

    def both() -> tuple[Tensor, Tensor]:
        prepared = built.program.prepare(row, statistics)
        found = logits_of(built.program, prepared, batch, name)[:count].float().clone()
        exact = {
            key: tensor.float() if tensor.is_floating_point() else tensor
            for key, tensor in tensors.views(row, statistics).items()
        }
        images = batch[:count].float()
        return found, functional_call(module, exact, (images,), tie_weights=False)

    with float32_products(row.device, tf32=precision == "tf32"):
        found, expected = workers.run([both])[0]
    plan.checked = True
    size = float(expected.abs().max())
    deviation = float((found - expected).abs().max())
    if not math.isfinite(size) or deviation <= _DEVIATION[precision] * size:
        return
    if precision == "float16" and not math.isfinite(deviation):
        return  # an overflow is the network's, and its loss is +inf
    plan.checked = False
    raise DeevoError(
        f"the fused plan of {type(module).__name__} gives logits that differ from the module's by "
        f'{deviation:.3g} (largest logit {size:.3g}): use engine="eager", and please report this '
        "network"
    )


@contextlib.contextmanager
def float32_products(device: torch.device, *, tf32: bool) -> Iterator[None]:
    """On CUDA, products of float32 in tf32 exactly where that was asked for."""
    if device.type != "cuda":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.allow_tf32, matmul.allow_tf32)
    cudnn.allow_tf32 = matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
