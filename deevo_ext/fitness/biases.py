"""Biases of the logits, evolved for a metric that need not have gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from deevo_ext.fitness.metrics import Metric
from deevo_ext.ops.philox import words
from deevo_ext.ops.tables import Purpose
from deevo_ext.population.population import Population
from deevo_ext.search.optimizer import DifferentialEvolution

_SIZE, _GENERATIONS = 32, 100
# Logits that one evolution looks at, at most: about ten seconds of a core.
_LOGITS = 2e9


def tuned_biases(
    logits: Tensor, labels: Tensor, metric: Metric, starts: Tensor, seed: int
) -> Tensor:
    """Returns biases float32 [C] of little fitness on logits float32 [N, C], by evolution.

    starts: [S, C], biases that the first population has, distinct and fewer than 32; the others are
    drawn around the last of them, as far as the two greatest logits of an image lie apart in the
    mean. The best of `starts` is returned where nothing better is found. There are 100 generations,
    fewer where N * C is above 600,000.
    """
    apart = logits.topk(min(2, logits.shape[1]), dim=1).values
    spread = float((apart[:, 0] - apart[:, -1]).mean())
    rows = [*starts.float().cpu()]
    for row in range(len(starts), _SIZE):
        drawn = words(Purpose.FIRST_VIRTUAL, 0, row, logits.shape[1], seed)
        uniform = torch.from_numpy((drawn + 0.5) * 2.0**-31 - 1.0)
        rows.append(rows[len(starts) - 1] + (spread * uniform).float())
    population = Population.from_rows(torch.stack(rows), "biases")
    generations = int(min(_GENERATIONS, max(1.0, _LOGITS / (_SIZE * logits.numel()))))
    de = DifferentialEvolution(population, seed=seed, generations=generations)

    def scores(rows: Tensor) -> list[float]:
        biases = rows[:, : logits.shape[1]].to(logits.device)
        return [float(metric.fitness(metric.of_images(logits + b, labels), labels)) for b in biases]

    de.ask_parents()
    de.tell(scores(population.rows))
    for _ in range(generations):
        de.tell(scores(de.ask().rows(range(_SIZE))))
    return population.rows[de.best, : logits.shape[1]].clone().to(logits.device)
