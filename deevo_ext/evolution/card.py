"""What a finished run leaves for its readers: model card, report, table, pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from deevo_ext import _version
from deevo_ext.evolution import journal
from deevo_ext.evolution.document import (
    Block,
    Code,
    Heading,
    Paragraph,
    Picture,
    Table,
    to_html,
    to_markdown,
)
from deevo_ext.evolution.plots import plot_run
from deevo_ext.evolution.report import HEAD, Comparison
from deevo_ext.evolution.run import Evolution
from deevo_ext.evolution.storage import EVOLVED
from deevo_ext.files import write_whole

TABLE = "table.json"
CARD, REPORT, PICTURE = "model_card.md", "report.html", "evolution.png"


def write_documents(
    run: Evolution, comparison: Comparison | None, about: Mapping[str, str] | None = None
) -> list[Path]:
    """Writes table, card, report and picture of a finished run into its folder; their paths.

    about: further lines for the table "The run", such as the architecture's name and the images.
    Needs matplotlib.
    """
    folder = run.run_dir
    assert folder is not None
    strategies = [strategy.name for strategy in run.de.configuration.strategies]
    plot_run(run.history, strategies, folder / PICTURE)
    blocks = card_blocks(run, comparison, about or {})
    shown = Picture((folder / PICTURE).read_bytes(), PICTURE, "Fitness, success and diversity")
    card = [*blocks, Heading("How it went"), shown]
    write_whole(folder / CARD, to_markdown(card).encode())
    report = [*card, *_course(run)]
    write_whole(folder / REPORT, to_html(report, f"deevo_ext: {folder.name}").encode())
    written = [folder / CARD, folder / REPORT, folder / PICTURE]
    if comparison is not None:
        returned = run.course.chosen().record()
        comparison.save(folder / TABLE, returned=returned, about=dict(about or {}))
        written.append(folder / TABLE)
    return written


def card_blocks(
    run: Evolution, comparison: Comparison | None, about: Mapping[str, str]
) -> list[Block]:
    """The model card."""
    folder = run.run_dir
    assert folder is not None
    chosen, header = run.course.chosen(), run.header()
    population = run.de.population
    digest = hashlib.sha256((folder / journal.FILE_NAME).read_bytes()).hexdigest()
    kinds = {"member": "a member", "mean": "the mean", "soup": "a greedy soup"}
    blocks: list[Block] = [
        Heading("Model card", 1),
        Paragraph(
            f"One network, evolved without gradients from the {population.initial_size} "
            f"checkpoints below by differential evolution: {kinds[chosen.kind]} of the population "
            f"at generation "
            f"{chosen.generation}, which validation images chose "
            f"({len(chosen.members)} member{'s' * (len(chosen.members) > 1)}, "
            f"validation score {chosen.score:.5g}). It costs what one of its parents costs."
        ),
    ]
    if comparison is not None:
        marked = frozenset(i for i, row in enumerate(comparison.rows) if row.returned)
        blocks += [
            Heading(f"On {comparison.rows[0].images:,} test images"),
            Table(HEAD, [(c[0][2:], *c[1:]) for c in comparison.cells()], marked),
            Paragraph(
                "gained, lost: images right here and wrong under the initial greedy soup, and the "
                "reverse; p: McNemar's exact test of the two; passes, seconds: spent to find it."
            ),
            Paragraph(f"{comparison.verdict} {comparison.note}".strip()),
        ]
    details = {
        "weights": f"{EVOLVED}, {Path(EVOLVED).stem}.pth; SHA-256 of the row {chosen.digest}",
        "journal": f"{journal.FILE_NAME}, SHA-256 {digest}",
        "generations": str(run.de.generation),
        "seed": str(run.de.seed),
        "forward passes": f"{run.forward_passes:,}",
        "seconds": f"{run.seconds:.1f}",
        "BatchNorm statistics": population.batchnorm,
        "deevo_ext": f"{_version.__version__}, contract {header['contract']}",
        **about,
    }
    sources = header["checkpoints"]
    blocks += [
        Heading("The run"),
        Table(("", "value"), list(details.items())),
        Paragraph("The same weights again, bit for bit, from the journal and the parents:"),
        Code(f"deevo replay {folder} --out model.safetensors"),
        Heading("Parents"),
        Table(
            ("member", "file", "SHA-256"),
            [
                (name, path, sha)
                for name, (path, sha) in zip(population.names, sources, strict=False)
            ],
        ),
        Heading("Configuration"),
        Code(json.dumps({k: header[k] for k in _DECIDES}, indent=2)),
    ]
    return blocks


_DECIDES = ("configuration", "fitness", "validation")


def _course(run: Evolution) -> list[Block]:
    """What each strategy did, and the validation scores on the way."""
    strategies = []
    for strategy in run.de.configuration.strategies:
        key = f"strategy/{strategy.name}"
        trials = sum(m[f"{key}/trials"] for m in run.history)
        wins = sum(m[f"{key}/successes"] for m in run.history)
        rate = f"{wins / trials:.0%}" if trials else "-"
        odds = f"{run.history[-1][f'{key}/odds']:.2f}" if run.history else "-"
        formula = f"{strategy.formula}, {strategy.crossover}"
        strategies.append((strategy.name, formula, f"{trials:.0f}", f"{wins:.0f}", rate, odds))
    head = ("strategy", "formula, crossover", "trials", "successes", "rate", "last odds")
    blocks: list[Block] = [Heading("Strategies"), Table(head, strategies)]
    kinds = ("member", "mean", "soup")
    scores = [
        (f"{m['generation']:.0f}", *(f"{m[f'validation/{kind}']:.5f}" for kind in kinds))
        for m in run.history
        if m["validation/soup"] == m["validation/soup"]
    ]
    if scores:
        blocks += [Heading("Validation"), Table(("generation", *kinds), scores)]
    if run.history and "racing/images" in run.history[0]:
        share = sum(m["racing/images"] for m in run.history) / len(run.history)
        blocks.append(
            Paragraph(f"Races: trials were evaluated on {share:.1%} of the images on average.")
        )
    return blocks
