"""The few lines that a page begins with, each computed from rows of one run."""

from __future__ import annotations

from bench.row import Row
from bench.table import seconds

Line = tuple[str, str, str]
"""What, its value, and what it is to be held against."""

_PEERS = {
    "torch-loop": "a careful PyTorch loop",
    "torch-vectorised": "vectorised PyTorch",
    "torch-compile": "the same by torch.compile",
    "evox-de": "EvoX DE",
    "evox-shade": "EvoX SHADE",
    "evosax-de": "evosax DE",
}


def headlines(rows: list[Row]) -> list[Line]:
    """Of what was measured: operators, a generation, networks, whole runs."""
    timed = [row for row in rows if "median_s" in row]
    threads = max((row["threads"] for row in timed), default=1)
    most = [row for row in timed if row["threads"] == threads]
    own = {"cpu", "cuda", "triton"}
    lines: list[Line] = []
    for case in ("trials", "commit", "generation"):
        mine = _one(most, case=case, size="resnet18", dtype="float32", np=20, backend=own)
        if mine is None:
            mine = _one(timed, case=case, size="resnet50", dtype="float32", np=20, backend=own)
        if mine is not None:
            lines.append((
                f"`{case}`, {mine['np']} members of {mine['size']}, float32",
                seconds(mine["median_s"]),
                f"{mine['ratio']:.2f} x the time of copying the same traffic",
            ))  # fmt: skip
    lines += _generation(most, own)
    for size in ("resnet18", "resnet50", "resnet20"):
        lines += _networks(timed, size)
    lines += _runs(timed)
    return lines


def _generation(rows: list[Row], own: set[str]) -> list[Line]:
    """Our generation beside each peer's, at the size where the peers were measured."""
    peers = [row for row in rows if row["case"] == "generation" and row["backend"] in _PEERS]
    for size in dict.fromkeys(row["size"] for row in peers):
        mine = _one(rows, case="generation", size=size, dtype="float32", backend=own)
        if mine is None:
            continue
        times = [
            f"{_PEERS[row['backend']]} {row['median_s'] / mine['median_s']:.0f} x"
            for row in peers
            if row["size"] == size and row["np"] == mine["np"]
        ]
        what = f"a generation, {mine['np']} members of {_count(mine)} weights"
        return [(what, seconds(mine["median_s"]), ", ".join(times))]
    return []


def _networks(rows: list[Row], size: str) -> list[Line]:
    """Member-images per second of the fused plan, by dtype, beside torch's best known ways."""
    found = [row for row in rows if row["case"] == "forward" and row["size"] == size]
    found = [row for row in found if row["threads"] == max(row["threads"] for row in found)]
    lines: list[Line] = []
    for mine in (row for row in found if row["backend"] == "fused"):
        others = [
            f"{row['backend']} {row['dtype']} {row['member_images_per_s']:.0f}"
            for row in found
            if row["backend"] not in ("fused", "members")
            and (row["dtype"] == mine["dtype"] or row["backend"] == "eager")
        ]
        what = f"{size}, {mine['np']} members, {mine['note'].partition(';')[0]}, {mine['dtype']}"
        lines.append(
            (what, f"{mine['member_images_per_s']:.0f} member-images/s", ", ".join(others))
        )
    return lines


def _runs(rows: list[Row]) -> list[Line]:
    lines: list[Line] = []
    for mine in rows:
        if mine["case"] != "evolve" or mine["backend"] != "fused":
            continue
        same = {name: mine[name] for name in ("size", "np", "dtype", "batch")}
        beside = []
        for case, backend, words in (
            ("evolve", "eager", "by hand in PyTorch"),
            ("racing", "fused", "with racing"),
        ):
            other = _one(rows, case=case, backend={backend}, **same)
            if other is not None:
                beside.append(f"{words} {seconds(other['median_s'])}")
        what = (
            f"a generation of a run: {mine['np']} members of {mine['size']}, {mine['batch']} images"
        )
        lines.append((what, seconds(mine["median_s"]), ", ".join(beside)))
    return lines


def _one(rows: list[Row], backend: set[str], **fields: object) -> Row | None:
    """The fastest row with these fields."""
    found = [
        row
        for row in rows
        if row["backend"] in backend and all(row.get(name) == x for name, x in fields.items())
    ]
    return min(found, key=lambda row: row["median_s"], default=None)


def _count(row: Row) -> str:
    return f"{row['d'] / 1e6:.3g}M"
