"""`deevo info`: what is installed, what the machine has, which backends work."""

import logging
from typing import Any

from deevo_ext.cli.diagnostics import collect, format_report


def info() -> dict[str, Any]:
    """Report versions, the compiled extension, GPUs, usable backends, and torch's environment."""
    report = collect()
    logging.getLogger("deevo_ext").info("%s", format_report(report))
    return report
