"""`deevo replay`: a run's weights and trials again, from its journal and initial checkpoints."""

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from deevo_ext.cli.merge import merge
from deevo_ext.errors import DeevoError
from deevo_ext.files import require_place
from deevo_ext.runs.folder import check_network_path
from deevo_ext.runs.recipe_state import RecipeState
from deevo_ext.runs.replay import replay as run_again
from deevo_ext.runs.replay import write_candidate, write_trials

log = logging.getLogger("deevo_ext")


def replay(
    run_dir: Annotated[
        Path,
        typer.Argument(
            help="The folder of the run, which holds journal.jsonl; or a recipe.yaml, which is "
            "merged."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="A file to write the returned network to (.safetensors or .pth)."),
    ] = None,
    trials: Annotated[
        Path | None,
        typer.Option(help="A CSV file to write every trial of a search of weights to."),
    ] = None,
    checkpoint_dir: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint-dir",
            "--checkpoints",
            help="The folder that holds the initial checkpoints now, if they were moved.",
        ),
    ] = None,
) -> dict[str, Any]:
    """Rebuild the evolved weights bit for bit, checked against the journal's SHA-256."""
    if run_dir.suffix in (".yaml", ".yml"):
        if out is None or trials is not None:
            raise DeevoError(f"{run_dir} is a recipe: give --out, and no --trials")
        return merge(run_dir, out, checkpoint_dir)
    if out is not None:
        check_network_path(out)
    if trials is not None:
        require_place(trials, "trials")
    result = run_again(run_dir, checkpoint_dir)
    candidate = result.candidate
    what = "round" if isinstance(result.state, RecipeState) else "generation"
    end = "finished" if result.finished else "unfinished; this is its best candidate so far"
    count = len(result.rounds or result.generations)
    log.info(
        f"{count} {what}s replayed ({end}): {candidate.name} of {what} {candidate.generation}, "
        f"score {candidate.score:.6g}, SHA-256 {candidate.digest}"
    )
    if trials is not None:  # which a search of coefficients refuses, before anything is written
        log.info("wrote %s trials to %s", write_trials(result, trials), trials)
    if out is not None:
        write_candidate(result, out)
        log.info("wrote %s", out)
    return {
        "name": candidate.name,
        "returned": candidate.record(),
        f"{what}s": count,
        "finished": result.finished,
        "network": out,
        "trials": trials,
    }
