"""Records and lines of the journal: nothing is lost on the way, and damage is named by its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deevo_ext.errors import DeevoError
from deevo_ext.fitness.scoring import Race
from deevo_ext.ops.tables import CONTRACT_VERSION
from deevo_ext.runs import journal
from deevo_ext.runs.journal import Journal
from deevo_ext.runs.records import (
    CandidateRecord,
    GenerationRecord,
    Header,
    Returned,
    ValidationRecord,
)

HEADER = Header(
    contract=CONTRACT_VERSION,
    deevo_ext="0.1.0",
    configuration={"f_init": 0.1, "f_max": float("nan")},
    seed=2**40,
    layout="f3",
    population={"version": 1},
    checkpoints=[["initial/a.safetensors", "08"], ["/elsewhere/b.pth", "44"]],
    fitness={"function": "sphere"},
    validation=None,
)
FIRST = GenerationRecord(
    generation=0,
    validation=ValidationRecord(
        CandidateRecord([1], 0.1),
        CandidateRecord([0, 1], 0.3),
        CandidateRecord([1], 0.1),
        [0.2, 0.1],
    ),
    forward_passes=90,
    seconds=0.25,
)
NEXT = GenerationRecord(
    generation=1,
    batch=0,
    parents=[0.1, float("inf")],
    trials=[1 / 3, float("nan")],
    racing=Race(700, [32, 700], 1),
    forward_passes=60,
    seconds=1e-06,
)
LAST = Returned(1, "soup", [1, 0], 0.1, "ab", torch.tensor([1.5, -0.1]))
# As runs have always written them; NaN is no JSON, but Python's.
LINES = (
    '{"contract": 1, "deevo_ext": "0.1.0", "configuration": {"f_init": 0.1, "f_max": NaN}, '
    '"seed": 1099511627776, "layout": "f3", "population": {"version": 1}, "checkpoints": '
    '[["initial/a.safetensors", "08"], ["/elsewhere/b.pth", "44"]], "fitness": {"function": '
    '"sphere"}, "validation": null}',
    '{"generation": 0, "validation": {"member": {"members": [1], "score": '
    '"0x1.999999999999ap-4"}, "mean": {"members": [0, 1], "score": "0x1.3333333333333p-2"}, '
    '"soup": {"members": [1], "score": "0x1.999999999999ap-4"}, "scores": '
    '["0x1.999999999999ap-3", "0x1.999999999999ap-4"]}, "forward_passes": 90, "seconds": 0.25}',
    '{"generation": 1, "batch": 0, "parents": ["0x1.999999999999ap-4", "inf"], "trials": '
    '["0x1.5555555555555p-2", "nan"], "racing": {"of": 700, "images": [32, 700], '
    '"non_finite": 1}, "forward_passes": 60, "seconds": 1e-06}',
    '{"returned": {"generation": 1, "kind": "soup", "members": [1, 0], "score": '
    '"0x1.999999999999ap-4", "weights_sha256": "ab", "statistics": "AADAP83MzL0="}}',
)


def write(folder: Path) -> Path:
    opened, recording = Journal.open(folder, HEADER)
    assert recording.header is None
    for record in (FIRST, NEXT, LAST):
        opened.append(record)
    opened.close()
    return folder / journal.FILE_NAME


def test_lines_are_what_they_always_were(tmp_path: Path) -> None:
    assert write(tmp_path / "run").read_text().splitlines() == list(LINES)


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = write(tmp_path / "run")
    recording = journal.read(path)
    assert repr(recording.header) == repr(HEADER)  # NaN differs from itself
    assert repr(recording.generations) == repr([FIRST, NEXT])
    assert repr(recording.returned) == repr(LAST)
    assert recording.whole == path.stat().st_size
    opened, again = Journal.open(tmp_path / "run", HEADER)
    opened.close()
    assert repr(again) == repr(recording)


def test_where_nothing_was_begun_there_is_nothing(tmp_path: Path) -> None:
    assert journal.read_folder(None) is None and journal.read_folder(tmp_path) is None
    (tmp_path / journal.FILE_NAME).write_text(LINES[0][:50])
    assert journal.read_folder(tmp_path) is None
    assert journal.read(tmp_path / journal.FILE_NAME).whole == 0


def test_another_contract_is_refused(tmp_path: Path) -> None:
    path = tmp_path / journal.FILE_NAME
    path.write_text('{"contract": 0}\n')
    with pytest.raises(DeevoError, match="under contract version 0"):
        journal.read(path)


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (1, {"seed": None}, "KeyError.*seed"),
        (1, {"seed": "1"}, "'1' is no int"),
        (1, {"checkpoints": [["a", 1]]}, "1 is no str"),
        (1, {"fitness": []}, r"\[\] is no dict"),
        (2, {"seconds": None}, "KeyError.*seconds"),
        (2, {"validation": {"member": {}}}, "KeyError.*members"),
        (3, {"trials": ["x"]}, "invalid hexadecimal"),
        (3, {"trials": "0x1p0"}, "is no list"),
        (3, {"batch": 0.5}, "0.5 is no int"),
        (3, {"racing": {"of": 1, "images": [True], "non_finite": 0}}, "True is no int"),
        (3, {"temperature": 3, "humour": 4}, "unknown: humour, temperature"),
        (4, {"returned": {"generation": 1}}, "KeyError.*kind"),
    ],
)
def test_damage_is_named_by_its_line(tmp_path: Path, line: int, change: dict, message: str) -> None:
    values = {**json.loads(LINES[line - 1]), **change}
    broken = json.dumps({name: value for name, value in values.items() if value is not None})
    path = tmp_path / journal.FILE_NAME
    path.write_text("\n".join([*LINES[: line - 1], broken, *LINES[line:]]) + "\n")
    with pytest.raises(DeevoError, match=f"line {line} is damaged .*{message}"):
        journal.read(path)


def test_nothing_follows_the_end_and_a_broken_line_is_torn_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / journal.FILE_NAME
    path.write_text("\n".join([*LINES, LINES[2]]) + "\n")
    with pytest.raises(DeevoError, match="line 5 is damaged"):
        journal.read(path)
    path.write_text("\n".join([LINES[0], "[]", LINES[1]]) + "\n")
    with pytest.raises(DeevoError, match="line 2 is damaged"):
        journal.read(path)
    path.write_text(f"{LINES[0]}\n{LINES[1]}\n[]\n")
    assert len(journal.read(path).generations) == 1
