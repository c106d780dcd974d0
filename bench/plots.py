"""PNG plots of a device's rows: bandwidth, peers, and the roofline of a network graph."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

from bench.cases import DE_PEERS, OPERATORS
from bench.fits import series
from bench.row import Row
from bench.table import seconds


def write(rows: list[Row], folder: Path) -> list[Path]:
    """Draws what the rows have; returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    written = []
    for name, draw in (("bandwidth", _bandwidth), ("peers", _peers), ("roofline", _roofline)):
        figure = pyplot.figure(figsize=(10, 4.2), layout="constrained")
        if draw(figure, [row for row in rows if "median_s" in row]):
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=110, metadata={"Software": None})
            written.append(path)
        pyplot.close(figure)
    return written


def _bandwidth(figure: Any, rows: list[Row]) -> bool:
    """Bandwidth of a generation against D and NP, beside copying; of operators by backend."""
    *along_axes, bars = figure.subplots(1, 3)
    for axis, along, label in zip(
        along_axes, ("d", "np"), ("weights D", "members NP"), strict=True
    ):
        for value, name in (("bytes_per_s", "a generation"), ("copy_bytes_per_s", "copying")):
            at, points = series(rows, "scaling", along, value)
            if len(points) > 1:
                axis.plot([x for x, _ in points], [y / 1e9 for _, y in points], "o-", label=name)
                axis.set_title(f"{'NP' if along == 'd' else 'D'} = {at}")
        axis.set(xscale="log", xlabel=label, ylabel="GB/s", ylim=(0, None))
        if axis.lines:
            axis.legend()
    cases = ("trials", "commit", "generation")
    ours = [r for r in rows if r["case"] in cases and r["backend"] in OPERATORS]
    sizes = [row["size"] for row in ours if row["case"] == "commit"]
    size = max(sizes, key=sizes.count, default="")
    kinds: dict[str, dict[str, float]] = {}
    for row in (row for row in ours if row["size"] == size):
        parts = (row["backend"], row["instruction_set"], row["dtype"], f"{row['threads']} thr")
        kind = kinds.setdefault(" ".join(filter(None, parts)), {})
        kind[row["case"]] = row["bytes_per_s"] / 1e9
    bars_of = [(f"{case}, {name}", rates[case]) for case in cases for name, rates in kinds.items()
               if case in rates]  # fmt: skip
    if bars_of:
        names, values = zip(*reversed(bars_of), strict=True)
        drawn = bars.barh(names, values)
        bars.bar_label(drawn, [f"{value:.3g}" for value in values], padding=2, fontsize=7)
        bars.tick_params(axis="y", labelsize=7)
        bars.set(xlabel="GB/s", title=f"operators, {size}", xlim=(0, 1.15 * max(values)))
    return bool(kinds) or any(axis.lines for axis in along_axes)


def _peers(figure: Any, rows: list[Row]) -> bool:
    """Seconds of a generation and of a forward pass, by who makes it."""
    from matplotlib.ticker import NullFormatter

    steps = [row for row in rows if row["case"] == "generation"]
    sizes = {row["size"] for row in steps if row["backend"] in DE_PEERS[1:]}
    steps = [row for row in steps if row["size"] in sizes and row["dtype"] == "float32"]
    passes = [row for row in rows if row["case"] == "forward"]
    ways = Counter(row["size"] for row in passes)
    size = max(ways, key=ways.__getitem__, default="")
    passes = [row for row in passes if row["size"] == size]
    most = max((row["threads"] for row in passes), default=0)
    passes = [row for row in passes if row["threads"] == most]
    titles = ("a generation, s", f"{size}, s for all members")
    for axis, chosen, title in zip(figure.subplots(1, 2), (steps, passes), titles, strict=True):
        chosen = sorted(chosen, key=lambda row: -row["median_s"])
        if chosen:
            times = [row["median_s"] for row in chosen]
            bars = axis.barh([f"{row['backend']} {row['dtype']}" for row in chosen], times)
            axis.bar_label(bars, [seconds(t) for t in times], padding=2, fontsize=7)
            axis.set(xscale="log", title=title)
            axis.set_xlim(min(times) / 2, max(times) * 4)
            axis.xaxis.set_minor_formatter(NullFormatter())
    return bool(steps or passes)


def _roofline(figure: Any, rows: list[Row]) -> bool:
    """FLOP per second of a graph's layers against FLOP per byte, below the machine's two roofs."""
    layers = [row for row in rows if row["case"] == "layers"]
    axis = figure.subplots()
    for colour, dtype in enumerate(dict.fromkeys(row["dtype"] for row in layers)):
        alike = [row for row in layers if row["dtype"] == dtype]
        intensity = [row["flops"] / row["bytes"] for row in alike]
        copy = alike[0]["bytes"] / alike[0]["limit_s"]
        product = alike[0]["flops"] / alike[0]["flop_limit_s"]
        xs = sorted({min(intensity) / 2, product / copy, max(intensity) * 2})
        roof = [min(product, copy * x) / 1e9 for x in xs]
        axis.plot(xs, roof, f"C{colour}", label=f"the machine's limit, {dtype}")
        kinds: dict[str, list[tuple[float, float]]] = {}
        for row, x in zip(alike, intensity, strict=True):
            kind = row["note"].partition(",")[0].partition(" /")[0]
            kinds.setdefault(kind, []).append((x, row["flops_per_s"] / 1e9))
        for marker, (kind, points) in zip(itertools.cycle("osD^vP*X"), kinds.items(), strict=False):
            axis.plot(*zip(*points, strict=True), marker, color=f"C{colour}", label=kind)
    axis.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="GFLOP/s")
    if layers:
        title = f"layers of {layers[0]['size'].partition('/')[0]}, {layers[0]['batch']} images"
        axis.set_title(f"{title}, {layers[0]['threads']} thread")
        axis.legend(fontsize=8, loc="lower right")
    return bool(layers)
