"""All stored results as one page: `python -m bench.report` writes REPORT.md and plots.

Reads bench/results/*/*.json, as --json writes them. `--check` writes nothing, and fails where the
page is not what the stored rows give.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bench

bench.prefer_installed()

from bench.fits import fits  # noqa: E402
from bench.headlines import headlines  # noqa: E402
from bench.row import Row, identity  # noqa: E402
from bench.table import table  # noqa: E402
from deevo_ext.text import markdown_table  # noqa: E402

RESULTS = bench.ROOT / "bench" / "results"
SECTIONS = {
    "The machine": ("copy", "peak", "matmul"),
    "Operators": ("plan", "tell", "plan+tell", "trials", "trials-six", "commit", "step", "graph"),
    "A generation, and what else one could use for it": ("generation",),
    "Growth": ("scaling",),
    "Memory": ("memory",),
    "What an evaluation needs beside the network": ("fold", "head"),
    "What a search of recipes needs": ("compose", "linear_scores", "round"),
    "Populations of networks": ("forward",),
    "Layers of the network graph": ("layers",),
    "Whole generations of a run": ("evolve", "racing", "ranks"),
    "Images": ("decode", "feed"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page and the plots; with --check 1 where the page is stale."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only fail where the page is stale")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"default {RESULTS}")
    parser.add_argument("--no-plots", action="store_true", help="leave the PNG files as they are")
    options = parser.parse_args(arguments)
    devices = stored(options.results)
    if not (options.check or options.no_plots):
        from bench import plots

        for name, rows in devices.items():
            for path in plots.write(rows, options.results / name):
                print(f"wrote {path}", file=sys.stderr)
    page = options.results / "REPORT.md"
    text = report(devices, options.results)
    if options.check:
        stale = not page.exists() or page.read_text() != text
        if stale:
            print(f"{page} is not what the stored rows give: run python -m bench.report")
        return int(stale)
    page.write_text(text)
    print(f"wrote {page}", file=sys.stderr)
    return 0


def stored(results: Path) -> dict[str, list[Row]]:
    """Rows by folder, of all files in it; of rows that several files have, the newest."""
    devices: dict[str, dict[tuple[Any, ...], Row]] = {}
    for path in sorted(results.glob("*/*.json")):
        if path.name == "summary.json":
            continue
        newest = devices.setdefault(path.parent.name, {})
        for row in json.loads(path.read_text()):
            before = newest.get(identity(row))
            if before is None or before["date"] <= row["date"]:
                newest[identity(row)] = row
    return {name: list(rows.values()) for name, rows in devices.items() if rows}


def report(devices: dict[str, list[Row]], results: Path) -> str:
    """The whole page; pictures that there are in `results` are shown."""
    lines = [
        "# Measured",
        "",
        "Made by `python -m bench.report` from the rows stored here; [README.md](README.md) says "
        "how they were measured and what the columns mean.",
    ]
    for name, rows in devices.items():
        lines += ["", f"## {name}", "", *_machine(rows), ""]
        for what, value, beside in headlines(rows):
            lines.append(f"- {what}: {value} ({beside})" if beside else f"- {what}: {value}")
        lines += [f"- {line}" for line in fits(rows)]
        for picture in ("bandwidth", "peers", "roofline"):
            if (results / name / f"{picture}.png").exists():
                lines += ["", f"![{picture}]({name}/{picture}.png)"]
        for title, cases in SECTIONS.items():
            chosen = [row for row in rows if row["case"] in cases]
            if chosen:
                lines += [
                    "",
                    f"### {title}",
                    "",
                    _commits(chosen),
                    "",
                    table(chosen, markdown_table),
                ]
                lines += ["", *_commands(chosen)]
    return "\n".join(lines) + "\n"


def _commits(rows: list[Row]) -> str:
    """Says at which commits a table's rows were measured."""
    commits = dict.fromkeys(_short(str(row["commit"])) for row in rows)
    return f"Commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}."


def _short(commit: str) -> str:
    name, dash, dirty = commit.partition("-")
    return f"{name[:12]}{dash}{dirty}"


def _commands(rows: list[Row]) -> list[str]:
    """The commands that measure a table's rows again, folded away."""
    commands = list(dict.fromkeys(row["command"] for row in rows))
    return ["<details><summary>Commands</summary>", "", "```", *commands, "```", "", "</details>"]


def _machine(rows: list[Row]) -> list[str]:
    """What the rows were measured on; each value once, or all that there are."""
    facts = ("gpu", "driver", "torch_cuda", "cpu", "cores", "python", "torch", "triton",
             "deevo_ext", "omp_num_threads")  # fmt: skip
    lines = []
    for fact in facts:
        values = list(dict.fromkeys(str(row[fact]) for row in rows if row.get(fact) is not None))
        if values:
            lines.append((fact, ", ".join(values)))
    loads = [row["load_average"] for row in rows]
    dates = sorted(row["date"] for row in rows)
    lines.append(("date", f"{dates[0]} to {dates[-1]}"))
    lines.append(("load average", f"{min(loads)} to {max(loads)}, the benchmark's own included"))
    return markdown_table(("machine", ""), lines, "<").splitlines()


if __name__ == "__main__":
    raise SystemExit(main())
