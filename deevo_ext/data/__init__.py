"""Image sets: where they come from, how they are cached, and how they are divided."""

from deevo_ext.data.cache import build_cache
from deevo_ext.data.cache_file import open_cache
from deevo_ext.data.cached import CachedImages
from deevo_ext.data.images import ImageSet, split_class_balanced
from deevo_ext.data.labelled import LabelledImages
from deevo_ext.data.opening import open_pictures
from deevo_ext.data.pictures import DatasetPictures
from deevo_ext.data.sets import ImageSets, image_sets
from deevo_ext.data.sources import SourceSets, load
from deevo_ext.data.transform import Transform

__all__ = [
    "CachedImages",
    "DatasetPictures",
    "ImageSet",
    "ImageSets",
    "LabelledImages",
    "SourceSets",
    "Transform",
    "build_cache",
    "image_sets",
    "load",
    "open_cache",
    "open_pictures",
    "split_class_balanced",
]
