"""Makes the golden run anew, for a new version of the contract; prints its SHA-256 sums."""

from __future__ import annotations

import hashlib

import deevo_ext as deevo
from support.evolution import population, sphere
from support.paths import TESTS

GOLDEN = TESTS / "golden"

STRATEGIES = [
    ("to-best", "target + F*(best - target) + F*(r1 - r2)", "bin"),
    ("shade", "target + F*(pbest - target) + F*(r1 - archive)", "bin"),
    ("mixed", "r1 + F*U*(r2 - target) + F*(target - r3)", "bin"),
    deevo.Strategy("trig", "trig(r1, r2, r3)", "none", odds=1.0, cap=0.4),
]


def main() -> None:
    """Writes journal.jsonl and initial/ to python_tests/golden."""
    de = deevo.DifferentialEvolution(
        population(9, seed=42),
        "paper",
        seed=2**40 + 17,
        generations=24,
        strategies=STRATEGIES,
        archive_size=5,
        sinusoid_1_frequency=0.1,
        f_distribution="cauchy",
    )
    chosen = deevo.Evolution(de, sphere, run_dir=GOLDEN, progress=False).run()
    for extra in ("metrics.csv", "evolved.safetensors"):
        (GOLDEN / extra).unlink()
    digest = hashlib.sha256(de.population.rows.contiguous().numpy().tobytes())
    digest.update(de.archive.contiguous().numpy().tobytes())
    digest.update(de.state_dict()["state"].numpy().tobytes())
    print(f"WEIGHTS = {chosen.digest}\nPOPULATION = {digest.hexdigest()}")


if __name__ == "__main__":
    main()
