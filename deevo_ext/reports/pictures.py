"""Pictures of networks: a recipe as a heat map, and images that are predicted otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deevo_ext.reports.plots import new_figure, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches: a line of a heat map, a number in it, a character of a name, and the longest map there is.
_LINE, _NUMBER, _CHARACTER, _LONGEST = 0.16, 0.34, 0.07, 24.0
_COLUMNS, _LINES = 6, 5  # of images whose predictions changed
_DARK = 0.6  # share of the largest coefficient from which on its cell is dark


def plot_recipe(
    recipe: Tensor, blocks: Sequence[str], members: Sequence[str], path: Path
) -> Figure:
    """Draws a recipe's coefficients [blocks, members] as a heat map, white where they are 0.

    Cells have their coefficients in them. Where there are more blocks or members than a large
    picture has lines or columns, some are named, and cells are empty. Writes the picture as PNG
    and returns the figure; raises DeevoError if matplotlib is missing.
    """
    values = recipe.detach().to("cpu", torch.float64).numpy()
    height, every_block = _extent(len(blocks), _LINE)
    width, every_member = _extent(len(members), _NUMBER)
    below = _CHARACTER * max(map(len, members))
    beside = _CHARACTER * max(map(len, blocks))
    figure = new_figure((beside + max(width, 2.0) + 1.3, below + max(height, 1.0) + 0.6))
    axes = figure.subplots()
    largest = float(abs(values).max()) or 1.0
    image = axes.imshow(
        values, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto", interpolation="nearest"
    )
    axes.set_yticks(range(0, len(blocks), every_block), list(blocks[::every_block]))
    axes.set_xticks(range(0, len(members), every_member), list(members[::every_member]))
    axes.tick_params(axis="x", rotation=90)
    axes.tick_params(length=0, labelsize=8)
    if every_block == every_member == 1:
        for b, row in enumerate(values):
            for m, value in enumerate(row):
                colour = "white" if abs(value) > _DARK * largest else "black"
                axes.text(m, b, _short(value), ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=axes, label="coefficient", fraction=0.05, aspect=40)
    return written(figure, path)


def plot_changes(
    images: Tensor,
    labels: Tensor,
    before: Tensor,
    after: Tensor,
    names: tuple[str, str],
    path: Path,
) -> Figure:
    """Draws images whose predicted class differs from one network to another, in grey.

    They are the first that do, up to 30: so mended and spoilt ones are as frequent as they are. A
    title says label and predictions, in green where the second network is right and in red where
    the first was. images: [N, C, H, W]; labels, before, after: int64 [N], of the classes; names: of
    the networks. Writes the picture as PNG and returns the figure; raises DeevoError if matplotlib
    is missing.
    """
    changed = (before != after).nonzero().flatten()
    mended, spoilt = (int((one[changed] == labels[changed]).sum()) for one in (after, before))
    shown = changed[: _COLUMNS * _LINES].tolist()
    lines = max(1, math.ceil(len(shown) / _COLUMNS))
    height, width = images.shape[2:]
    figure = new_figure((8.0, lines * (8.0 / _COLUMNS * height / width + 0.3) + 0.5))
    figure.suptitle(
        f"{names[0]} \N{RIGHTWARDS ARROW} {names[1]}: of {len(labels):,} images {mended:,} mended, "
        f"{spoilt:,} spoilt, {len(changed) - mended - spoilt:,} wrong otherwise",
        fontsize=10,
    )
    panels = figure.subplots(lines, _COLUMNS, squeeze=False).flatten()
    for axes in panels:
        axes.axis("off")
    for axes, number in zip(panels, shown, strict=False):
        label, first, second = (int(classes[number]) for classes in (labels, before, after))
        colour = "tab:green" if second == label else "tab:red" if first == label else "black"
        axes.imshow(images[number].mean(dim=0).numpy(force=True), cmap="gray")
        title = f"{label}: {first} \N{RIGHTWARDS ARROW} {second}"
        axes.set_title(title, fontsize=9, color=colour)
    return written(figure, path)


def _extent(count: int, inches: float) -> tuple[float, int]:
    """The length of so many lines or columns, and of how many one can be named."""
    length = min(count * inches, _LONGEST)
    return length, math.ceil(count * inches / length)


def _short(value: float) -> str:
    """A coefficient in at most five characters, without a zero before the point."""
    text = f"{value:.2f}" if abs(value) < 9.995 else f"{value:.0f}"
    text = text.replace("0.", ".", 1) if abs(value) < 0.995 else text
    return "0" if text in (".00", "-.00") else text
