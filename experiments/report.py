"""The committed records as Markdown tables and plots."""

from __future__ import annotations

import io
import statistics
from pathlib import Path

from scipy.stats import wilcoxon

from deevo_ext.files import write_whole
from deevo_ext.reports.plots import success_rates
from deevo_ext.runs.state import SOUP
from deevo_ext.text import markdown_table

from .csv_files import Line, read
from .populations import SETTINGS
from .variants import BOUNDS, DEFAULT, PAPER, PEERS, PLOTTED, RATED, RECIPE, VARIANTS

Run = dict[str, Line]
"""The networks of one run by name."""
Runs = dict[int, Run]
"""The runs of one variant by population."""
_LOSSES = {"fitness": "fitness_loss", "validation": "validation_loss", "test": "loss"}


def load(records: Path, setting: str) -> dict[str, Runs]:
    """The runs of a setting by variant, peer or bound."""
    variants: dict[str, Runs] = {}
    for line in read(records, setting):
        run = variants.setdefault(line["variant"], {}).setdefault(line["population"], {})
        run[line["network"]] = line
    return variants


def evolved(run: Run) -> Line:
    """The network that counts: of evolution, the evolved candidate that validation chose."""
    return next(line for line in run.values() if line["returned"])


def better(differences: list[float], alternative: str = "less") -> float | None:
    """p of the paired Wilcoxon test, one-sided: that differences lie below 0; None if untestable.

    alternative: scipy's; "two-sided" asks whether they lie on either side.
    """
    if len(differences) < 5 or not any(differences):
        return None
    return float(wilcoxon(differences, alternative=alternative).pvalue)


def write(records: Path, docs: Path) -> None:
    """`evidence-tables.md` and the plots."""
    parts = ["<!-- made by `python -m experiments report` -->", ""]
    curves = read(records, "curves")
    for setting in SETTINGS:
        runs = load(records, setting)
        variants = {name: runs[name] for name in VARIANTS if name in runs}
        if not variants:
            continue
        parts += [f"## {setting}", "", _networks(variants), ""]
        parts += [_variants(variants), "", *_bounds(runs), ""]
        if DEFAULT in variants:
            parts += [_populations(variants[DEFAULT]), ""]
        if RECIPE in variants:
            lines = [line for line in read(records, "rounds") if line["setting"] == setting]
            parts += [_recipes(variants[RECIPE], lines), ""]
        picture = f"evidence-{setting}.png"
        if generations := [line for line in curves if line["setting"] == setting]:
            _plot(generations, docs / picture)
            parts += [f"![Diversity and success rates]({picture})", ""]
    write_whole(docs / "evidence-tables.md", "\n".join(parts).encode())


def _networks(variants: dict[str, Runs]) -> str:
    """Median test loss and top-1 of every network of the comparison, for the default."""
    runs = list((variants.get(DEFAULT) or next(iter(variants.values()))).values())
    header = ("network", "test loss", "top-1", "inference", "forward passes to find it")
    lines = []
    for name in runs[0]:
        measured = [run[name] for run in runs]
        losses = (f"{_median(measured, 'loss'):.4f}", f"{_median(measured, 'top1'):.4f}")
        passes = f"{_median(measured, 'forward_passes'):,.0f}"
        lines.append((name, *losses, f"x{measured[0]['inference']}", passes))
    return markdown_table(header, lines)


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
        gained, lost = (f"{_median(ours, figure):.0f}" for figure in ("gained", "lost"))
        lines.append(
            (
                name,
                str(len(loss)),
                f"{statistics.median(loss):+.4f}",
                str(sum(d < 0 for d in loss)),
                _p(better(loss)),
                _middle(against),
                _p(better(against)),
                _middle(changed),
                _p(better(changed, "two-sided")),
                f"{statistics.median(top1):+.4f}",
                f"{gained} / {lost}",
                f"{_median(ours, 'forward_passes'):,.0f}",
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
            f"`{name}` ({len(pairs)} populations), loss minus the greedy soup's: "
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


def _recipes(runs: Runs, rounds: list[Line]) -> str:
    """All populations of the search of coefficients: what evolution and refit add to the soup."""
    networks = ("classifier refitted", "evolved recipe", "evolved and refitted")
    header = ("population", "greedy soup", *networks, "counts", "passes in rounds",
              "steps / rounds", "steps of DE")  # fmt: skip
    lines = []
    for population, run in runs.items():
        ours = [line for line in rounds if line["population"] == population]
        taken = [line for line in ours if line["accepted"]]
        lines.append(
            (
                str(population),
                f"{run[SOUP]['loss']:.4f} / {run[SOUP]['top1']:.2%}",
                *(_beyond(run.get(name), run[SOUP]) for name in networks),
                evolved(run)["network"],
                f"{sum(line['forward_passes'] for line in ours):,}",
                f"{len(taken)} / {len(ours)}",
                str(sum(line["by_de"] for line in taken)),
            )
        )
    return markdown_table(header, lines)


def _beyond(network: Line | None, soup: Line) -> str:
    """Test loss and top-1, in points, less the soup's; nothing for a network that there is not."""
    if network is None:
        return ""
    points = 100 * (network["top1"] - soup["top1"])
    return f"{network['loss'] - soup['loss']:+.4f} / {points:+.2f}"


def _plot(curves: list[Line], path: Path) -> None:
    """Diversity of the variants `PLOTTED`; success rates by strategy of those in `RATED`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    for name in PLOTTED:
        if generations := _by_generation(curves, name):
            axes[0].semilogy(
                range(1, len(generations) + 1),
                [_median(lines, "diversity") for lines in generations],
                label=name,
            )
    axes[0].set_title("RMS distance between members")
    axes[0].legend(fontsize="x-small")
    for axis, name in zip(axes[1:], RATED, strict=True):
        generations = _by_generation(curves, name)
        if not generations:
            continue
        first = generations[0][0]
        trials = "trials of "
        rated = [column for column in first if column.startswith(trials)]
        for strategy in (c.removeprefix(trials) for c in rated if first[c] is not None):
            summed = [
                {
                    f"strategy/{strategy}/{what}": sum(
                        line[f"{what} of {strategy}"] for line in each
                    )
                    for what in ("trials", "successes")
                }
                for each in generations
            ]
            axis.plot(range(1, len(summed) + 1), success_rates(summed, strategy), label=strategy)
        axis.set_title(f"success rate, 10 generations: {name}")
        axis.set_ylim(0, 1)
        axis.legend(fontsize="x-small")
    for axis in axes:
        axis.set_xlabel("generation")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, metadata={"Software": None})
    write_whole(path, buffer.getvalue())


def _by_generation(curves: list[Line], variant: str) -> list[list[Line]]:
    """The populations' lines of each generation that all runs of the variant have."""
    generations: dict[int, list[Line]] = {}
    for line in curves:
        if line["variant"] == variant:
            generations.setdefault(line["generation"], []).append(line)
    return [lines for lines in generations.values() if len(lines) == len(generations[1])]


def _median(lines: list[Line], key: str) -> float:
    return float(statistics.median(line[key] for line in lines))


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if value >= 0.0001 else "< 0.0001"
