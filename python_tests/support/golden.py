"""Makes the golden run of the contract's present version anew; prints its SHA-256 sums.

The run of version 1 lies in golden/ itself and cannot be made any more: new journals are of a later
version. What it covers (an archive, Cauchy numbers, odds of four strategies) is not repeated here.
"""

from __future__ import annotations

import hashlib
import shutil

import deevo_ext as deevo
from deevo_ext.ops.tables import CONTRACT_VERSION
from support.evolution import population, sphere
from support.paths import TESTS

GOLDEN = TESTS / "golden"
PRESENT = GOLDEN / f"version_{CONTRACT_VERSION}"


def digest_of(de: deevo.DifferentialEvolution) -> str:
    """Returns the SHA-256 of all that evolves: rows, archive and what the adaptation remembers."""
    digest = hashlib.sha256(de.population.rows.contiguous().numpy().tobytes())
    digest.update(de.archive.contiguous().numpy().tobytes())
    digest.update(de.state_dict()["state"].numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    """Writes journal.jsonl and initial/ to python_tests/golden/version_N."""
    shutil.rmtree(PRESENT, ignore_errors=True)
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


if __name__ == "__main__":
    main()
