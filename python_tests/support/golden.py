"""Makes the golden runs of the contract's present version anew; prints their SHA-256 sums.

The run of version 1 lies in golden/ itself and cannot be made any more: new journals are of a later
version. What it covers (an archive, Cauchy numbers, odds of four strategies) is not repeated here.
"""

from __future__ import annotations

import hashlib
import shutil

import deevo_ext as deevo
from deevo_ext.ops.tables import CONTRACT_VERSION
from deevo_ext.runs.folder import VIRTUAL
from deevo_ext.runs.recipe_run import Budget
from deevo_ext.runs.recipe_state import recipe_digest
from support.evolution import population, sphere
from support.paths import TESTS
from support.rounds import Problem

GOLDEN = TESTS / "golden"
PRESENT = GOLDEN / f"version_{CONTRACT_VERSION}"
ROUNDS = GOLDEN / f"version_{CONTRACT_VERSION}_rounds"
"""A search of coefficients: what its networks scored is input, so it replays everywhere."""


def digest_of(de: deevo.DifferentialEvolution) -> str:
    """Returns the SHA-256 of all that evolves: rows, archive and what the adaptation remembers."""
    digest = hashlib.sha256(de.population.rows.contiguous().numpy().tobytes())
    digest.update(de.archive.contiguous().numpy().tobytes())
    digest.update(de.state_dict()["state"].numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    """Writes journal.jsonl and initial/ to python_tests/golden/version_N, version_N_rounds."""
    for folder in (PRESENT, ROUNDS):
        shutil.rmtree(folder, ignore_errors=True)
    de = deevo.DifferentialEvolution(
        population(7, seed=43),
        seed=2**41 + 19,
        generations=10,
        crossover_unit="tensor",
        population_min=5,
    )
    chosen = deevo.Evolution(de, sphere, run_dir=PRESENT, progress=False).run()
    for extra in ("metrics.csv", "evolved.safetensors", "evolved.pth"):
        (PRESENT / extra).unlink()
    print(f"WEIGHTS = {chosen.digest}\nPOPULATION = {digest_of(de)}")
    problem = Problem(seed=6, members=5, spread=0.3, generations=4)
    run = problem.run(ROUNDS, budget=Budget(6))
    print(f"ROUNDS = {run.run().digest}\nRECIPE = {recipe_digest(run.state.recipe)}")
    for extra in (*ROUNDS.glob("evolved.*"), *ROUNDS.glob("recipe.*"), ROUNDS / "metrics.csv"):
        extra.unlink()
    shutil.rmtree(ROUNDS / VIRTUAL)


if __name__ == "__main__":
    main()
