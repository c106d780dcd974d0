"""Networks of Hugging Face folders: `config.json` says what to make, no weights are needed.

A config with "architecture" is timm's; any other is for transformers, whose image processor's
settings, `preprocessor_config.json`, say the transform.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deevo_ext.data.transform import Transform
from deevo_ext.errors import DeevoError
from deevo_ext.extras import import_extra

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
_RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's filters by their numbers."""
_KINDS = (
    *("Beit", "Bit", "CLIP", "ConvNext", "DeiT", "EfficientNet", "MobileNetV1", "MobileNetV2"),
    *("MobileViT", "Pvt", "Segformer", "Siglip", "ViT"),
)
"""Image processors that do what their settings say, and nothing else."""


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

    Further options are settings of its config, which must have them. Parameters are float32; the
    dtype that the config names stays there.
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
        said, factory = config.dtype, transformers.AutoModelForImageClassification
        model: nn.Module = factory.from_config(config, dtype=torch.float32)
        config.dtype = said
        return model

    return make


def transform_of(folder: Path) -> Transform | None:
    """Reads what an image processor does to a picture; None where the folder does not say.

    What it leaves out is as transformers has it for its kind. Raises DeevoError where it does
    anything that a `Transform` does not.
    """
    if not (folder / PROCESSOR).exists():
        return None
    said = _settings(folder)

    def refused(name: str) -> DeevoError:
        return DeevoError(
            f"{folder / PROCESSOR}: {name} is {said.get(name)!r}, which cannot be translated; give "
            "--transform FILE"
        )

    def sides(name: str) -> int | tuple[int, int]:
        value = said.get(name)
        if isinstance(value, dict) and value.keys() == {"shortest_edge"}:
            return int(value["shortest_edge"])
        if isinstance(value, dict) and value.keys() == {"height", "width"}:
            return int(value["height"]), int(value["width"])
        raise refused(name)

    def channels(name: str) -> list[float]:
        value = said.get(name)
        values: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value] * 3
        if len(values) != 3 or not all(isinstance(v, (int, float)) for v in values):
            raise refused(name)
        return values

    kind = said["image_processor_type"].partition("ImageProcessor")[0]
    if kind not in _KINDS:
        raise refused("image_processor_type")
    for name in ("do_flip_channel_order", "do_pad"):
        if said.get(name):
            raise refused(name)
    resize = sides("size") if said.get("do_resize") else None
    crop: tuple[int, int] | None = None
    if said.get("do_center_crop"):
        kept = sides("crop_size")
        crop = (kept, kept) if isinstance(kept, int) else kept
    if kind == "ConvNext" and resize is not None:
        if crop is not None or not isinstance(resize, int):
            raise refused("size" if crop is None else "do_center_crop")
        # From 384 on a picture is bent; below, more of it is resized than is kept.
        square = (resize, resize)
        resize, crop = (int(resize / said["crop_pct"]), square) if resize < 384 else (square, None)
    method = 2 if said.get("resample") is None else said["resample"]
    if method not in range(len(_RESAMPLING)):
        raise refused("resample")
    mean, std = [0.0] * 3, [1.0] * 3
    if said.get("do_normalize"):
        mean, std = channels("image_mean"), channels("image_std")
    # Of a pixel x it makes (x * factor - offset - mean) / std, where a Transform begins with x/255.
    scale, offset = 255.0, 0
    if said.get("do_rescale"):
        scale, offset = 255 * said["rescale_factor"], int(said.get("rescale_offset", False))
    if said.get("include_top"):  # EfficientNet's, which divides once more
        std = [a * b for a, b in zip(std, channels("image_std"), strict=True)]
    return Transform(
        resize,
        crop,
        _RESAMPLING[method],
        tuple((value + offset) / scale for value in mean),
        tuple(value / scale for value in std),
    )


def _settings(folder: Path) -> dict[str, Any]:
    """All settings of a folder's image processor, in the words of today's transformers."""
    read_json(folder / PROCESSOR)
    import_extra("torchvision", "transformers")
    processors = import_extra("transformers", "transformers").AutoImageProcessor
    try:
        made = processors.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        settings: dict[str, Any] = made.to_dict()
    except Exception as error:  # transformers raises anything for settings that it cannot read
        what = re.split(r"[.:]\s", str(error), maxsplit=1)[0]
        raise DeevoError(
            f"{folder / PROCESSOR}: transformers makes no image processor of it ({what}); expected "
            "an image_processor_type that it knows, here or by the model_type of "
            f"{CONFIG}, and settings of that; or give --transform FILE"
        ) from error
    return settings
