"""`deevo average`: the plain average of checkpoints, and what more there is to have."""

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from deevo_ext.cli.evolve import evolve
from deevo_ext.errors import DeevoError
from deevo_ext.population.finding import expand_paths
from deevo_ext.runs.average import average as average_checkpoints

_EVOLVED = "With --data"


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
        int,
        typer.Option(
            "-n", "--count", help="The number of checkpoints, by the metric they hold.", min=2
        ),
    ] = 10,
    no_sort: Annotated[
        bool, typer.Option("--no-sort", help="Average all, whatever metric they hold.")
    ] = False,
    no_use_ema: Annotated[
        bool,
        typer.Option("--no-use-ema", help="Take the weights even where moving averages are there."),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Images, as of deevo evolve: evolve the checkpoints and compare.",
            rich_help_panel=_EVOLVED,
        ),
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="The architecture.", rich_help_panel=_EVOLVED)
    ] = None,
    model_arg: Annotated[
        list[str] | None,
        typer.Option(help='An argument of it, as "img_size=96".', rich_help_panel=_EVOLVED),
    ] = None,
    transform: Annotated[
        str | None, typer.Option(help="The preprocessing.", rich_help_panel=_EVOLVED)
    ] = None,
    rounds: Annotated[
        int, typer.Option(help="The number of rounds at most.", min=1, rich_help_panel=_EVOLVED)
    ] = 6,
    out: Annotated[Path, typer.Option(help="The run folder.", rich_help_panel=_EVOLVED)] = Path(
        "evolved"
    ),
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Evolve even unlike or bad members.", rich_help_panel=_EVOLVED
        ),
    ] = False,
) -> None:
    """Average checkpoints as timm's avg_checkpoints.py does; with --data, show what is in them.

    The table then compares the average with the best parent, the greedy soup and the evolved
    network; deevo evolve has further options.
    """
    if (data is None) != (arch is None):
        raise DeevoError("--data and --arch go together: the network is evaluated on the images")
    if wildcard is not None:
        if len(checkpoints) > 1:
            raise DeevoError("--filter goes with one folder; the checkpoints are several")
        checkpoints = [str(Path(checkpoints[0]) / wildcard)]
    made = average_checkpoints(
        [file for path in checkpoints for file in expand_paths(path)],
        output,
        count=None if no_sort else count,
        use_ema=not no_use_ema,
    )
    for i, file in enumerate(made.files):
        typer.echo(f"{made.metrics[i]:.6g}  {file}" if made.metrics else str(file))
    key = "" if made.checkpoint_key is None else f" of {made.checkpoint_key!r}"
    typer.echo(f"wrote {made.path}, SHA-256 {made.sha256}: the average{key}")
    if data is None:
        return
    defaults: dict[str, Any] = {
        name: parameter.default for name, parameter in inspect.signature(evolve).parameters.items()
    }
    given = {
        "arch": arch,
        "checkpoints": [str(file) for file in made.files],
        "checkpoint_key": made.checkpoint_key,
        "data": data,
        "model_arg": model_arg,
        "transform": transform,
        "rounds": rounds,
        "out": out,
        "force": force,
    }
    evolve(**(defaults | given))
