"""Searches of weights: what each ingredient is worth, and what bounds them."""

from __future__ import annotations

import statistics
from pathlib import Path

from deevo_ext.runs.state import SOUP
from deevo_ext.text import markdown_table

from ..csv_files import Line
from ..populations import SETTINGS
from ..variants import BOUNDS, DEFAULT, PAPER, PEERS, RECIPES, VARIANTS
from .figures import Runs, better, evolved, load, median, p_value

_LOSSES = {"fitness": "fitness_loss", "validation": "validation_loss", "test": "loss"}
EARLIER = "ingredients"
"""The file of runs on vgg-wide populations of an earlier training loop."""


def chapter(records: Path, docs: Path) -> list[str]:
    """The chapter's Markdown."""
    parts = ["## Searches of weights", ""]
    for name in (*SETTINGS, EARLIER):
        runs = load(records, name)
        variants = {what: runs[what] for what in VARIANTS if what in runs and what not in RECIPES}
        if not variants and not any(what in runs for what in (*PEERS, *BOUNDS)):
            continue
        title = f"{name}, on vgg-wide populations of an earlier training loop"
        parts += [f"### {title if name == EARLIER else name}", ""]
        if variants:
            parts += [_variants(variants), ""]
        parts += [*_bounds(runs), ""]
        if DEFAULT in variants:
            parts += [_populations(variants[DEFAULT]), ""]
    return parts[:-1] if len(parts) > 2 else []


def rates(generations: list[list[Line]]) -> dict[str, list[float]]:
    """Success rates by strategy, of the lines of each generation."""
    wins, tries = "successes of ", "trials of "
    names = [key.removeprefix(tries) for key, value in generations[0][0].items()
             if key.startswith(tries) and value is not None]  # fmt: skip
    return {
        name: [
            sum(line[wins + name] for line in lines)
            / max(1, sum(line[tries + name] for line in lines))
            for lines in generations
        ]
        for name in names
    }


def _variants(variants: dict[str, Runs]) -> str:
    header = ("variant", "n", "loss - greedy soup", "better in", "p", "loss - paper", "p",
              "loss - default", "p, two-sided", "top-1 - greedy soup", "gained / lost",
              "passes")  # fmt: skip
    lines = []
    for name, runs in variants.items():
        ours = [evolved(run) for run in runs.values()]
        loss, top1 = (
            [evolved(run)[figure] - run[SOUP][figure] for run in runs.values()]
            for figure in ("loss", "top1")
        )
        against, changed = (_paired(runs, variants.get(other, {})) for other in (PAPER, DEFAULT))
        gained, lost = (f"{median(ours, figure):.0f}" for figure in ("gained", "lost"))
        lines.append(
            (
                name,
                str(len(loss)),
                f"{statistics.median(loss):+.4f}",
                str(sum(d < 0 for d in loss)),
                p_value(better(loss)),
                _middle(against),
                p_value(better(against)),
                _middle(changed),
                p_value(better(changed, "two-sided")),
                f"{statistics.median(top1):+.4f}",
                f"{gained} / {lost}",
                f"{median(ours, 'forward_passes'):,.0f}",
            )
        )
    return markdown_table(header, lines)


def _paired(runs: Runs, other: Runs) -> list[float]:
    """Test losses of evolved networks less those that another variant made of the populations."""
    return [evolved(runs[s])["loss"] - evolved(other[s])["loss"] for s in runs if s in other]


def _middle(differences: list[float]) -> str:
    """The median; nothing for a variant against itself."""
    return f"{statistics.median(differences):+.4f}" if any(differences) else ""


def _bounds(runs: dict[str, Runs]) -> list[str]:
    lines = []
    for name in (name for name in (*PEERS, *BOUNDS) if name in runs):
        pairs = [(evolved(run), run[SOUP]) for run in runs[name].values()]
        gaps = {
            images: statistics.median(fitted[loss] - soup[loss] for fitted, soup in pairs)
            for images, loss in _LOSSES.items()
            if pairs[0][0][loss] is not None
        }
        lines.append(
            f"`{name}` (n = {len(pairs)}), loss minus the greedy soup's: "
            + ", ".join(f"{gap:+.4f} on {images}" for images, gap in gaps.items())
            + ".  "
        )
    return lines


def _populations(runs: Runs) -> str:
    """All populations of the default, one by one."""
    header = ("population", "best parent", "average", "greedy soup", "ensemble", "evolved",
              "difference", "95 % interval", "gained / lost", "returned")  # fmt: skip
    initial = ("best parent", "initial weight average", SOUP, "logit ensemble")
    lines = []
    for population, run in runs.items():
        ours = evolved(run)
        kind = ours["network"].removeprefix("evolved ").removeprefix("and ")
        lines.append(
            (
                str(population),
                *(f"{run[name]['loss']:.4f}" for name in initial),
                f"{ours['loss']:.4f}",
                f"{ours['difference']:+.4f}",
                f"{ours['low']:+.4f} to {ours['high']:+.4f}",
                f"{ours['gained']} / {ours['lost']}",
                f"{kind}, generation {ours['generation']}",
            )
        )
    return markdown_table(header, lines)
