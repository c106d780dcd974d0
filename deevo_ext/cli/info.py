"""`deevo info`: what is installed, what the machine has, which backends work."""

import json
from typing import Annotated

import typer

from deevo_ext.cli.diagnostics import collect, format_report


def info(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as one JSON object.")
    ] = False,
) -> None:
    """Report versions, the compiled extension, GPUs, usable backends, and torch's environment."""
    report = collect()
    print(json.dumps(report, indent=2) if as_json else format_report(report))
