"""Image sets: where they come from and how they are divided."""

from .images import FourSets, ImageSet, split_class_balanced
from .sources import load

__all__ = ["FourSets", "ImageSet", "load", "split_class_balanced"]
