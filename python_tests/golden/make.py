"""Makes the golden run anew, for a new version of the contract; prints its SHA-256 sums."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import deevo_ext as deevo  # noqa: E402
from support.evolution import population, sphere  # noqa: E402

STRATEGIES = [
    ("to-best", "target + F*(best - target) + F*(r1 - r2)", "bin"),
    ("shade", "target + F*(pbest - target) + F*(r1 - archive)", "bin"),
    ("mixed", "r1 + F*U*(r2 - target) + F*(target - r3)", "bin"),
    deevo.Strategy("trig", "trig(r1, r2, r3)", "none", odds=1.0, cap=0.4),
]


def main() -> None:
    """Writes journal.jsonl and initial/ beside this file."""
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
    chosen = deevo.Evolution(de, sphere, run_dir=HERE, progress=False).run()
    for extra in ("metrics.csv", "evolved.safetensors"):
        (HERE / extra).unlink()
    digest = hashlib.sha256(de.population.rows.contiguous().numpy().tobytes())
    digest.update(de.archive.contiguous().numpy().tobytes())
    digest.update(de.state_dict()["state"].numpy().tobytes())
    print(f"WEIGHTS = {chosen.digest}\nPOPULATION = {digest.hexdigest()}")


if __name__ == "__main__":
    main()
