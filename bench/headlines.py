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
_OURS = {"cpu", "cuda", "triton"}


def headlines(rows: list[Row]) -> list[Line]:
    """The lines of what was measured: operators, a generation, networks, whole runs."""
    timed = [row for row in rows if "median_s" in row]
    most = _with_most_threads(timed)
    lines: list[Line] = []
    for case in ("trials", "commit", "generation"):
        same = {"case": case, "dtype": "float32", "np": 20, "backend": _OURS}
        mine = _fastest(most, size="resnet18", **same) or _fastest(timed, size="resnet50", **same)
        if mine:
            what = f"`{case}`, {mine['np']} members of {mine['size']}, float32"
            beside = f"{mine['ratio']:.2f} x the time of copying the same traffic"
            lines.append((what, seconds(mine["median_s"]), beside))
    lines += _generation(most)
    for size in ("resnet18", "resnet50", "resnet20"):
        lines += _networks(_with_most_threads(_select(timed, case="forward", size=size)))
    return lines + _runs(timed) + _rounds(timed)


def _generation(rows: list[Row]) -> list[Line]:
    """Our generation beside each peer's, at the size where the peers were measured."""
    peers = _select(rows, case="generation", backend=set(_PEERS))
    for size in dict.fromkeys(row["size"] for row in peers):
        mine = _fastest(rows, case="generation", size=size, dtype="float32", backend=_OURS)
        if mine:
            what = f"a generation, {mine['np']} members of {mine['d'] / 1e6:.3g}M weights"
            times = [
                f"{_PEERS[row['backend']]} {row['median_s'] / mine['median_s']:.0f} x"
                for row in _select(peers, size=size, np=mine["np"])
            ]
            return [(what, seconds(mine["median_s"]), ", ".join(times))]
    return []


def _networks(rows: list[Row]) -> list[Line]:
    """Member-images per second of our network graph, by dtype, beside torch's best known ways."""
    lines: list[Line] = []
    for mine in _select(rows, backend="fused"):
        others = [
            f"{row['backend']} {row['dtype']} {row['member_images_per_s']:.0f}"
            for row in rows
            if row["backend"] not in ("fused", "members")
            and (row["dtype"] == mine["dtype"] or row["backend"] == "eager")
        ]
        note = mine["note"].partition(";")[0]
        what = f"{mine['size']}, {mine['np']} members, {note}, {mine['dtype']}"
        rate = f"{mine['member_images_per_s']:.0f} member-images/s"
        lines.append((what, rate, ", ".join(others)))
    return lines


def _runs(rows: list[Row]) -> list[Line]:
    lines: list[Line] = []
    for mine in _with_most_threads(_select(rows, case="evolve", backend="fused")):
        same = {name: mine[name] for name in ("size", "np", "dtype", "batch", "threads")}
        others = {
            "by hand in PyTorch": _fastest(rows, case="evolve", backend="eager", **same),
            "with racing": _fastest(rows, case="racing", backend="fused", **same),
        }
        beside = [f"{words} {seconds(row['median_s'])}" for words, row in others.items() if row]
        members = f"{mine['np']} members of {mine['size']}, {mine['batch']} images"
        what = f"a generation of a run: {members}"
        lines.append((what, seconds(mine["median_s"]), ", ".join(beside)))
    return lines


def _rounds(rows: list[Row]) -> list[Line]:
    """What a round of the search of recipes takes: its probes, and virtual evaluations."""
    lines: list[Line] = []
    for mine in _select(rows, case="round", backend="fused"):
        same = {name: mine[name] for name in ("case", "size", "np", "batch", "threads")}
        others = {
            "each whole": _fastest(rows, backend="unshared", **same),
            "by functional_call": _fastest(rows, backend="eager", **same),
            "by torch.compile": _fastest(rows, backend="compile", **same),
        }
        beside = [f"{words} {row['of_fused']:.1f} x" for words, row in others.items() if row]
        members = f"{mine['np']} members of {mine['size']}, {mine['batch']} images"
        lines.append((f"a round's probes: {members}", seconds(mine["median_s"]), ", ".join(beside)))
    for mine in rows:
        if "virtual_per_s" in mine:
            what = f"virtual evaluations, {mine['note'].partition(';')[0]}"
            real = f"real ones on as many images {mine['real_per_s']:.2g} / s"
            lines.append((what, f"{mine['virtual_per_s']:,.0f} / s", real))
    return lines


def _select(rows: list[Row], **fields: object) -> list[Row]:
    """The rows with these fields; a set stands for any of its values."""
    return [
        row
        for row in rows
        if all(
            row.get(name) in x if isinstance(x, set) else row.get(name) == x
            for name, x in fields.items()
        )
    ]


def _fastest(rows: list[Row], **fields: object) -> Row | None:
    return min(_select(rows, **fields), key=lambda row: row["median_s"], default=None)


def _with_most_threads(rows: list[Row]) -> list[Row]:
    return _select(rows, threads=max((row["threads"] for row in rows), default=1))
