"""Journals, recipes, checkpoints with bytes changed or missing, and calls in any order."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pytest
import torch

import deevo_ext as deevo
from campaigns.interrupted import coefficients, weights
from campaigns.outcomes import Outcomes, some
from deevo_ext.runs import journal
from support.networks import Net, members
from support.recipe_runs import PlainNet, save_checkpoints

BYTES = [b"\0", b"\xff", b"[" * 3000, b"nan", b"\n", b",", *(bytes([c]) for c in b"]\"'1e- :{")]


def mutations(data: bytes, count: int, seed: int) -> list[bytes]:
    """Texts with bytes replaced, taken out, put in, doubled, or with their end cut off."""
    drawn = random.Random(seed)
    made = []
    for _ in range(count):
        new = bytearray(data)
        for _ in range(drawn.choice((1, 1, 1, 4))):
            at, size = drawn.randrange(len(new)), drawn.choice((0, 1, 1, 2, 40))
            piece = drawn.choice([*BYTES, bytes(new[at : at + 30])])
            new[at : at + size] = piece
        made.append(bytes(new[: drawn.randrange(len(new))] if drawn.random() < 0.1 else new))
    return made


@pytest.fixture(params=[weights, coefficients])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of a run that has ended."""
    request.param(save_checkpoints(tmp_path / "checkpoints", PlainNet), tmp_path / "run")
    return tmp_path / "run"


def test_no_changed_byte_of_a_journal_is_believed(
    run: Path, request: pytest.FixtureRequest
) -> None:
    path = run / journal.FILE_NAME
    data = path.read_bytes()
    ends = data.count(b"\n")
    outcomes = Outcomes(f"changed bytes of journals of {request.node.callspec.id}")
    places = [at for at, byte in enumerate(data) if byte != ord("\n")]
    for at in some(places, 300):
        byte = data[at : at + 1]
        other = bytes([48 + (byte[0] - 47) % 10]) if byte.isdigit() else bytes([byte[0] ^ 1])
        path.write_bytes(data[:at] + other + data[at + 1 :])
        if outcomes.of(f"byte {at}", lambda: journal.read(path)) == "results":
            outcomes.fail(f"byte {at}: {byte!r} became {other!r} and was believed")
    for at in some(range(len(data)), 200):  # torn: the whole lines before, and no others
        path.write_bytes(data[:at])
        whole = data[:at].count(b"\n")
        read: list[journal.Recording] = []
        if outcomes.of(f"torn at {at}", lambda: read.append(journal.read(path))) == "results":  # noqa: B023
            found = read[0]
            records = len(found.generations) + len(found.rounds) + (found.header is not None)
            if records + (found.returned is not None) != whole or (whole == ends) != (
                found.returned is not None
            ):
                outcomes.fail(f"torn at {at}: {records} records of {whole} lines")
        else:
            outcomes.fail(f"torn at {at}: refused")
    outcomes.check()


def test_fuzzed_journals_are_refused_or_what_they_were(
    run: Path, request: pytest.FixtureRequest
) -> None:
    path = run / journal.FILE_NAME
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    outcomes = Outcomes(f"fuzzed journals of {request.node.callspec.id}")
    for k, changed in enumerate(some(mutations(data, 3000, 1), 200)):
        path.write_bytes(changed)
        if outcomes.of(f"journal {k}", lambda: journal.read(path)) == "results":
            whole = changed[: changed.rfind(b"\n") + 1]
            if whole != b"".join(lines[: whole.count(b"\n")]):
                outcomes.fail(f"journal {k}: believed, though its lines are others")
    outcomes.check()


def test_fuzzed_recipes_make_a_network_or_an_error(tmp_path: Path) -> None:
    coefficients(save_checkpoints(tmp_path / "checkpoints", PlainNet), tmp_path / "run")
    path = tmp_path / "run" / "recipe.yaml"
    data = path.read_bytes()
    outcomes = Outcomes("fuzzed recipes")
    for k, changed in enumerate(some(mutations(data, 1500, 2), 60)):
        path.write_bytes(changed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcomes.of(f"recipe {k}", lambda: deevo.merge(path, tmp_path / "m.safetensors"))
    outcomes.check()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_fuzzed_checkpoints_make_a_population_or_an_error(tmp_path: Path, suffix: str) -> None:
    """A changed byte of weights in a .safetensors, which has no sum, is other weights."""
    folder = save_checkpoints(tmp_path / "checkpoints", Net)
    path = folder / "m0.safetensors"
    state = members(Net, 1)[0]
    if suffix == "pth":
        path.unlink()
        path = folder / "m0.pth"
        torch.save(state, path)
    before = deevo.Population.from_checkpoints(Net(), folder).state_dict(0)
    data = path.read_bytes()
    outcomes = Outcomes(f"fuzzed .{suffix}")
    for k, changed in enumerate(some(mutations(data, 1500, 3), 80)):
        path.write_bytes(changed)
        made: list[deevo.Population] = []

        def read(into: list[deevo.Population] = made) -> None:
            into.append(deevo.Population.from_checkpoints(Net(), folder))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ended = outcomes.of(f"checkpoint {k}", read)
        if ended == "results" and suffix == "pth" and changed != data:
            now = made[0].state_dict(0)
            if any(not torch.equal(now[name], before[name]) for name in before):
                outcomes.fail(f"checkpoint {k}: other weights, though a .pth has sums")
    outcomes.check()
