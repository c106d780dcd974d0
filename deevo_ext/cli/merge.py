"""`deevo merge`: the network of a recipe, bit for bit."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from deevo_ext.runs.merge import merge as merge_recipe

log = logging.getLogger("deevo_ext")
_STATISTICS = {
    "fixed": "",
    "evolved": "; BatchNorm's statistics are combined like weights",
    "given": "; BatchNorm's statistics are those that the recipe came with",
    "combined": "; the recipe gives no BatchNorm statistics, so the members' are combined like "
    "weights: re-estimate them on images before use",
}
_RECORDED = {
    None: "",
    True: ", every bit as the recipe's run had it",
    False: ", edited since its run wrote it: the scores it tells are another network's",
}


def merge(
    recipe: Annotated[Path, typer.Argument(help="The recipe, such as recipe.yaml of a run.")],
    out: Annotated[
        Path, typer.Option(help="The file to write the network to (.safetensors or .pth).")
    ],
    checkpoint_dir: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint-dir",
            "--checkpoints",
            help="A folder that holds the members now, if they were moved.",
        ),
    ] = None,
) -> dict[str, Any]:
    """Make the network that a recipe describes: from a run, edited, or written by hand."""
    made = merge_recipe(recipe, out, checkpoint_dir)
    log.info(
        f"wrote {made.path}, SHA-256 {made.sha256}: {made.members} members in {made.blocks} "
        f"block{'s' * (made.blocks > 1)}{_RECORDED[made.as_recorded]}{_STATISTICS[made.statistics]}"
    )
    return asdict(made)
