"""How far something is: a bar on a terminal or in a notebook, else a plain line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

EVERY = 5.0
"""Seconds from one plain line to the next."""


class Progress:
    """Shows steps as they are done; used by `with`.

    total: the number of steps; unit: what one is called; shown: whether anything is to be seen.
    Where standard error is no terminal, the first step, the last one, and one every few seconds are
    a line of their own, so that a log stays readable.
    """

    def __init__(self, total: int, unit: str, shown: bool = True) -> None:
        self.total, self.unit, self.shown = total, unit, shown
        self.done = 0
        self._bar: Any = None
        self._started = self._last = -EVERY

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def begin(self, done: int = 0) -> None:
        """Starts with so many steps done already, which do not count for speed and time left."""
        from tqdm.auto import tqdm  # not needed by an import of the package

        self.done, self._started = done, time.monotonic()
        if self.shown and (sys.stderr.isatty() or "ipykernel" in sys.modules):
            self._bar = tqdm(total=self.total, initial=done, unit=self.unit)

    def step(self, text: str = "") -> None:
        """Counts a step; text: what there is to say of it."""
        self.done += 1
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(1)
            return
        now = time.monotonic()
        if self.shown and (now - self._last >= EVERY or self.done == self.total):
            self._last = now
            say(f"{self.unit} {self.done} of {self.total}, {now - self._started:.0f} s: {text}")


def say(text: str) -> None:
    """Prints a line on standard error, above the bar where there is one."""
    from tqdm.auto import tqdm

    tqdm.write(text, file=sys.stderr)
