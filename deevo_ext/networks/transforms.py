"""Transforms that networks were trained for: torchvision's presets, timm's configs, files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import nn

from deevo_ext.data.transform import Transform
from deevo_ext.errors import DeevoError
from deevo_ext.extras import import_extra
from deevo_ext.networks import hugging_face


def transform_of(
    source: str, name: str, model: nn.Module, choice: str | Path | Transform | None, size: Any
) -> Transform | None:
    """Returns what was chosen, or what the network's metadata say; None where they say nothing.

    source, name: of the architecture, as `zoo` finds them. choice: a Transform, a JSON or TOML
    file, or a name of torchvision's weights. size: of the images that timm's network was made for,
    a number or a pair, if not its own.
    """
    if isinstance(choice, Transform):
        return choice
    if choice is not None and Path(choice).suffix in (".json", ".toml"):
        return Transform.from_file(choice)
    if source == "torchvision":
        weights = import_extra("torchvision").models.get_model_weights(name)
        known = list(weights.__members__)
        if choice is not None and choice not in known:
            raise DeevoError(
                f"transform is {str(choice)!r}; expected a .json or .toml file, or one of the "
                f"weights of {name}: {', '.join(known)}"
            )
        return of_torchvision((weights[str(choice)] if choice else weights.DEFAULT).transforms())
    if choice is not None:
        raise DeevoError(f"transform is {str(choice)!r}; expected a .json or .toml file")
    if source == "hf":
        return hugging_face.transform_of(Path(name))
    return of_timm(model, name, size) if getattr(model, "pretrained_cfg", None) else None


def of_torchvision(preset: Any) -> Transform:
    """Reads torchvision.transforms._presets.ImageClassification."""
    resize, crop = list(preset.resize_size), list(preset.crop_size)
    return Transform(
        resize[0] if len(resize) == 1 else (resize[0], resize[1]),
        (crop[0], crop[-1]),
        preset.interpolation.value,
        tuple(preset.mean),
        tuple(preset.std),
    )


def of_timm(model: nn.Module, name: str, size: Any = None) -> Transform:
    """Reads pretrained_cfg, as timm.data.create_transform does for its evaluation transform.

    size: of the images that the network was made for, a number or a pair, if not the one there.
    """
    sides = (size, size) if isinstance(size, int) else size
    args = {} if sides is None else {"input_size": (3, *sides)}
    config = import_extra("timm.data").resolve_model_data_config(model, args)
    height, width = config["input_size"][-2:]
    scaled = math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"])
    mode = config.get("crop_mode") or "center"
    fits = {"center": "cover", "squash": "bend", "border": "contain"}
    if mode not in fits:
        raise DeevoError(
            f"timm's {name} is evaluated with crop_mode {mode!r}; expected one of "
            f"{', '.join(fits)}; give --transform FILE"
        )
    # timm leaves a square target's centre crop to torchvision, which rounds in another way.
    simple = mode == "center" and scaled[0] == scaled[1]
    mean = tuple(config["mean"])
    return Transform(
        scaled[0] if simple else scaled,
        (height, width),
        config["interpolation"],
        mean,
        tuple(config["std"]),
        fit="bend" if simple else fits[mode],
        fill=tuple(round(255 * value) for value in mean) if mode == "border" else None,
    )
