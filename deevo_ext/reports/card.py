"""What a finished run leaves for its readers: model card, HTML report, table and picture.

The templates beside this file lay out what `contents` says: the card as Markdown, the report as one
HTML file that needs nothing from elsewhere and holds the course of the run, too.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deevo_ext import _version
from deevo_ext.files import write_whole
from deevo_ext.reports.plots import plot_run
from deevo_ext.runs import journal
from deevo_ext.runs.comparison import HEADER, SOUP, Comparison
from deevo_ext.runs.folder import EVOLVED
from deevo_ext.runs.run import Evolution
from deevo_ext.runs.state import KINDS
from deevo_ext.text import Rows, markdown_table

TABLE = "table.json"
CARD, REPORT, PICTURE = "model_card.md", "report.html", "evolution.png"


class Table(NamedTuple):
    """The arguments of `text.markdown_table`."""

    header: Sequence[str]
    rows: Rows
    align: str = "<>"
    bold: Container[int] = ()

    def align_of(self, column: int) -> str:
        """The sign of a column."""
        return self.align[min(column, len(self.align) - 1)]


def write_documents(
    run: Evolution, comparison: Comparison | None, about: Mapping[str, str] | None = None
) -> list[Path]:
    """Writes table, card, report and picture of a finished run into its folder; their paths.

    about: further lines for the table "The run", such as the architecture's name and the images.
    Needs matplotlib.
    """
    folder, about = run.run_dir, dict(about or {})
    assert folder is not None
    strategies = [strategy.name for strategy in run.de.configuration.strategies]
    plot_run(run.history, strategies, folder / PICTURE)
    said = contents(run, comparison, about)
    for name in (CARD, REPORT):
        write_whole(folder / name, _render(f"{name}.j2", said).encode())
    written = [folder / CARD, folder / REPORT, folder / PICTURE]
    if comparison is not None:
        returned = run.course.chosen().record()
        comparison.save(folder / TABLE, returned=returned, about=about)
        written.append(folder / TABLE)
    return written


def contents(
    run: Evolution, comparison: Comparison | None, about: Mapping[str, str]
) -> dict[str, Any]:
    """What card and report say, by the names that the templates use."""
    folder = run.run_dir
    assert folder is not None
    chosen, header = run.course.chosen(), run.header()
    population = run.de.population
    digest = hashlib.sha256((folder / journal.FILE_NAME).read_bytes()).hexdigest()
    kind = {"member": "a member", "mean": "the mean", "soup": "a greedy soup"}[chosen.kind]
    count = len(chosen.members)
    details = {
        "weights": f"{EVOLVED}, {Path(EVOLVED).stem}.pth; SHA-256 of the row {chosen.digest}",
        "journal": f"{journal.FILE_NAME}, SHA-256 {digest}",
        "generations": str(run.de.generation),
        "seed": str(run.de.seed),
        "forward passes": f"{run.forward_passes:,}",
        "seconds": f"{run.seconds:.1f}",
        "BatchNorm statistics": population.batchnorm,
        "deevo_ext": f"{_version.__version__}, contract {header.contract}",
        **about,
    }
    sources = zip(population.names, header.checkpoints, strict=False)
    decides = {
        "configuration": header.configuration,
        "fitness": header.fitness,
        "validation": header.validation,
    }
    return {
        "title": f"deevo_ext: {folder.name}",
        "summary": "One network, evolved without gradients from the "
        f"{population.initial_size} checkpoints below by differential evolution: "
        f"{kind} of the population at generation {chosen.generation}, which validation images "
        f"chose ({count} member{'s' * (count > 1)}, validation score {chosen.score:.5g}). It costs "
        "what one of its parents costs.",
        **(_compared(comparison) if comparison else {"comparison": None}),
        "details": Table(("", "value"), list(details.items()), "<"),
        "replay": "The same weights come again, bit for bit, from the journal and the parents:",
        "command": f"deevo replay {folder} --out model.safetensors",
        "parents": Table(("member", "file", "SHA-256"), [(n, *s) for n, s in sources], "<"),
        "configuration": json.dumps(decides, indent=2),
        "caption": "Fitness, success and diversity",
        "picture": PICTURE,
        "picture_base64": base64.b64encode((folder / PICTURE).read_bytes()).decode("ascii"),
        **_course(run),
    }


def _compared(comparison: Comparison) -> dict[str, Any]:
    returned = {i for i, row in enumerate(comparison.rows) if row.returned}
    return {
        "images": f"{comparison.rows[0].images:,}",
        "comparison": Table(HEADER, comparison.cells(), bold=returned),
        "legend": f"Gained are the images that a network gets right and the {SOUP} wrong, lost is "
        "the reverse, and p is that of McNemar's exact test of these two numbers. Inference is the "
        "cost of an image in forward passes; passes and seconds were spent to find the network.",
        "verdict": f"{comparison.verdict} {comparison.note}".strip(),
    }


def _course(run: Evolution) -> dict[str, Any]:
    """What each strategy did, the validation scores on the way, and how much races spared."""
    history = run.history
    strategies = []
    for strategy in run.de.configuration.strategies:
        key = f"strategy/{strategy.name}"
        trials, wins = (
            sum(metrics[f"{key}/{what}"] for metrics in history) for what in ("trials", "successes")
        )
        rate = f"{wins / trials:.0%}" if trials else "-"
        odds = f"{history[-1][f'{key}/odds']:.2f}" if history else "-"
        formula = f"{strategy.formula}, {strategy.crossover}"
        strategies.append((strategy.name, formula, f"{trials:.0f}", f"{wins:.0f}", rate, odds))
    head = ("strategy", "formula, crossover", "trials", "successes", "rate", "last odds")
    validated = [m for m in history if m["validation/soup"] == m["validation/soup"]]
    scores = [
        (f"{m['generation']:.0f}", *(f"{m[f'validation/{kind}']:.5f}" for kind in KINDS))
        for m in validated
    ]
    races = ""
    if history and "racing/images" in history[0]:
        share = sum(metrics["racing/images"] for metrics in history) / len(history)
        races = f"Races: trials were evaluated on {share:.1%} of the images on average."
    return {
        "strategies": Table(head, strategies, "<<>"),
        "validation": Table(("generation", *KINDS), scores, ">"),
        "races": races,
    }


def _render(template: str, said: Mapping[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("deevo_ext.reports"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(said, markdown_table=markdown_table)
