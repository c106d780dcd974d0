"""How cost grows: exponents fitted to the rows of case `scaling`, memory against members."""

from __future__ import annotations

from collections import Counter

import numpy as np

from bench.row import Row

Points = list[tuple[float, float]]


def exponent(points: Points) -> float:
    """The least-squares slope of log y over log x."""
    x, y = (np.log(column) for column in np.array(points).T)
    return float(np.polyfit(x, y, 1)[0])


def series(rows: list[Row], case: str, along: str, value: str) -> tuple[int, Points]:
    """Points (x, value) along `d` or `np`; first the other one's value that has most of them."""
    other = "np" if along == "d" else "d"
    usable = [row for row in rows if row["case"] == case and row["dtype"] == "float32"]
    usable = [row for row in usable if value in row]
    steps = {row[other]: {r[along] for r in usable if r[other] == row[other]} for row in usable}
    counts = Counter({at: len(values) for at, values in steps.items()})
    if not counts:
        return 0, []
    at = counts.most_common(1)[0][0]
    points = [(float(row[along]), float(row[value])) for row in usable if row[other] == at]
    return at, sorted(set(points))


def fits(rows: list[Row]) -> list[str]:
    """One line each for cost against D, cost against NP and memory against NP, where measured."""
    lines = []
    for along, other in (("d", "NP"), ("np", "D")):
        at, points = series(rows, "scaling", along, "median_s")
        if len(points) < 2:
            continue
        text = f"seconds per generation grow as {along.upper()}^{exponent(points):.2f} from "
        text += f"{points[0][0]:.0f} to {points[-1][0]:.0f} at {other} = {at}"
        upper = points[len(points) // 2 :]
        if len(upper) > 1 and len(points) > 3:
            text += f", as {along.upper()}^{exponent(upper):.2f} from {upper[0][0]:.0f} on"
        lines.append(text)
    at, points = series(rows, "memory", "np", "peak_bytes")
    if len(points) > 1:
        members, peaks = np.array(points).T
        slope, start = np.polyfit(members, peaks, 1)
        row_bytes = at * 4
        lines.append(
            f"peak memory is {start / 2**20:.0f} MiB and {slope / row_bytes:.3f} float32 rows a "
            f"member, from NP = {points[0][0]:.0f} to {points[-1][0]:.0f} at D = {at}"
        )
    return lines
