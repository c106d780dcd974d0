"""What a run has learnt and plans: the small tensors, which do not grow with the weights."""

from __future__ import annotations

import math

import torch

from deevo_ext.ops.library import BoundOperator
from deevo_ext.ops.tables import (
    MAX_TERMS,
    NUM_CHOICE_COLUMNS,
    NUM_PARAMETER_COLUMNS,
    gene_words,
)
from deevo_ext.population.population import Population
from deevo_ext.search.configuration import Configuration
from deevo_ext.search.strategies import compile_pool


class Adaptation:
    """What a run has learnt and plans: the tensors that `plan` fills and `tell` learns from.

    The attributes have the names and shapes of the operators' arguments (`deevo_ext.ops.tables`).
    They are changed in place, which lets the operators be bound to them once.
    """

    def __init__(self, configuration: Configuration, population: Population, seed: int) -> None:
        size, device = population.size, population.rows.device
        layout = population.layout
        self.genes = layout.genes(configuration.crossover_unit).to(device)
        genes = self.genes.numel()

        def table(dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._weights = layout.weights
        self.settings = configuration.settings(layout.weights, genes).to(device)
        self.strategies = compile_pool(configuration.strategies).to(device)
        self.state = configuration.initial_state().to(device)
        self.fitness = table(torch.float64, size).fill_(math.inf)
        self.alive = table(torch.uint8, size).fill_(1)
        self.generation = table(torch.int64, 1).fill_(1)
        self.choices = table(torch.int32, size, NUM_CHOICE_COLUMNS)
        self.parameters = table(torch.float64, size, NUM_PARAMETER_COLUMNS)
        self.coefficients = table(torch.float32, size, MAX_TERMS)
        self.gene_mask = table(torch.int32, size, gene_words(genes))
        self.accepted = table(torch.uint8, size)
        self.archive_slot = table(torch.int32, size).fill_(-1)
        at = configuration.offsets()
        self.odds = self.state[at.odds : at.sinusoid1_odds]  # of the strategies
        self.plan = BoundOperator(
            "plan",
            settings=self.settings,
            strategies=self.strategies,
            state=self.state,
            fitness=self.fitness,
            alive=self.alive,
            generation=self.generation,
            seed=seed,
            choices=self.choices,
            parameters=self.parameters,
            coefficients=self.coefficients,
            gene_mask=self.gene_mask,
        )
        self._tell = BoundOperator(
            "tell",
            settings=self.settings,
            strategies=self.strategies,
            trial_fitness=self.fitness.clone(),
            choices=self.choices,
            parameters=self.parameters,
            seed=seed,
            state=self.state,
            fitness=self.fitness,
            alive=self.alive,
            generation=self.generation,
            accepted=self.accepted,
            archive_slot=self.archive_slot,
        )

    def reschedule(self, configuration: Configuration) -> None:
        """Takes a configuration that differs in the number of generations alone."""
        settings = configuration.settings(self._weights, self.genes.numel())
        self.settings.copy_(settings)

    def score_parents(self, fitness: torch.Tensor) -> None:
        """Takes the parents' fitness, [NP] on the device; NaN and members taken out get +inf."""
        lost = fitness.isnan() | (self.alive == 0)
        self.fitness.copy_(torch.where(lost, math.inf, fitness))

    def tell(self, trial_fitness: torch.Tensor) -> None:
        """Selects among parents and trials, [NP] on the device, and learns from the outcome."""
        self._tell(trial_fitness=trial_fitness)
