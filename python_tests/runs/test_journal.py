"""Records and lines of the journal: nothing is lost on the way, and damage is named by its line."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import deevo_ext as deevo
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.scoring import Race
from deevo_ext.runs import journal
from deevo_ext.runs.journal import Journal
from deevo_ext.runs.recording import Recording, read_journal
from deevo_ext.runs.records import (
    CandidateRecord,
    End,
    GenerationRecord,
    Header,
    Returned,
    ValidationRecord,
)
from support.evolution import population, sphere

HEADER_1 = Header(
    contract=1,
    deevo_ext="0.1.0",
    configuration={"f_init": 0.1, "f_max": float("nan")},
    seed=2**40,
    layout="f3",
    population={"version": 1},
    checkpoints=[["initial/a.safetensors", "08"], ["/elsewhere/b.pth", "44"]],
    fitness={"function": "sphere"},
    validation=None,
)
HEADER = replace(HEADER_1, contract=2, search="weights", switches={"mkldnn": True})
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
LAST = End(Returned(1, "soup", [1, 0], 0.1, "ab", torch.tensor([1.5, -0.1])))
# As runs of version 1 wrote them; NaN is no JSON, but Python's.
LINES_1 = (
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


# What version 2 adds to the header; its lines end with checks besides.
ADDED = ', "search": "weights", "switches": {"mkldnn": true}}'
RECORDS = (HEADER, FIRST, NEXT, LAST)


def write(folder: Path) -> Path:
    with Journal(folder) as opened:
        assert opened.begin(HEADER).header is None
        for record in RECORDS[1:]:
            opened.append(record)
    return folder / journal.FILE_NAME


def write_1(folder: Path, *lines: str) -> Path:
    path = folder / journal.FILE_NAME
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def records(recording: Recording) -> list[str]:
    """What was read, as text: NaN differs from itself."""
    last = [] if recording.returned is None else [End(recording.returned)]
    return [repr(each) for each in (recording.header, *recording.generations, *last)]


def test_lines_are_those_of_version_1_with_a_chain_of_checks(tmp_path: Path) -> None:
    header = LINES_1[0].replace('"contract": 1', '"contract": 2')[:-1] + ADDED
    check, expected = "", []
    for line in (header, *LINES_1[1:]):
        check = hashlib.sha256((check + line).encode()).hexdigest()[:32]
        expected.append(f'{line[:-1]}, "check": "{check}"}}')
    path = write(tmp_path / "run")
    assert path.read_text() == "".join(f"{line}\n" for line in expected)


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = write(tmp_path / "run")
    recording = read_journal(path)
    assert records(recording) == [repr(each) for each in RECORDS]
    assert recording.whole == path.stat().st_size
    with Journal(tmp_path / "run") as again:
        assert records(again.begin(HEADER)) == records(recording)
    old = read_journal(write_1(tmp_path, *LINES_1))
    assert records(old) == [repr(each) for each in (HEADER_1, *RECORDS[1:])]


def test_a_run_of_version_1_is_replayed_but_not_resumed(tmp_path: Path) -> None:
    path = write_1(tmp_path, *LINES_1[:3])
    with pytest.raises(DeevoError, match=r"contract version 1, which is replayed.* 0\.1\.0"):
        Journal(tmp_path)
    assert path.read_text() == "".join(f"{line}\n" for line in LINES_1[:3])


def put(path: Path, data: bytes) -> None:
    """Writes a file in place, which is faster by far than to begin it anew."""
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


def test_any_byte_that_is_changed_or_missing_is_found_and_named_by_its_line(
    tmp_path: Path,
) -> None:
    data = write(tmp_path / "run").read_bytes()
    path, last = tmp_path / "run" / journal.FILE_NAME, len(data) - 1
    whole = records(read_journal(path))
    for at in range(len(data)):
        number = data[:at].count(b"\n") + 1
        for changed in (b"", bytes([data[at] ^ 1]), b"\xff" if data[at] == 10 else b"\n"):
            put(path, data[:at] + changed + data[at + 1 :])
            if at == last:  # a torn line
                assert records(read_journal(path)) == whole[:-1]
                continue
            said = f"line {number} is damaged"
            if number == 1:
                said += "|is no journal|line 1: .* contract version"
            with pytest.raises(DeevoError, match=said):
                read_journal(path)
        put(path, data[:at])
        assert records(read_journal(path)) == (whole[: number - 1] or ["None"])


def test_lines_that_are_missing_moved_or_there_twice_are_found(tmp_path: Path) -> None:
    lines = write(tmp_path / "run").read_bytes().splitlines(keepends=True)
    path = tmp_path / journal.FILE_NAME
    for order, number in (((0, 2, 3), 2), ((0, 1, 3), 3), ((0, 2, 1, 3), 2), ((0, 1, 1, 2), 3)):
        path.write_bytes(b"".join(lines[i] for i in order))
        with pytest.raises(DeevoError, match=f"line {number} is damaged"):
            read_journal(path)


def test_every_other_digit_of_every_fitness_is_refused_on_resume_and_replay(
    tmp_path: Path,
) -> None:
    def run() -> None:
        de = deevo.DifferentialEvolution(population(4), generations=2, seed=1)
        deevo.Evolution(de, sphere, run_dir=tmp_path / "run", progress=False).run()

    run()
    path = tmp_path / "run" / journal.FILE_NAME
    lines = path.read_text().splitlines(keepends=True)[:4]  # it is not finished
    text, count = "".join(lines), 0
    for found in re.finditer(r'"-?0x[01]\.([0-9a-f]+)p', text):
        for at in range(*found.span(1)):
            for digit in set("0123456789abcdef") - {text[at]}:
                put(path, f"{text[:at]}{digit}{text[at + 1 :]}".encode())
                number = text[:at].count("\n") + 1
                with pytest.raises(DeevoError, match=f"line {number} is damaged"):
                    read_journal(path)
                count += 1
    assert count >= 3 * 4 * 13 * 15  # the parents' and two generations' trials
    kept = path.read_bytes()
    for again in (run, lambda: deevo.replay(tmp_path / "run")):
        with pytest.raises(DeevoError, match="line 4 is damaged"):
            again()
    assert path.read_bytes() == kept


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (1, {"seed": None}, "KeyError.*seed"),
        (1, {"seed": "1"}, "'1' is no int"),
        (1, {"checkpoints": [["a", 1]]}, "1 is no str"),
        (1, {"checkpoints": [["a"]]}, "no pairs"),
        (1, {"fitness": []}, r"\[\] is no dict"),
        (1, {"search": "weights", "switches": {}}, "contract 1 with search"),
        (1, {"check": "0" * 32}, "unknown: check"),
        (2, {"seconds": None}, "KeyError.*seconds"),
        (2, {"seconds": float("nan")}, "costs of"),
        (2, {"seconds": 1}, "1 is no float"),
        (2, {"forward_passes": True}, "True is no int"),
        (2, {"forward_passes": -1}, "costs of"),
        (2, {"forward_passes": 10**400}, "costs of"),
        (2, {"validation": {"member": {}}}, "KeyError.*members"),
        (2, {"generation": 1}, "no generation 1"),
        (3, {"generation": 2}, "from generation 0 to 2: lines are missing"),
        (3, {"trials": ["x"]}, "invalid hexadecimal"),
        (3, {"trials": ["abc", "0x1.0p0"]}, "no run writes it like this"),
        (3, {"trials": ["0x1p99999"]}, "OverflowError"),
        (3, {"trials": ["-inf", "inf"]}, "-inf is no score"),
        (3, {"trials": [0.5, 0.5]}, "0.5 is no str"),
        (3, {"trials": "0x1p0"}, "is no list"),
        (3, {"parents": "nan"}, "is no list"),
        (3, {"batch": 0.5}, "0.5 is no int"),
        (3, {"racing": {}}, "KeyError.*of"),
        (3, {"racing": {"of": 1, "images": [True], "non_finite": 0}}, "True is no int"),
        (3, {"racing": {"of": 9, "images": [9, 10], "non_finite": 0}}, "is no race"),
        (3, {"racing": {"of": 9, "images": [], "non_finite": 0}}, "is no race"),
        (3, {"temperature": 3, "humour": 4}, "unknown: humour, temperature"),
        (3, {"returned": {}}, "unknown: returned"),
        (4, {"returned": {"generation": 1}}, "KeyError.*kind"),
        (4, {"returned": []}, "is no dict"),
        (4, {"generation": 2}, "KeyError.*forward_passes"),
    ],
)
def test_values_of_version_1_are_checked_for_type_and_range(
    tmp_path: Path, line: int, change: dict, message: str
) -> None:
    values, lost = {**json.loads(LINES_1[line - 1]), **change}, [("seed", None), ("seconds", None)]
    broken = json.dumps({name: v for name, v in values.items() if (name, v) not in lost})
    path = write_1(tmp_path, *LINES_1[: line - 1], broken, *LINES_1[line:])
    with pytest.raises(DeevoError, match=f"line {line} is damaged .*{message}"):
        read_journal(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"trials": [', '"trials": [ '),
        ('"batch": 0', '"batch": null'),
        ('"batch": 0', '"batch": 0, "batch": 0'),
        ('"batch": 0', '"batch": ' + "[" * 100_000),
        ('"batch": 0', '"batch": 0\xff'),
        ('"0x1.5555555555555p-2"', '"0x1.55555555555550p-2"'),
    ],
)
def test_lines_that_no_run_writes_are_damaged(tmp_path: Path, old: str, new: str) -> None:
    lines = [*LINES_1[:2], LINES_1[2].replace(old, new, 1), LINES_1[3]]
    path = tmp_path / journal.FILE_NAME
    path.write_bytes("".join(f"{line}\n" for line in lines).encode("latin-1"))
    with pytest.raises(DeevoError, match="line 3 is damaged"):
        read_journal(path)


@pytest.mark.parametrize("torn", [b"[" * 100_000, b"\xff\xfe", b"{}", LINES_1[3].encode()])
def test_only_a_last_line_without_its_end_is_torn(tmp_path: Path, torn: bytes) -> None:
    path = write_1(tmp_path, *LINES_1[:3])
    before = path.read_bytes()
    path.write_bytes(before + torn)
    recording = read_journal(path)
    assert (len(recording.generations), recording.returned) == (2, None)
    assert recording.whole == len(before)
    path.write_bytes(before + torn.replace(b"}", b"]") + b"\n")
    with pytest.raises(DeevoError, match="line 4 is damaged"):
        read_journal(path)


def test_nothing_follows_the_end_and_other_contracts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DeevoError, match=r"line 5 is damaged.*follows the end"):
        read_journal(write_1(tmp_path, *LINES_1, LINES_1[2]))
    with pytest.raises(DeevoError, match=r"under contract version 3; .* reads 1 and 2"):
        read_journal(write_1(tmp_path, LINES_1[0].replace("1", "3", 1)))


@pytest.mark.parametrize("content", [b"notes", b"notes\n", b"\xff\n", b"\0" * 99, b"{}\n"])
def test_a_file_that_is_no_journal_is_never_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / journal.FILE_NAME
    path.write_bytes(content)
    for use in (lambda: Journal(tmp_path), lambda: deevo.replay(tmp_path)):
        with pytest.raises(DeevoError, match=r"is no journal: .* left as it is"):
            use()
    assert path.read_bytes() == content


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "loop"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / journal.FILE_NAME
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    with pytest.raises(DeevoError, match=r"run_dir|no file"):
        Journal(tmp_path)
    with pytest.raises(DeevoError, match=r"cannot read|holds no journal"):
        deevo.replay(tmp_path)
    assert os.path.lexists(path)


def test_a_journal_that_no_run_was_begun_in_leaves_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path / "a" / "run") as opened:
        assert opened.path.exists()
        with pytest.raises(DeevoError, match="in use by another process"):
            Journal(tmp_path / "a" / "run")
    assert not (tmp_path / "a" / "run").exists()
    path = tmp_path / journal.FILE_NAME
    path.write_bytes(b'{"contract": 2, "dee')  # a crash within the first line
    with Journal(tmp_path) as opened:
        assert opened.recording.header is None
        opened.begin(HEADER)
    assert records(read_journal(path)) == [repr(HEADER)]
