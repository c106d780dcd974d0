"""What a finished run leaves for its readers: model card, HTML report, table and picture.

The templates beside this file lay out `contents`: the card as Markdown, the report as one HTML file
that needs nothing from elsewhere and holds the progress of the run, too.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deevo_ext import _version
from deevo_ext.files import write_whole
from deevo_ext.population.checkpoints import sha256
from deevo_ext.reports.plots import plot_run
from deevo_ext.runs import journal
from deevo_ext.runs.comparison import Comparison
from deevo_ext.runs.folder import EVOLVED
from deevo_ext.runs.run import Evolution
from deevo_ext.runs.state import KINDS, SOUP
from deevo_ext.text import Lines, markdown_table

TABLE = "table.json"
CARD, REPORT, PICTURE = "model_card.md", "report.html", "evolution.png"


class Table(NamedTuple):
    """The arguments of `text.markdown_table`."""

    header: Sequence[str]
    lines: Lines
    align: str = "<>"
    bold: Container[int] = ()

    def align_of(self, column: int) -> str:
        """Returns the sign of a column."""
        return self.align[min(column, len(self.align) - 1)]


def write_documents(
    run: Evolution, comparison: Comparison | None, about: Mapping[str, str] | None = None
) -> list[Path]:
    """Writes table, card, report and picture of a finished run into its folder.

    Returns their paths. about: further lines for the table "The run", such as the architecture's
    name and the images. Needs matplotlib.
    """
    folder, about = run.run_dir, dict(about or {})
    assert folder is not None
    strategies = [strategy.name for strategy in run.de.configuration.strategies]
    plot_run(run.history, strategies, folder / PICTURE)
    values = contents(run, comparison, about)
    for name in (CARD, REPORT):
        write_whole(folder / name, _render(f"{name}.j2", values).encode())
    written = [folder / CARD, folder / REPORT, folder / PICTURE]
    if comparison is not None:
        assert run.chosen is not None
        returned = run.chosen.record()
        comparison.save(folder / TABLE, returned=returned, about=about)
        written.append(folder / TABLE)
    return written


def contents(
    run: Evolution, comparison: Comparison | None, about: Mapping[str, str]
) -> dict[str, Any]:
    """Returns the values that the templates lay out, by the names that they use."""
    folder, chosen, header = run.run_dir, run.chosen, run.header()
    assert folder is not None and chosen is not None
    digest = sha256(folder / journal.FILE_NAME)
    details = {
        "weights": f"{EVOLVED}, {Path(EVOLVED).stem}.pth; SHA-256 of the row {chosen.digest}",
        "journal": f"{journal.FILE_NAME}, SHA-256 {digest}",
        "generations": str(run.de.generation),
        "seed": str(run.de.seed),
        "forward passes": f"{run.forward_passes:,}",
        "seconds": f"{run.seconds:.1f}",
        "BatchNorm statistics": run.de.population.batchnorm,
        "deevo_ext": f"{_version.__version__}, contract {header.contract}",
        **about,
    }
    sources = zip(run.de.population.names, header.checkpoints, strict=False)
    decides = {
        "configuration": header.configuration,
        "fitness": header.fitness,
        "validation": header.validation,
    }
    return {
        "folder": folder,
        "chosen": chosen,
        "soup": SOUP,
        **(_compared(comparison) if comparison else {"comparison": None}),
        "details": Table(("", "value"), list(details.items()), "<"),
        "parents": Table(("member", "file", "SHA-256"), [(n, *s) for n, s in sources], "<"),
        "configuration": json.dumps(decides, indent=2),
        "picture": PICTURE,
        "picture_base64": base64.b64encode((folder / PICTURE).read_bytes()).decode("ascii"),
        **_progress(run),
    }


def _compared(comparison: Comparison) -> dict[str, Any]:
    returned = {i for i, network in enumerate(comparison.networks) if network.returned}
    return {
        "images": f"{comparison.networks[0].images:,}",
        "comparison": Table(comparison.header, comparison.cells(), bold=returned),
        "verdict": f"{comparison.verdict} {comparison.note}".strip(),
    }


def _progress(run: Evolution) -> dict[str, Any]:
    """Returns what strategies did, the validation scores, and the share that races evaluated."""
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
    header = ("strategy", "formula, crossover", "trials", "successes", "rate", "last odds")
    scores = [
        (f"{m['generation']:.0f}", *(f"{m[f'validation/{kind}']:.5f}" for kind in KINDS))
        for m in history
        if not math.isnan(m["validation/soup"])
    ]
    raced = [metrics["racing/images"] for metrics in history if "racing/images" in metrics]
    return {
        "strategies": Table(header, strategies, "<<>"),
        "validation": Table(("generation", *KINDS), scores, ">"),
        "share_evaluated": sum(raced) / len(raced) if raced else None,
    }


def _render(template: str, values: Mapping[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("deevo_ext.reports"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values, markdown_table=markdown_table)
