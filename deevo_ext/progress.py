"""How far something is: a bar on a terminal, elsewhere a line every few seconds."""

from __future__ import annotations

import sys
import time
from typing import Any

SECONDS = 5.0
"""The time between two lines."""


def progress_bar(total: int | None = None, *, unit: str, shown: bool = True) -> Any:
    """Returns a bar of tqdm's for a with statement, which shows nothing unless it is `shown`.

    On a terminal and in a notebook it is drawn; elsewhere, as in a batch system's log, plain lines
    are written to stderr, the last one at the end.
    """
    from tqdm.auto import tqdm  # not needed by an import of the package
    from tqdm.std import tqdm as plain

    if sys.stderr.isatty() or _in_notebook() or not shown:
        return tqdm(total=total, unit=unit, disable=not shown)

    class Lines(plain):
        due = 0.0

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            if msg != "" and self.n and time.monotonic() >= self.due:
                self.due = time.monotonic() + SECONDS
                self.fp.write(f"{self}\n".lstrip())

        def close(self) -> None:
            if not self.disable:
                self.due, self.leave = 0.0, False
                self.display()
            super().close()

    return Lines(total=total, unit=unit, ncols=0)


def _in_notebook() -> bool:
    """Whether a notebook's kernel runs this process; ipykernel may be imported without one."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def begin_at(bar: Any, done: int) -> None:
    """Makes a bar begin at so many steps, which count for neither speed nor time left."""
    bar.initial = bar.n = bar.last_print_n = done
    bar.start_t = bar.last_print_t = time.time()


def say(text: str) -> None:
    """Writes a line to stderr, above a bar that is drawn there."""
    from tqdm.auto import tqdm

    tqdm.write(text, file=sys.stderr)
