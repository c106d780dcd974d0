"""The committed results as Markdown tables and plots; statistics as design 6 asks for them."""

from __future__ import annotations

import io
import json
import statistics
from pathlib import Path
from typing import Any

from scipy.stats import wilcoxon

from deevo_ext.files import write_whole
from deevo_ext.reports.plots import success_rates

from .populations import SETTINGS
from .variants import BOUNDS, PEERS, VARIANTS

SOUP = "initial greedy soup"
DEFAULT, PAPER = "default", "paper"
# In the plot of diversity, which has room for a few.
SHOWN = (PAPER, DEFAULT, "no-soups", "trig-adapted", "archive", "tensor")
Record = dict[str, Any]


def load(results: Path, setting: str, variant: str) -> dict[int, Record]:
    """Records by population."""
    folder = results / setting / variant
    return {int(path.stem): json.loads(path.read_text()) for path in sorted(folder.glob("??.json"))}


def row_of(record: Record, name: str) -> Record:
    return next(row for row in record["comparison"]["rows"] if row["name"] == name)


def evolved(record: Record) -> Record:
    """The row of the candidate that validation chose."""
    return next(row for row in record["comparison"]["rows"] if row["returned"])


def better(differences: list[float], alternative: str = "less") -> float | None:
    """p of the paired Wilcoxon test, one-sided: that differences lie below 0; None if untestable.

    alternative: scipy's; "two-sided" asks whether they lie on either side.
    """
    if len(differences) < 5 or not any(differences):
        return None
    return float(wilcoxon(differences, alternative=alternative).pvalue)


def write(results: Path, docs: Path) -> None:
    """`evidence-tables.md` and the plots."""
    parts = ["<!-- made by `python -m experiments report` -->", ""]
    for setting in SETTINGS:
        found = {name: load(results, setting, name) for name in VARIANTS}
        found = {name: records for name, records in found.items() if records}
        if not found:
            continue
        parts += [f"## {setting}", "", *_networks(found), ""]
        parts += [*_variants(found), "", *_bounds(results, setting), ""]
        if DEFAULT in found:
            parts += [*_populations(found[DEFAULT]), ""]
        _plot(found, docs / f"evidence-{setting}.png")
        parts += [f"![Diversity and success rates]({'evidence-' + setting}.png)", ""]
    write_whole(docs / "evidence-tables.md", "\n".join(parts).encode())


def _networks(found: dict[str, dict[int, Record]]) -> list[str]:
    """Median test loss and top-1 of every network of the comparison, for the default."""
    records = list((found.get(DEFAULT) or next(iter(found.values()))).values())
    lines = [
        "| network | test loss | top-1 | inference | forward passes to find it |",
        "|---|---|---|---|---|",
    ]
    for row in records[0]["comparison"]["rows"]:
        rows = [row_of(record, row["name"]) for record in records]
        lines.append(
            f"| {row['name']} | {_median(rows, 'loss'):.4f} | {_median(rows, 'top1'):.4f} | "
            f"x{row['inference']} | {_median(rows, 'forward_passes'):,.0f} |"
        )
    return lines


def _variants(found: dict[str, dict[int, Record]]) -> list[str]:
    lines = [
        "| variant | n | loss - greedy soup | better in | p | loss - paper | p | "
        "loss - default | p, two-sided | top-1 - greedy soup | gained / lost | passes |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, records in found.items():
        ours = {seed: evolved(record) for seed, record in records.items()}
        soup = {seed: row_of(record, SOUP) for seed, record in records.items()}
        loss = [ours[seed]["loss"] - soup[seed]["loss"] for seed in ours]
        top1 = [ours[seed]["top1"] - soup[seed]["top1"] for seed in ours]
        against, changed = (_paired(ours, found.get(other, {})) for other in (PAPER, DEFAULT))
        lines.append(
            f"| {name} | {len(loss)} | {statistics.median(loss):+.4f} | "
            f"{sum(d < 0 for d in loss)} | {_p(better(loss))} | "
            f"{_middle(against)} | {_p(better(against))} | "
            f"{_middle(changed)} | {_p(better(changed, 'two-sided'))} | "
            f"{statistics.median(top1):+.4f} | {_median(list(ours.values()), 'gained'):.0f} / "
            f"{_median(list(ours.values()), 'lost'):.0f} | "
            f"{statistics.median(r['forward_passes'] for r in records.values()):,.0f} |"
        )
    return lines


def _paired(ours: dict[int, Record], other: dict[int, Record]) -> list[float]:
    """Test losses of evolved networks less those that another variant made of the populations."""
    return [ours[s]["loss"] - evolved(other[s])["loss"] for s in ours if s in other]


def _middle(differences: list[float]) -> str:
    """The median; nothing for a variant against itself."""
    return f"{statistics.median(differences):+.4f}" if any(differences) else ""


def _bounds(results: Path, setting: str) -> list[str]:
    lines = []
    for name in (*PEERS, *BOUNDS):
        records = list(load(results, setting, name).values())
        if not records:
            continue
        gaps = {
            images: statistics.median(
                r[images]["learned"][0] - r[images]["greedy soup"][0] for r in records
            )
            for images in ("fitness", "validation", "test")
            if images in records[0]
        }
        lines.append(
            f"`{name}` ({len(records)} populations), loss minus the greedy soup's: "
            + ", ".join(f"{gap:+.4f} on {images}" for images, gap in gaps.items())
            + ".  "
        )
    return lines


def _populations(records: dict[int, Record]) -> list[str]:
    """All populations of the default, one by one."""
    lines = [
        "| population | best parent | average | greedy soup | ensemble | evolved | difference | "
        "95 % interval | gained / lost | returned |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for seed, record in records.items():
        loss = {row["name"]: row["loss"] for row in record["comparison"]["rows"]}
        ours, table = evolved(record), record["comparison"]
        low, high = table["interval"]
        lines.append(
            f"| {seed} | {loss['best parent']:.4f} | {loss['initial weight average']:.4f} | "
            f"{loss[SOUP]:.4f} | {loss['logit ensemble']:.4f} | {ours['loss']:.4f} | "
            f"{table['difference']:+.4f} | {low:+.4f} to {high:+.4f} | "
            f"{ours['gained']} / {ours['lost']} | {record['returned']['kind']}, generation "
            f"{record['returned']['generation']} |"
        )
    return lines


def _plot(found: dict[str, dict[int, Record]], path: Path) -> None:
    """Diversity of variants `SHOWN`; success rates by strategy of `paper` and the default."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    for name in (name for name in SHOWN if name in found):
        histories = [record["history"] for record in found[name].values()]
        length = min(map(len, histories))
        axes[0].semilogy(
            range(1, length + 1),
            [statistics.median(h[g]["diversity"] for h in histories) for g in range(length)],
            label=name,
        )
    axes[0].set_title("RMS distance between members")
    axes[0].legend(fontsize="x-small")
    for axis, name in zip(axes[1:], (PAPER, DEFAULT), strict=True):
        histories = [record["history"] for record in found.get(name, {}).values()]
        if not histories:
            continue
        keys = [key for key in histories[0][0] if key.endswith("/trials") and "strategy/" in key]
        for strategy in (key.split("/", 1)[1].rsplit("/", 1)[0] for key in keys):
            summed = [
                {
                    f"strategy/{strategy}/{what}": sum(
                        h[g][f"strategy/{strategy}/{what}"] for h in histories
                    )
                    for what in ("trials", "successes")
                }
                for g in range(min(map(len, histories)))
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


def _median(rows: list[Record], key: str) -> float:
    return float(statistics.median(row[key] for row in rows))


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if value >= 0.0001 else "< 0.0001"
