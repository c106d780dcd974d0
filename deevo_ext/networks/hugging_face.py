"""Networks of Hugging Face folders: `config.json` says what to make, no weights are needed.

A config with "architecture" is timm's; any other is for transformers, whose image processor's
settings, `preprocessor_config.json`, say the transform.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from deevo_ext.data.transform import Transform
from deevo_ext.errors import DeevoError
from deevo_ext.extras import import_extra

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
_RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's filters by their numbers."""


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file of settings; raises DeevoError where it is missing or none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DeevoError(
            f"{path} cannot be read ({error}); expected a Hugging Face folder, with {CONFIG}"
        ) from error
    if not isinstance(content, dict):
        raise DeevoError(f"{path} holds a {type(content).__name__}; expected names and values")
    return content


def is_timm(folder: Path) -> bool:
    """Whether the folder holds a network of timm rather than of transformers."""
    return "architecture" in read_json(folder / CONFIG)


def maker(folder: Path) -> Callable[..., nn.Module]:
    """Returns a constructor of transformers' image classifier that takes `num_classes`.

    Further options are settings of its config, which must have them.
    """
    import_extra("torchvision", "transformers")  # which transformers would import by itself
    transformers = import_extra("transformers", "transformers")

    def make(**options: Any) -> nn.Module:
        config = transformers.AutoConfig.from_pretrained(str(folder))
        if "num_classes" in options:
            config.num_labels = options.pop("num_classes")
        for name, value in options.items():
            if not hasattr(config, name):
                raise DeevoError(f"{folder / CONFIG} has no setting {name!r}")
            setattr(config, name, value)
        model: nn.Module = transformers.AutoModelForImageClassification.from_config(config)
        return model

    return make


def transform_of(folder: Path) -> Transform | None:
    """Reads what an image processor does to a picture; None where the folder does not say."""
    if not (folder / PROCESSOR).exists():
        return None
    said = read_json(folder / PROCESSOR)

    def sides(name: str) -> int | tuple[int, int]:
        value = said.get(name)
        if isinstance(value, int):
            return value
        if isinstance(value, dict) and "shortest_edge" in value and len(value) == 1:
            return int(value["shortest_edge"])
        if isinstance(value, dict) and value.keys() == {"height", "width"}:
            return int(value["height"]), int(value["width"])
        raise DeevoError(f"{folder / PROCESSOR}: {name} is {value!r}; give --transform FILE")

    resize, crop = sides("size"), None
    if said.get("do_center_crop"):
        side = sides("crop_size")
        crop = (side, side) if isinstance(side, int) else side
    normalised = said.get("do_normalize", True)
    mean = said["image_mean"] if normalised else (0.0, 0.0, 0.0)
    std = said["image_std"] if normalised else (1.0, 1.0, 1.0)
    return Transform(
        resize if said.get("do_resize", True) else None,
        crop,
        _RESAMPLING[said.get("resample", 2)],
        tuple(mean),
        tuple(std),
    )
