"""Image sets: where they come from and how they are divided."""

from .cached import CachedImages
from .images import FourSets, ImageSet, split_class_balanced
from .labelled import LabelledImages
from .sources import load

__all__ = [
    "CachedImages",
    "FourSets",
    "ImageSet",
    "LabelledImages",
    "load",
    "split_class_balanced",
]
