"""`deevo average`: the plain average of checkpoints, and what more there is to have."""

import copy
import glob
import inspect
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from deevo_ext.cli.evolve import evolve
from deevo_ext.cli.options import Made, with_options
from deevo_ext.errors import DeevoError
from deevo_ext.population.finding import expand_paths
from deevo_ext.runs.average import average as average_checkpoints

log = logging.getLogger("deevo_ext")
_EVOLVED = "With --data"
_SHARED = ("data", "arch", "model_arg", "transform", "rounds", "run_dir", "force")
"""Options of `deevo evolve` that are here, too."""
_OPTIONS = inspect.signature(evolve).parameters


def _shared() -> dict[str, Made]:
    made = {}
    for name in _SHARED:
        (kind, option), default = get_args(_OPTIONS[name].annotation), _OPTIONS[name].default
        option = copy.copy(option)
        option.rich_help_panel = _EVOLVED
        optional = default is inspect.Parameter.empty
        made[name] = (kind | None, None, option) if optional else (kind, default, option)
    return {**made, "rounds": (int, 6, made["rounds"][2])}


@with_options(_shared())
def average(
    checkpoints: Annotated[
        list[str], typer.Argument(help="The checkpoints: files, a folder, or a glob in quotes.")
    ],
    output: Annotated[
        Path, typer.Option(help="The file to write the average to (.safetensors or .pth).")
    ] = Path("averaged.safetensors"),
    wildcard: Annotated[
        str | None, typer.Option("--filter", help='Which files of a folder, as "*.pth.tar".')
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--count",
            help="The number of checkpoints, by the metric they hold: by default 10.",
            min=2,
        ),
    ] = None,
    no_sort: Annotated[
        bool, typer.Option("--no-sort", help="Average all, whatever metric they hold.")
    ] = False,
    no_use_ema: Annotated[
        bool,
        typer.Option("--no-use-ema", help="Take the weights even where moving averages are there."),
    ] = False,
    **options: Any,
) -> dict[str, Any]:
    """Average checkpoints as timm's avg_checkpoints.py does; with --data, show what is in them.

    The table then compares the average with the best parent, the greedy soup and the evolved
    network; deevo evolve has further options.
    """
    if (options["data"] is None) != (options["arch"] is None):
        raise DeevoError("--data and --arch go together: the network is evaluated on the images")
    idle = [n for n, (_, default, _) in _shared().items() if options[n] not in (default, [])]
    if options["data"] is None and idle:
        raise DeevoError(
            f"{idle[0]} is {options[idle[0]]}, which is of the evolution on images; give --data "
            f"and --arch, or leave --{idle[0].replace('_', '-')} out"
        )
    if no_sort and count is not None:
        raise DeevoError(
            f"count is {count}, but --no-sort averages all checkpoints; leave one of them out"
        )
    if wildcard is not None:
        if len(checkpoints) > 1:
            raise DeevoError("--filter goes with one folder; the checkpoints are several")
        checkpoints = [os.path.join(glob.escape(checkpoints[0]), wildcard)]
    made = average_checkpoints(
        [file for path in checkpoints for file in expand_paths(path)],
        output,
        count=None if no_sort else count or 10,
        use_ema=not no_use_ema,
    )
    for i, file in enumerate(made.files):
        log.info("%s%s", f"{made.metrics[i]:.6g}  " if made.metrics else "", file)
    key = "" if made.checkpoint_key is None else f" of {made.checkpoint_key!r}"
    log.info("wrote %s, SHA-256 %s: the average%s", made.path, made.sha256, key)
    result = asdict(made)
    if options["data"] is not None:
        own = {
            "checkpoints": [str(file) for file in made.files],
            "checkpoint_key": made.checkpoint_key,
        }
        defaults = {name: part.default for name, part in _OPTIONS.items()}
        quiet = {"progress": log.isEnabledFor(logging.INFO)}  # --quiet is no option of its own
        result["evolved"] = evolve(**(defaults | options | own | quiet))
    return result
