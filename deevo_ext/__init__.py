"""Evolves the weights of trained networks by adaptive differential evolution.

    import deevo_ext as deevo

    population = deevo.Population.from_checkpoints(model, "runs/*.pth")
    de = deevo.DifferentialEvolution(population, generations=100, seed=0)

Importing registers the operators `torch.ops.deevo.plan`, `trials`, `tell` and `commit`; it needs no
GPU, driver or compiler.
"""

from deevo_ext import backends as _backends
from deevo_ext import ops as _ops  # noqa: F401  (registers torch.ops.deevo)
from deevo_ext._version import __version__
from deevo_ext.data.cached import CachedImages
from deevo_ext.data.images import ImageSet
from deevo_ext.data.labelled import LabelledImages
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.base import Fitness
from deevo_ext.fitness.classification import ClassificationFitness
from deevo_ext.fitness.dataset import DatasetFitness
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.metrics import Metric
from deevo_ext.networks.forward import Losses, PopulationForward
from deevo_ext.population.population import Population
from deevo_ext.reports.trackers import Tracker
from deevo_ext.runs.evolve import evolve
from deevo_ext.runs.merge import Merged, merge
from deevo_ext.runs.options import EvaluationOptions, FitnessOptions, MemberOptions, RunOptions
from deevo_ext.runs.replay import replay
from deevo_ext.runs.result import Result
from deevo_ext.runs.run import Evolution
from deevo_ext.runs.validation import FitnessValidation
from deevo_ext.search.configuration import Configuration
from deevo_ext.search.optimizer import DifferentialEvolution
from deevo_ext.search.presets import PRESETS
from deevo_ext.search.strategies import Strategy
from deevo_ext.search.trials import Trials

_backends.run_backend_file()

__all__ = [
    "PRESETS",
    "CachedImages",
    "ClassificationFitness",
    "Configuration",
    "DatasetFitness",
    "DeevoError",
    "DifferentialEvolution",
    "EvaluationOptions",
    "Evaluator",
    "Evolution",
    "Fitness",
    "FitnessOptions",
    "FitnessValidation",
    "ImageSet",
    "LabelledImages",
    "Losses",
    "MemberOptions",
    "Merged",
    "Metric",
    "Population",
    "PopulationForward",
    "Result",
    "RunOptions",
    "Strategy",
    "Tracker",
    "Trials",
    "__version__",
    "evolve",
    "merge",
    "replay",
]
