"""Recorded runs guard the contract: their journals must replay to these weights for ever.

golden/ holds the journal and the initial checkpoints of a run of version 1, golden/version_2 and
version_2_rounds those of version 2; `python -m support.golden`, in python_tests, makes the latter.
If this test fails, the numeric contract changed: every journal out there would be lost. Mend the
code; or, if the change is meant, raise CONTRACT_VERSION and add a run.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

import deevo_ext as deevo
from deevo_ext import backends, replay
from deevo_ext.ops.tables import CONTRACT_VERSION
from deevo_ext.runs import journal
from deevo_ext.runs.recipe_state import Progress, RecipeState, recipe_digest
from deevo_ext.runs.recording import read_journal
from support.golden import GOLDEN, PRESENT, ROUNDS, digest_of
from support.operators import GENERATION, serving


@dataclass(frozen=True)
class Golden:
    """A recorded run: its folder, and what it came to."""

    folder: Path
    contract: int
    generations: int
    strategies: tuple[str, ...]
    weights: str
    population: str


RUNS = [
    Golden(
        GOLDEN,
        1,
        24,
        ("mixed", "shade", "to-best", "trig"),
        "7f926fe528b26f1c848da740d8b0ff054334d6cc54c9aaf5fb2857e4e8955563",
        "b265c51c8319370421040470bb89bcbe5d5e73eaf91e9468e73c704beffc1906",
    ),
    Golden(
        PRESENT,
        CONTRACT_VERSION,
        10,
        ("current-to-pbest/1", "rand/1", "trig"),
        "44278edae324ee1154d8c9ad52cb3cb9d6e5e282174500f140f3605467b731be",
        "ee222103331cd8835f9f58662baa7ec0b03872af97670b265d7d46da9020b220",
    ),
]


@pytest.mark.parametrize("golden", RUNS, ids=lambda golden: f"version {golden.contract}")
@pytest.mark.parametrize("backend", serving(*GENERATION))
def test_a_golden_journal_replays_to_the_golden_weights(backend: str, golden: Golden) -> None:
    header = read_journal(golden.folder / journal.FILE_NAME).header
    assert header is not None and header.contract == golden.contract
    with backends.use(backend):
        result = replay(golden.folder)
    assert result.finished and len(result.generations) == golden.generations
    names = {name for g in result.generations for name in g.strategies}
    assert tuple(sorted(names)) == golden.strategies
    assert result.candidate.digest == golden.weights
    assert digest_of(result.state.de) == golden.population


@pytest.mark.parametrize("backend", ("reference", "cpu"))  # which have `compose`
def test_golden_rounds_replay_to_the_golden_recipe(backend: str) -> None:
    recording = read_journal(ROUNDS / journal.FILE_NAME)
    # Steps refused and taken, and a radius that shrinks and grows.
    assert [record.accepted for record in recording.rounds] == [False, True, True, False, False]
    assert [record.radius for record in recording.rounds] == [1.0, 0.5, 1.0, 1.0, 0.5]
    with backends.use(backend):
        result = replay(ROUNDS)
    state = result.state
    assert result.finished and isinstance(state, RecipeState)
    assert (state.round, state.paths["blocks"]) == (5, Progress(2, 0.25))
    assert recipe_digest(state.recipe) == (
        "d3bfc7e56e8d98603365cdc102c91a281906b1e029f76a5aa7a9f5e5bcdc6823"
    )
    assert result.candidate.name == "evolved and refitted"
    assert result.candidate.digest == (
        "6c9694a94ebe7670fe5d4925b5fd289309ff089826de4a034e56af378a16f035"
    )


@pytest.mark.parametrize(
    ("line", "old", "new", "message"),
    [
        # Of version 1, which has no checks: what the end says catches it.
        (3, '"0x1.2768937386ad1p-2"', '"0x1.0768937386ad1p-2"', "replayed weights have SHA-256"),
        (27, '"score": "0x1.6', '"score": "0x1.5', "replayed candidate is"),
        (27, '"kind": "member"', '"kind": "soup"', "replayed candidate is"),
        (27, '"generation": 24', '"generation": 23', "replayed candidate is"),
        (1, '"seed": 1099511627793', '"seed": 1099511627792', "replayed weights have SHA-256"),
        (1, '"shape": [4, 1', '"shape": [-4, 1', "a shape is no list of sizes"),
        (1, '"generations": 24', '"generations": 24.0', "generations is 24.0"),
        (1, '"parameter": true', '"parameter": 1', "no run writes it like this"),
    ],
)
def test_an_edited_journal_is_refused_by_replay(
    tmp_path: Path, line: int, old: str, new: str, message: str
) -> None:
    shutil.copytree(GOLDEN / "initial", tmp_path / "initial")
    lines = (GOLDEN / journal.FILE_NAME).read_text().splitlines(keepends=True)
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    (tmp_path / journal.FILE_NAME).write_text("".join(lines))
    with pytest.raises(deevo.DeevoError, match=message):
        replay(tmp_path)
