"""One recorded run guards the contract: its journal must replay to these weights for ever.

golden/ holds the journal and the initial checkpoints; `python -m support.golden`, in
python_tests, made it.
If this test fails, the numeric contract changed: every journal out there would be lost. Mend the
code; or, if the change is meant, raise CONTRACT_VERSION and make the run anew.
"""

from __future__ import annotations

import hashlib

import pytest

from deevo_ext import backends, replay
from support.operators import BACKENDS
from support.paths import TESTS

GOLDEN = TESTS / "golden"
WEIGHTS = "7f926fe528b26f1c848da740d8b0ff054334d6cc54c9aaf5fb2857e4e8955563"
POPULATION = "b265c51c8319370421040470bb89bcbe5d5e73eaf91e9468e73c704beffc1906"


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_golden_journal_replays_to_the_golden_weights(backend: str) -> None:
    with backends.use(backend):
        result = replay(GOLDEN)
    assert result.finished and len(result.generations) == 24
    assert {name for g in result.generations for name in g.strategies} == {
        "to-best",
        "shade",
        "mixed",
        "trig",
    }
    assert result.candidate.digest == WEIGHTS
    de = result.state.de
    digest = hashlib.sha256(de.population.rows.contiguous().numpy().tobytes())
    digest.update(de.archive.contiguous().numpy().tobytes())
    digest.update(de.state_dict()["state"].numpy().tobytes())
    assert digest.hexdigest() == POPULATION
