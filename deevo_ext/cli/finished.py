"""What a run of `deevo evolve` leaves: said, and as JSON values."""

import logging
from pathlib import Path
from typing import Any

from deevo_ext.reports.card import REPORT
from deevo_ext.runs.folder import EVOLVED
from deevo_ext.runs.journal import FILE_NAME
from deevo_ext.runs.old_images import what_was_lost
from deevo_ext.runs.recipe_run import RECIPE_FILE
from deevo_ext.runs.result import Result

log = logging.getLogger("deevo_ext")


def finished(result: Result, folder: Path, model_folder: Path | None) -> dict[str, Any]:
    """Says what came out, and returns it as JSON values."""
    if result.comparison is not None:
        count = result.comparison.networks[0].images
        log.info("\nOn %s test images:\n\n%s\n", f"{count:,}", result.comparison.format())
    if result.old is not None:
        log.info("%s\n", what_was_lost(result.old))
    recipe = folder / RECIPE_FILE
    if recipe.exists():
        log.info("Its recipe: %s (deevo merge %s --out FILE)", recipe, recipe)
    network, report, journal = folder / EVOLVED, folder / REPORT, folder / FILE_NAME
    more = "" if model_folder is None else f", {model_folder}/"
    log.info("The evolved network: %s, %s%s", network, network.with_suffix(".pth"), more)
    log.info("Report: %s\nIts journal: %s (deevo replay %s)", report, journal, folder)
    return {
        "name": result.candidate.name,
        "returned": result.candidate.record(),
        "comparison": result.comparison and result.comparison.to_json(),
        "old": result.old and result.old.to_json(),
        "network": network,
        "model_folder": model_folder,
        "recipe": recipe if recipe.exists() else None,
        "report": report,
        "journal": journal,
    }
