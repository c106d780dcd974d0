"""What a finished run leaves for its readers: model card, HTML report, table and pictures.

The templates beside this file lay out `contents`: the card as Markdown, the report as one HTML file
that needs nothing from elsewhere and holds the progress of the run, too.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from deevo_ext import _version
from deevo_ext.files import write_whole
from deevo_ext.fitness.classification import ClassificationFitness
from deevo_ext.fitness.differences import DIRECTIONS
from deevo_ext.fitness.metrics import Metric, label_of
from deevo_ext.networks.zoo import Architecture
from deevo_ext.population.finding import sha256
from deevo_ext.population.naming import Naming
from deevo_ext.reports.loading import images_text, loading_code
from deevo_ext.reports.pictures import plot_recipe
from deevo_ext.reports.plots import axis_label, fitness_label, plot_rounds, plot_run
from deevo_ext.reports.tables import (
    Table,
    members_table,
    rounds_table,
    steps_taken,
    strategies_table,
    validation_table,
)
from deevo_ext.runs import journal
from deevo_ext.runs.base import Run
from deevo_ext.runs.comparison import LEGEND, Comparison
from deevo_ext.runs.folder import EVOLVED
from deevo_ext.runs.old_images import what_was_lost
from deevo_ext.runs.recipe_run import RECIPE_FILE, RecipeRun
from deevo_ext.runs.run import Evolution
from deevo_ext.runs.state import SOUP
from deevo_ext.runs.validation import Validation
from deevo_ext.text import markdown_table

TABLE = "table.json"
CARD, REPORT, PICTURE = "model_card.md", "report.html", "evolution.png"
HEAT_MAP = "recipe.png"


class Picture(NamedTuple):
    """A picture in the run folder: its name there, its bytes in base64, and what it shows."""

    file: str
    base64: str
    caption: str

    @classmethod
    def of(cls, path: Path, caption: str) -> Picture:
        """Reads it."""
        return cls(path.name, base64.b64encode(path.read_bytes()).decode("ascii"), caption)


def write_documents(
    run: Run,
    comparison: Comparison | None,
    about: Mapping[str, str] | None = None,
    old: Comparison | None = None,
    network: Architecture | None = None,
) -> list[Path]:
    """Writes table, card, report and pictures of a finished run into its folder.

    Returns their paths. about: further lines for the table "The run", such as the name of the
    images. old: the comparison on images of the kind trained on, where the others are of another
    kind. network: the architecture, where it has a name; then the documents say how it is made and
    what it does to pictures. Needs matplotlib.
    """
    folder, about = run.run_dir, dict(about or {})
    assert folder is not None
    values = contents(run, comparison, about) | _on_old(old) | _loading(run, folder, network)
    for name in (CARD, REPORT):
        write_whole(folder / name, render(f"{name}.j2", values).encode())
    pictures = [folder / picture.file for picture in values["pictures"]]
    written = [folder / CARD, folder / REPORT, *pictures]
    if comparison is None:
        (folder / TABLE).unlink(missing_ok=True)  # of the run before it was lengthened
    else:
        assert run.chosen is not None
        returned = run.chosen.record()
        more = {} if old is None else {"old": old.to_json()}
        comparison.save(folder / TABLE, returned=returned, about=about, **more)
        written.append(folder / TABLE)
    return written


def contents(run: Run, comparison: Comparison | None, about: Mapping[str, str]) -> dict[str, Any]:
    """Returns the values that the templates lay out, by the names that they use.

    Draws the pictures, which are written into the run folder.
    """
    folder, chosen, header = run.run_dir, run.chosen, run.header()
    assert folder is not None and chosen is not None
    if isinstance(run, RecipeRun):
        own = _of_coefficients(run, folder)
    else:
        assert isinstance(run, Evolution)
        own = _of_weights(run, folder)
    digest = sha256(folder / journal.FILE_NAME)
    details = {
        "search": run.search,
        **own.pop("details"),
        "weights": f"{EVOLVED}, {Path(EVOLVED).stem}.pth; SHA-256 of the row {chosen.digest}",
        "journal": f"{journal.FILE_NAME}, SHA-256 {digest}",
        "seed": str(run.seed),
        "forward passes": f"{run.forward_passes:,}",
        "seconds": f"{run.seconds:.1f}",
        "BatchNorm statistics": run.population.batchnorm,
        "deevo_ext": f"{_version.__version__}, contract {header.contract}",
        **about,
    }
    sources = zip(run.population.names, header.checkpoints, strict=False)
    decides = {
        "configuration": header.configuration,
        "fitness": header.fitness,
        "validation": header.validation,
    }
    return {
        "folder": folder,
        "search": run.search,
        "reestimated": run.evaluator is not None and run.evaluator.policy.recalibrates,
        "chosen": chosen,
        "score": f"{_measure(run)} {_shown(run)(chosen.score):.5g}",
        "soup": SOUP,
        **(_compared(comparison) if comparison else {"comparison": None}),
        "details": Table(("", "value"), list(details.items()), "<"),
        "parents": Table(("member", "file", "SHA-256"), [(n, *s) for n, s in sources], "<"),
        "configuration": json.dumps(decides, indent=2),
        **own,
    }


def _shown(run: Run) -> Callable[[float], float]:
    """Returns what makes of a score the run's metric, in its user's direction."""
    return float if run.validation is None else run.validation.shown


def _metric(run: Run) -> Metric | None:
    return run.validation.metric if isinstance(run.validation, Validation) else None


def _measure(run: Run) -> str:
    metric = _metric(run)
    return "fitness" if metric is None else label_of(metric.name)


def _members(run: Run, recipe: Tensor | None) -> Table | None:
    """What the members come to by themselves, where a validation looked at them."""
    scores = [_shown(run)(score) for score in run.state.members_scores]
    if not scores:
        return None
    names = run.population.names[: len(scores)]
    return members_table(names, scores, _measure(run), recipe)


def _compared(comparison: Comparison) -> dict[str, Any]:
    returned = {i for i, network in enumerate(comparison.networks) if network.returned}
    return {
        "images": f"{comparison.networks[0].images:,}",
        "comparison": Table(comparison.header, comparison.cells(), bold=returned),
        "verdict": f"{comparison.verdict} {comparison.note}".strip(),
        "legend": LEGEND,
    }


def _loading(run: Run, folder: Path, network: Architecture | None) -> dict[str, Any]:
    naming = Naming.of_population(run.population)
    images = run.validation.images if isinstance(run.validation, Validation) else None
    return {
        "loading": loading_code(folder / EVOLVED, naming, network),
        "takes": images_text(images, None if network is None else network.transform),
    }


def _on_old(old: Comparison | None) -> dict[str, Any]:
    if old is None:
        return {"old": None}
    returned = {i for i, network in enumerate(old.networks) if network.returned}
    return {"old": Table(old.header, old.cells(), bold=returned), "lost": what_was_lost(old)}


def _of_weights(run: Evolution, folder: Path) -> dict[str, Any]:
    """Returns what is said of a search of weights alone."""
    history, configuration = run.history, run.configuration
    shown, strategies = _shown(run), [strategy.name for strategy in configuration.strategies]
    known = (*run.state.initial.values(), *run.state.treated)
    baselines = {one.name: shown(one.score) for one in known}
    of_fitness = run.fitness.metric if isinstance(run.fitness, ClassificationFitness) else None
    measures = axis_label(_metric(run)), fitness_label(of_fitness)
    plot_run(history, baselines, strategies, measures, folder / PICTURE)
    raced = [metrics["racing/images"] for metrics in history if "racing/images" in metrics]
    return {
        "details": {"generations": str(len(history))},
        "pictures": [
            Picture.of(
                folder / PICTURE,
                "Validation, fitness, success and diversity by generation; 0 is the population as "
                "it was read",
            )
        ],
        "members": _members(run, None),
        "rounds": None,
        "strategies": strategies_table(configuration, history),
        "validation": validation_table(history),
        "share_evaluated": sum(raced) / len(raced) if raced else None,
    }


def _of_coefficients(run: RecipeRun, folder: Path) -> dict[str, Any]:
    """Returns what is said of a search of coefficients alone."""
    history, configuration, state = run.history, run.configuration, run.state
    shown = _shown(run)
    baselines = {one.name: shown(one.score) for one in (*state.initial.values(), *state.treated)}
    score = shown(min(one.score for one in state.initial.values()))  # of the one it began with
    points: list[dict[str, Any]] = [
        {
            "round": 0,
            "forward_passes": run.initial_forward_passes,
            "validation": score,
            "virtual": [],
        }
    ]
    for metrics, lines in zip(history, run.virtual, strict=True):
        score = metrics["validation/recipe"] if metrics["accepted"] else score
        points.append(
            {
                "round": int(metrics["round"]),
                "forward_passes": metrics["forward_passes"],
                "validation": score,
                "virtual": [list(e) for _, e in groupby(lines, lambda line: line["evolution"])],
            }
        )
    strategies = [strategy.name for strategy in configuration.strategies]
    plot_rounds(points, baselines, strategies, axis_label(_metric(run)), folder / PICTURE)
    members, blocks = run.population.names[: run.population.initial_size], state.blocks.names
    plot_recipe(run.recipe, blocks, members, folder / HEAT_MAP)
    model, choice, test = run.rounds.sizes()
    images = f"{model:,} make the model, {choice:,} choose, {test:,} test"
    if run.rounds.few:
        images = f"all {model:,} make the model; folds of them choose and test"
    probes = len(blocks) * (len(members) - 1)
    directions = f"{probes:,}: towards a member, in one block; a probe each a round"
    if any(metrics["by_channel"] for metrics in history):
        directions += f"; or {DIRECTIONS}: differences of two members drawn for each channel"
    return {
        "details": {
            "rounds": steps_taken(history),
            "blocks": f"{len(blocks)} by {run.unit}",
            "directions": directions,
            "images of a round": images,
            "recipe": RECIPE_FILE + _varied(run.changes),
        },
        "pictures": [
            Picture.of(folder / PICTURE, "Score by round, and its virtual generations"),
            Picture.of(folder / HEAT_MAP, "How much of each member is in each block of it"),
        ],
        "members": _members(run, run.recipe),
        "rounds": rounds_table(history, run.initial_seconds),
        "strategies": strategies_table(configuration, [m for ms in run.virtual for m in ms]),
        "validation": None,
        "share_evaluated": None,
    }


def _varied(changes: Tensor | None) -> str:
    """Says how far channels are from the coefficients of their blocks."""
    if changes is None:
        return ""
    size = float(changes.square().mean().sqrt())
    return (
        f"; in its channels coefficients differ by {size:.2g} (root mean square) from the block's"
    )


def render(template: str, values: Mapping[str, Any]) -> str:
    """Fills in one of the templates beside this file."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("deevo_ext.reports"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values, markdown_table=markdown_table)
