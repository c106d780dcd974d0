"""Options and operands of PopulationForward that cannot be are named."""

from __future__ import annotations

import math

import pytest

import deevo_ext as deevo
from deevo_ext.networks.forward import PopulationForward
from support.evolution import images, population
from support.networks import Net


@pytest.mark.parametrize(
    "options, message",
    [
        ({"engine": "tensorrt"}, "engine is 'tensorrt'; expected one of auto"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"precision": "tf32"}, "CUDA devices have"),
        ({"engine": ["auto"]}, r"engine is \['auto'\]"),
        ({"precision": None}, "precision is None"),
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"micro_batch": "8"}, "micro_batch is '8'"),
        ({"micro_batch": 2.5}, r"micro_batch is 2\.5"),
        ({"micro_batch": True}, "micro_batch is True"),
        ({"mean": (math.nan,), "std": (1.0,)}, "one finite number of each|mean is"),
        ({"mean": (0.5,), "std": (math.inf,)}, "one finite number of each"),
        ({"device": 3.5}, "device is 3.5"),
        ({"mean": (0.5,)}, "belong together"),
        ({"mean": (0.5,), "std": (0.0,)}, "std above 0"),
        ({"device": "gpu"}, "device is 'gpu'"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(deevo.DeevoError, match=message):
        PopulationForward(Net(), population(4), **options)


def test_bad_operands_are_named() -> None:
    pop, data = population(4), images(20)
    forward = PopulationForward(Net(), pop)
    x, y = data.images, data.labels
    forward(pop.rows, x, y)
    for args, message in (
        ((pop.rows.repeat_interleave(2, dim=1)[:, ::2], x, y), "rows have strides"),
        ((pop.rows[0], x, y), "rows are"),
        ((pop.rows[:, :4], x, y), "rows are"),
        ((pop.rows[:0], x, y), "rows are"),
        ((pop.rows.tolist(), x, y), "rows are a list"),
        ((pop.rows, x.numpy(), y), "images are a ndarray"),
        ((pop.rows, x, y.tolist()), "labels are a list"),
        ((pop.rows, x, y, [0.0]), "statistics are a list"),
        ((pop.rows, x[0], y), "expected \\[N, C, H, W\\]"),
        ((pop.rows, x.long(), y), "expected uint8 or floating"),
        ((pop.rows, x, y[:3]), "labels are"),
        ((pop.rows, x, y.int()), "labels are"),
        ((pop.rows, x, y + 3), "labels 0..2"),
    ):
        with pytest.raises(deevo.DeevoError, match=message):
            forward(*args)
    for smoothing in (1.0, -0.1, math.nan, "0.1", True):
        with pytest.raises(deevo.DeevoError, match="label_smoothing is"):
            forward(pop.rows, x, y, label_smoothing=smoothing)  # type: ignore[arg-type]
