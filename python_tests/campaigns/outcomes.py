"""How a campaign's cases end, counted; and how large a campaign is.

`DEEVO_CAMPAIGNS=full pytest -s python_tests/campaigns` runs every case and prints the counts;
without it each campaign takes some of its cases, spread over all of them, as continuous integration
does.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from deevo_ext.errors import DeevoError

FULL = os.environ.get("DEEVO_CAMPAIGNS") == "full"
Case = TypeVar("Case")


def some(cases: Sequence[Case], count: int) -> list[Case]:
    """All cases in a full campaign, else about `count` of them, evenly spread."""
    return list(cases) if FULL else list(cases[:: max(1, len(cases) // count)])


class Outcomes:
    """Counts results and refusals; whatever else happens is a failure, which is kept.

    type_errors: the share of cases that may end in a plain TypeError.
    """

    def __init__(self, campaign: str, type_errors: float = 0.0) -> None:
        self.campaign, self.type_errors = campaign, type_errors
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []

    def of(self, what: str, call: Callable[[], object]) -> str:
        """Makes a call and returns how it ended."""
        try:
            call()
            outcome = "results"
        except DeevoError:
            outcome = "refusals"
        except Exception as error:
            plain = isinstance(error, TypeError) and self.type_errors
            outcome = "type errors" if plain else "failures"
            if not plain:
                self.failures.append(f"{what}: {type(error).__name__}: {str(error)[:160]}")
            elif FULL:
                print(f"{what}: TypeError: {str(error)[:160]}", file=sys.stderr)
        self.counts[outcome] += 1
        return outcome

    def fail(self, what: str) -> None:
        """Adds a case that went wrong in another way."""
        self.counts["failures"] += 1
        self.failures.append(what)

    def check(self) -> None:
        """Prints the counts, and raises AssertionError where there were failures."""
        size = "full" if FULL else "small"
        counts = ", ".join(f"{count:,} {name}" for name, count in sorted(self.counts.items()))
        print(f"\n{self.campaign} ({size}): {sum(self.counts.values()):,} cases: {counts}")
        assert sum(self.counts.values()) > 0
        assert not self.failures, "\n".join(self.failures[:40])
        assert self.counts["type errors"] <= self.type_errors * sum(self.counts.values())
