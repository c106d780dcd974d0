"""Evaluation of networks given as flat rows."""

from deevo_ext.inference.evaluator import Evaluator, Score
from deevo_ext.inference.forward import Losses, PopulationForward

__all__ = ["Evaluator", "Losses", "PopulationForward", "Score"]
