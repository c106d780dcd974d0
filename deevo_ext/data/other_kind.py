"""Labelled images of another kind than networks were trained on, and nothing else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from deevo_ext.data.cached import CachedImages
from deevo_ext.data.images import balanced_order, split_class_balanced
from deevo_ext.data.labelled import LabelledImages
from deevo_ext.data.sets import open_data, validation_size
from deevo_ext.data.transform import Transform
from deevo_ext.errors import DeevoError


@dataclass(frozen=True)
class NewKind:
    """Images of one kind. fitness: drive the search. validation: choose; None where folds do. test:
    read once, where there are some. class_names: in the labels' order.
    """

    fitness: LabelledImages
    validation: LabelledImages | None
    test: LabelledImages | None
    class_names: list[str]

    def describe(self) -> str:
        """Returns one line with sizes and image shape."""
        choose = "of which folds choose"
        if self.validation is not None:
            choose = f"{len(self.validation):,} others choose"
        tested = "no test images" if self.test is None else f"{len(self.test):,} test images"
        shape = "x".join(str(side) for side in self.fitness.image_shape)
        return (
            f"{len(self.fitness):,} labelled images of the new kind, {choose}, {tested}, {shape}, "
            f"{len(self.class_names)} classes"
        )


def new_kind(
    source: str | os.PathLike[str],
    transform: Transform,
    *,
    by_folds: int,
    test: str | os.PathLike[str] | None = None,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    **opening: Any,
) -> NewKind:
    """Returns the images of a folder or cache of one kind, and those of `test`, if that is given.

    More than `by_folds` are divided, class-balanced: a part chooses (`validation_size`). labels: a
    table of those of `source`. opening: further arguments of `open_data`, which says what is read
    and raised. Raises DeevoError: a tree with several parts; class names that differ.
    """
    opened = open_data(source, transform, seed=seed, cache=cache, labels=labels, **opening)
    parts = list(opened.description.parts)
    if len(parts) > 1:
        raise DeevoError(
            f"{source} has the parts {', '.join(parts)}; --adapt is for one folder of labelled "
            "images of the new kind, with a folder for each class: give one of them, and another "
            "as --test"
        )
    whole = opened.part(parts[0], transform)
    fitness: LabelledImages = whole.subset(balanced_order(whole.labels, seed), "fitness")
    validation = None
    if len(whole) > by_folds:
        size = validation_size(len(whole))
        fitness, validation = split_class_balanced(
            whole, (len(whole) - size, size), seed, ("fitness", "validation")
        )
    return NewKind(
        fitness,
        validation,
        None if test is None else one_set(test, "test", transform, opened.class_names, **opening),
        opened.class_names,
    )


def one_set(
    source: str | os.PathLike[str],
    purpose: str,
    transform: Transform,
    class_names: list[str],
    **opening: Any,
) -> CachedImages:
    """Returns one set, of the val part where there are parts; DeevoError where classes differ."""
    opened = open_data(source, transform, **opening)
    if opened.class_names != class_names:
        raise DeevoError(
            f"the {purpose} images of {source} have other classes than the images that networks "
            "are evolved on; check their folders"
        )
    images = opened.part("val", transform)
    return images.subset(balanced_order(images.labels, opening.get("seed", 0)), purpose)
