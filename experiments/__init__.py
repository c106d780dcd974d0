"""Experiments on populations of small networks: what evolution gains, and what bounds it.

`python -m experiments populate | run | racing | policies | report`, from a checkout;
docs/evidence.md says what was found with them.
"""
