"""Evaluation of networks given as flat rows."""

from deevo_ext.inference.evaluator import Evaluator, Score

__all__ = ["Evaluator", "Score"]
