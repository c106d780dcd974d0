"""Checks of the arguments of PopulationForward, before anything is done."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deevo_ext.arguments import usable_device
from deevo_ext.errors import DeevoError
from deevo_ext.population.layout import Layout

ENGINE_CHOICES = ("auto", "fused", "triton", "compile", "eager")
PRECISIONS = ("auto", "float32", "tf32", "bfloat16", "float16")

_LARGEST_BATCH = 2**16


def check_options(
    model: object,
    layout: object,
    engine: object,
    precision: str,
    micro_batch: int,
) -> None:
    """Refuses what the constructor cannot use."""
    if not isinstance(model, nn.Module) or not isinstance(layout, Layout):
        raise DeevoError(
            f"model is a {type(model).__name__} and layout a {type(layout).__name__}; expected "
            "a torch.nn.Module and a population or its layout"
        )
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise DeevoError(
            f"model is a {type(model).__name__}, which is for training; expected the module in it: "
            "give model.module, also where the population is made"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise DeevoError(
            "model is made by torch.jit, which keeps its weights to itself; expected the "
            "torch.nn.Module that it was made of"
        )
    if callable(engine) and precision not in ("auto", "float32"):
        raise DeevoError(
            f"precision is {precision!r}, but the engine is a function, which computes as it does: "
            'leave it out, or give "float32", in which it gets weights and images'
        )
    for name, value, allowed in (
        ("engine", "auto" if callable(engine) else engine, ENGINE_CHOICES),
        ("precision", precision, PRECISIONS),
    ):
        if not isinstance(value, str) or value not in allowed:
            more = ", or a function of (state dict, images)" if name == "engine" else ""
            raise DeevoError(f"{name} is {value!r}; expected one of {', '.join(allowed)}{more}")
    if not 1 <= micro_batch <= _LARGEST_BATCH:
        raise DeevoError(
            f"micro_batch is {micro_batch}; expected at least 1 image, at most {_LARGEST_BATCH:,}"
        )


def check_tensors(state: Mapping[str, Tensor], layout: Layout, statistics: Layout | None) -> None:
    """Refuses a model, by its tensors, that does not have those of the rows and statistics."""
    for entry in (*layout.entries, *(statistics.entries if statistics is not None else ())):
        for name in entry.names:
            own = tuple(state[name].shape) if name in state else None
            if own != tuple(entry.shape):
                has = "has none of that name" if own is None else f"has {list(own)}"
                raise DeevoError(
                    f"the rows hold a tensor {name!r} {list(entry.shape)}, but the model {has}; "
                    "give the module of the architecture that the population was made with"
                )


def evaluating_device(device: torch.device | str, precision: str) -> torch.device:
    """The device with its index, if torch can use it and it has the precision."""
    usable = usable_device(device)
    if precision == "tf32" and usable.type != "cuda":
        raise DeevoError('precision is "tf32", which CUDA devices have; use "float32" here')
    return usable


def check_rows(rows: Tensor, layout: Layout) -> None:
    """Refuses rows that are not floating [K, D] or longer."""
    if not isinstance(rows, Tensor):
        raise DeevoError(
            f"rows are a {type(rows).__name__}; expected a floating tensor [K, {layout.dim}], as "
            "the population's"
        )
    if (
        rows.layout != torch.strided
        or rows.dim() != 2
        or not len(rows)
        or rows.shape[1] < layout.dim
        or not rows.is_floating_point()
    ):
        raise DeevoError(
            f"rows are {rows.dtype} {list(rows.shape)}; expected floating [K, {layout.dim}"
            "], as the population's"
        )
    if rows.shape[1] > 1 and rows.stride(1) != 1:
        raise DeevoError(
            f"rows have strides {rows.stride()}; expected each row's weights side by side: give "
            "rows.contiguous()"
        )


def check_smoothing(label_smoothing: float) -> None:
    """Refuses shares of a label that are not in [0, 1)."""
    number = isinstance(label_smoothing, (int, float)) and not isinstance(label_smoothing, bool)
    if not number or not 0 <= label_smoothing < 1:
        raise DeevoError(f"label_smoothing is {label_smoothing!r}; expected 0 up to below 1")


def check_labels(labels: Tensor, count: int) -> None:
    """Refuses labels that are not int64 [count] from 0 on."""
    if not isinstance(labels, Tensor):
        raise DeevoError(
            f"labels are a {type(labels).__name__}; expected an int64 tensor [{count}]"
        )
    if labels.shape != (count,) or labels.dtype != torch.int64 or int(labels.min()) < 0:
        raise DeevoError(
            f"labels are {labels.dtype} {list(labels.shape)}; expected int64 [N] with N = "
            f"{count}, none negative"
        )


def check_statistics(statistics: Tensor | None, members: int, layout: Layout | None) -> None:
    """Refuses statistics other than [members, S] where the layout has some, none elsewhere."""
    if statistics is not None and not isinstance(statistics, Tensor):
        raise DeevoError(
            f"statistics are a {type(statistics).__name__}; expected a float32 tensor, or None"
        )
    expected = (members, layout.dim) if layout else None
    shape = None if statistics is None or not statistics.numel() else tuple(statistics.shape)
    if shape != expected:
        raise DeevoError(
            f"statistics have shape {shape}; expected {expected}: BatchNorm's statistics of "
            "each row where they are held apart, and none otherwise"
        )
    if statistics is not None and shape is not None and shape[1] > 1 and statistics.stride(1) != 1:
        raise DeevoError(
            f"statistics have strides {statistics.stride()}; expected those of a row side by side: "
            "give statistics.contiguous()"
        )
