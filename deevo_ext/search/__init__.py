"""Differential evolution: who tries what, and what it learns from fitness values."""
