"""What a journal's bytes say: a run as its records, one JSON line a generation or round.

Line 1 is the header (contract version, configuration, seed, population, checkpoints); each further
line one generation's fitness values as hex floats; the last one names the returned candidate. With
the initial checkpoints it gives every weight of the run again. How records become lines is known
here and in `records` alone.

From version 2 of the contract on, a line ends with a checksum of itself and the line before:
`"check"`, 32 hex digits of the SHA-256 of the last line's check and this line without its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deevo_ext.distributed.ranks import RankError
from deevo_ext.errors import DeevoError
from deevo_ext.files import read_regular
from deevo_ext.ops.tables import CONTRACTS
from deevo_ext.runs.records import (
    End,
    GenerationRecord,
    Header,
    Returned,
    RoundRecord,
    from_json,
    require,
    to_json,
)

_BEGINNING = b'{"contract": '
# By a key that no other has.
_RECORDS = {"generation": GenerationRecord, "round": RoundRecord, "returned": End}


@dataclass(frozen=True)
class Recording:
    """What a journal holds in its first `whole` bytes, which end with the last whole line.

    header: None for an empty journal. rounds: those of a search of coefficients, which follow its
    generation 0. check: the last line's; empty in version 1. before: `whole` and `check` without
    the line of the end; the same where there is none.
    """

    path: Path
    header: Header | None
    generations: list[GenerationRecord]
    rounds: list[RoundRecord]
    returned: Returned | None
    whole: int
    check: str
    before: tuple[int, str]

    @property
    def schedule(self) -> int:
        """The number of generations of a search of weights, as it was last."""
        assert self.header is not None
        lengths = [g.generations for g in self.generations if g.generations is not None]
        return lengths[-1] if lengths else require(self.header.configuration["generations"], int)

    @property
    def records(self) -> list[GenerationRecord | RoundRecord]:
        """Generations and rounds, in the order of their lines."""
        return [*self.generations, *self.rounds]

    def line_of(self, index: int) -> contextlib.AbstractContextManager[None]:
        """Returns `line_of` for record `index` after the header: generations, rounds, the end."""
        return line_of(self.path, index + 2)


def read_journal(path: Path) -> Recording:
    """Reads a journal.

    A torn last line, one without its end as a crash leaves it, is left out. Damage anywhere else
    raises DeevoError that names file and line, as does a journal of an unknown contract.
    """
    return parse(path, read_regular(path))


def parse(path: Path, data: bytes) -> Recording:
    """Reads the bytes of a journal at a path; see `read_journal`."""
    lines = data.split(b"\n")  # the last one is torn, or empty
    if data[: len(_BEGINNING)] != _BEGINNING[: len(data)]:
        raise DeevoError(
            f"{path} is no journal: it begins with {data[:20]!r}. It is left as it is; move it "
            "away, or choose another run folder"
        )
    if len(lines) == 1:
        return Recording(path, None, [], [], None, 0, "", (0, ""))
    with line_of(path, 1):
        contract = require(_values(lines[0])["contract"], int)
        if contract not in CONTRACTS:
            raise DeevoError(
                f"the journal was written under contract version {contract}; this version of "
                f"deevo_ext reads {' and '.join(map(str, CONTRACTS))}: use the one that wrote it"
            )
        text, check = _verified(contract, lines[0], "")
        header: Header = _as_written(Header, text)
    generations: list[GenerationRecord] = []
    rounds: list[RoundRecord] = []
    returned, whole = None, len(data) - len(lines[-1])
    before = whole, check
    for number, line in enumerate(lines[1:-1], start=2):
        with line_of(path, number):
            if returned is not None:
                raise ValueError("it follows the end of the run")
            text, check = _verified(contract, line, check)
            record = _as_written(None, text)
            if isinstance(record, End):
                returned = record.returned
                before = whole - len(line) - 1, before[1]
            elif isinstance(record, RoundRecord):
                if header.search != "coefficients" or record.round != number - 2:
                    raise ValueError(f"round {record.round} has no place here")
                rounds.append(record)
            elif header.search == "coefficients" and record.generation:
                raise ValueError(f"generation {record.generation} has no place here")
            elif rounds or record.generation != len(generations):
                raise ValueError(
                    f"the journal goes from generation {len(generations) - 1} to "
                    f"{record.generation}: lines are missing or there twice"
                )
            else:
                generations.append(record)
            if returned is None:
                before = whole, check
    return Recording(path, header, generations, rounds, returned, whole, check, before)


def _verified(contract: int, line: bytes, before: str) -> tuple[bytes, str]:
    """Returns a line without its check, and its check, verified; version 1 has none."""
    if contract == 1:
        return line, ""
    text = line[: -len(with_check(b"{}", "")[0]) + 1] + b"}"
    expected, check = with_check(text, before)
    if line != expected:
        raise ValueError("its checksum does not fit it and the line before")
    return text, check


def with_check(text: bytes, before: str) -> tuple[bytes, str]:
    """Returns a line, a JSON object, with its check as last value; and the check.

    before: the check of the line before; "" of the first.
    """
    check = hashlib.sha256(before.encode() + text).hexdigest()[:32]
    return text[:-1] + f', "check": "{check}"}}'.encode(), check


def _values(text: bytes) -> dict[str, Any]:
    """Returns the JSON object that a line is."""
    try:
        values: dict[str, Any] = require(json.loads(text.decode("ascii")), dict)
    except RecursionError:
        raise ValueError("too many brackets") from None
    return values


def _as_written(kind: type[Any] | None, text: bytes) -> Any:
    """Reads a record, by default of the kind that its keys say.

    Raises ValueError where no record is written as this text.
    """
    values = _values(text)
    if kind is None:
        kind = next((kind for key, kind in _RECORDS.items() if key in values), None)
        if kind is None:
            raise ValueError(f"it has none of {', '.join(_RECORDS)}")
    record = from_json(kind, values)
    if json.dumps(to_json(record)).encode() != text:
        raise ValueError("no run writes it like this")
    return record


@contextlib.contextmanager
def line_of(path: Path, number: int) -> Iterator[None]:
    """Makes errors inside the block, which uses line `number`, name file, line and what to do."""
    try:
        yield
    except RankError:  # which says itself what happened on another rank
        raise
    except DeevoError as error:
        raise DeevoError(f"{path}, line {number}: {error}") from None
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DeevoError(
            f"{path}, line {number} is damaged ({repr(error)[:300]}): restore the journal from a "
            "backup, delete this line and all after it, so that the run goes on from the one "
            "before, or start a new run folder"
        ) from None
