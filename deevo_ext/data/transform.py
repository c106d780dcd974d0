"""What is done to a picture before a network sees it: resize, centre crop, normalisation.

Resizing is Pillow's, and sizes and offsets are computed as torchvision's Resize and CenterCrop do,
so that pixels are those of the transform that the network was trained for, byte for byte.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deevo_ext.arguments import check_arguments
from deevo_ext.errors import DeevoError
from deevo_ext.files import read_regular

if TYPE_CHECKING:
    from PIL import Image

FITS = ("bend", "cover", "contain")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
_EXPECTED = (
    "expected resize (whole number: the shorter side; or [height, width]), crop (whole number or "
    f"[height, width]), interpolation ({', '.join(INTERPOLATIONS)}), mean and std (one number a "
    "channel, of values in 0..1); where resize is [height, width] also fit "
    f"({', '.join(FITS)}); fill (0..255 a channel); and exif (true or false)"
)


@dataclass(frozen=True)
class Transform:
    """Resize, then centre crop, then (pixel / 255 - mean) / std.

    resize: length of the shorter side, or (height, width), see `fit`; None leaves pictures their
    size. crop: (height, width) of the centre, what is missing filled with `fill`; None for no crop.
    interpolation: one of INTERPOLATIONS. mean, std: per channel, of values in 0..1; three for
    colour, one for grey. fit: what resize = (height, width) does to a picture of other proportions:
    "bend" it to that size, or keep its proportions and "cover" that size, or be "contain"ed in it,
    as timm's crop_mode squash, center and border. fill: whole numbers 0..255 per channel; None for
    black. exif: whether pictures are first turned as their EXIF orientation says; the transforms of
    torchvision and timm do not look at it, so networks have mostly learned from unturned ones.

    Raises DeevoError: a value is not as above.
    """

    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: str = "bend"
    fill: tuple[int, ...] | None = None
    exif: bool = False

    def __post_init__(self) -> None:
        check_arguments(Transform, vars(self))
        sides = (*_sides(self.resize), *_sides(self.crop))
        good = (
            isinstance(self.mean, tuple)
            and isinstance(self.std, tuple)
            and all(_is_whole(side) and side > 0 for side in sides)
            and self.interpolation in INTERPOLATIONS
            and len(self.mean) == len(self.std)
            and len(self.mean) in (1, 3)
            and all(_is_number(value) for value in (*self.mean, *self.std))
            and all(value > 0 for value in self.std)
            and self.fit in FITS
            and (self.fit == "bend" or isinstance(self.resize, tuple))
            and (self.fill is None or len(self.fill) == len(self.mean))
            and all(_is_whole(value) and 0 <= value <= 255 for value in self.fill or ())
        )
        if not good:
            raise DeevoError(f"transform is {asdict(self)}; {_EXPECTED}")

    @property
    def channels(self) -> int:
        """Number of channels, 1 or 3."""
        return len(self.mean)

    def pixels(self) -> dict[str, Any]:
        """Returns what decides the uint8 pixels, as plain values: all but the normalisation."""
        plain: dict[str, Any] = {
            "resize": list(self.resize) if isinstance(self.resize, tuple) else self.resize,
            "crop": None if self.crop is None else list(self.crop),
            "interpolation": None if self.resize is None else self.interpolation,
            "channels": self.channels,
        }
        # Named where they matter only, so that caches of the other transforms stay valid.
        if self.fit != "bend":
            plain["fit"] = self.fit
        if self.crop is not None and self.fill is not None and any(self.fill):
            plain["fill"] = list(self.fill)
        if self.exif:
            plain["exif"] = True
        return plain

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Returns (height, width) of what a picture of this size becomes."""
        if self.crop is not None:
            return self.crop
        return self._resized(height, width)

    def apply(self, picture: Image.Image | np.ndarray) -> np.ndarray:
        """Returns uint8 [H, W, C] of a picture, or of an array [h, w], [h, w, 1] or [h, w, 3].

        16 bits a channel are scaled to 8. Raises ValueError for numbers whose range nobody says:
        floating ones and those of 32 bits.
        """
        from PIL import Image, ImageOps

        if self.exif and not isinstance(picture, np.ndarray):
            picture = ImageOps.exif_transpose(picture)
        if isinstance(picture, np.ndarray):
            grey = picture.ndim == 3 and picture.shape[2] == 1
            picture = Image.fromarray(picture[:, :, 0] if grey else picture)
        if picture.mode.startswith("I;16"):
            sixteen = np.asarray(picture, dtype=np.uint32)
            picture = Image.fromarray(((sixteen + 128) // 257).astype(np.uint8))
        if picture.mode in ("I", "F"):
            raise ValueError(
                f"its mode is {picture.mode} ({'32-bit' if picture.mode == 'I' else 'floating'} "
                "numbers of no certain range); save it with 8 or 16 bits a channel"
            )
        image = picture.convert("RGB" if self.channels == 3 else "L")
        height, width = self._resized(image.height, image.width)
        if (height, width) != (image.height, image.width):
            method = Image.Resampling[self.interpolation.upper()]
            image = image.resize((width, height), method)
        if self.crop is not None and self.crop != (height, width):
            fill = self.fill or (0,) * self.channels
            ground = Image.new(image.mode, self.crop[::-1], fill if self.channels == 3 else fill[0])
            ground.paste(image, (-_offset(width, self.crop[1]), -_offset(height, self.crop[0])))
            image = ground
        return np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, self.channels)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.resize is None:
            return height, width
        if not isinstance(self.resize, int):
            if self.fit == "bend":
                return self.resize
            ratios = height / self.resize[0], width / self.resize[1]
            ratio = min(ratios) if self.fit == "cover" else max(ratios)
            return round(height / ratio), round(width / ratio)
        short, long = min(height, width), max(height, width)
        sides = (self.resize, int(self.resize * long / short))
        return sides if height <= width else (sides[1], sides[0])

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], name: str) -> Transform:
        """Makes a transform of plain values: lists stand for tuples, and a crop may be one number.

        Raises DeevoError that names the source and what is missing, unknown or of another kind.
        """
        # No resize or no crop is said by leaving it out.
        missing = {"mean", "std"} - values.keys()
        unknown = values.keys() - {field.name for field in fields(cls)}
        if missing or unknown:
            wrong = {"without": missing, "with unknown": unknown}
            text = " and ".join(f"{how} {', '.join(sorted(v))}" for how, v in wrong.items() if v)
            raise DeevoError(f"{name}: {text}; {_EXPECTED}")
        try:
            resize, crop = _tuple(values.get("resize")), _tuple(values.get("crop"))
            crop = (crop, crop) if isinstance(crop, int) else crop
            return cls(
                resize,
                crop,
                values.get("interpolation", "bilinear"),
                tuple(values["mean"]),
                tuple(values["std"]),
                values.get("fit", "bend"),
                None if values.get("fill") is None else tuple(values["fill"]),
                values.get("exif", False),
            )
        except (TypeError, ValueError) as error:
            raise DeevoError(f"{name}: {error}; {_EXPECTED}") from error

    @classmethod
    def from_file(cls, path: str | Path) -> Transform:
        """Reads a JSON or TOML file with this class's fields.

        Raises DeevoError that names the file.
        """
        check_arguments(Transform.from_file, locals())
        path = Path(path)
        try:
            text = read_regular(path).decode()
            values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        except (DeevoError, ValueError, RecursionError) as error:
            raise DeevoError(f"{path}: not a readable JSON or TOML file ({error})") from error
        if not isinstance(values, dict):
            raise DeevoError(f"{path}: holds a {type(values).__name__}; {_EXPECTED}")
        return cls.from_mapping(values, str(path))


def _offset(size: int, crop: int) -> int:
    """Where a centre crop begins; torchvision's rounding, and its padding where it is larger."""
    return -((crop - size) // 2) if crop > size else round((size - crop) / 2.0)


def _sides(value: int | tuple[int, int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _tuple(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        if len(value) != 2:
            raise ValueError(f"{list(value)} is not [height, width]")
        return value[0], value[1]
    return value


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
