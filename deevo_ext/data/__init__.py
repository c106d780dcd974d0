"""Image sets: where they come from, how they are cached, and how they are divided."""

from .cache import build_cache
from .cached import CachedImages
from .images import FourSets, ImageSet, split_class_balanced
from .labelled import LabelledImages
from .pictures import DatasetPictures, open_pictures
from .sets import ImageSets, image_sets
from .sources import load
from .store import open_cache
from .transform import Transform

__all__ = [
    "CachedImages",
    "DatasetPictures",
    "FourSets",
    "ImageSet",
    "ImageSets",
    "LabelledImages",
    "Transform",
    "build_cache",
    "image_sets",
    "load",
    "open_cache",
    "open_pictures",
    "split_class_balanced",
]
