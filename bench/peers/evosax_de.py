"""evosax's differential evolution (https://github.com/RobertTLange/evosax), compiled by JAX."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

from bench.job import Job, Skipped


def make(job: Job) -> tuple[Callable[[], Any], str]:
    """ask and tell in one compiled function, with fitness of which a third improves."""
    import jax
    import jax.numpy as jnp
    from evosax.algorithms import DifferentialEvolution

    platform = jax.default_backend()
    if (platform == "gpu") != (job.device == "cuda"):
        raise Skipped(f"JAX runs on its {platform} here, not on {job.device}")
    key = jax.random.key(job.seed)
    evolution = DifferentialEvolution(job.members, jnp.zeros(job.weights))
    params = evolution.default_params
    rows = jax.random.normal(key, (job.members, job.weights))
    state = evolution.init(key, rows, jnp.ones(job.members), params)
    held = [state, key]

    def one(state: Any, key: Any) -> tuple[Any, Any]:
        own, draw, following = jax.random.split(key, 3)
        trials, state = evolution.ask(own, state, params)
        better = jax.random.uniform(draw, (job.members,)) < 1 / 3
        state = state.replace(fitness=jnp.ones(job.members))
        state, _ = evolution.tell(own, trials, jnp.where(better, 0.0, 2.0), state, params)
        return state, following

    compiled = jax.jit(one, donate_argnums=(0,))

    def generation() -> None:
        held[:] = compiled(*held)
        jax.block_until_ready(held[0].population)

    versions = f"{importlib.metadata.version('evosax')}, JAX {jax.__version__}"
    return generation, f"evosax {versions}, on all cores"
