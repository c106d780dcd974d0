"""Experiments on populations of small networks: what evolution gains, and what bounds it.

`python -m experiments --help`, from a checkout, lists them; docs/evidence.md says what was found.
"""
