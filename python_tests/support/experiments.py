"""Experiments made small, so that all of one is run in seconds."""

from __future__ import annotations

import pytest

from support.paths import import_from_checkout

import_from_checkout("experiments")

from experiments import bounds, cases, policies, populations  # noqa: E402


def make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes populations of digits and runs of a few seconds."""
    monkeypatch.setattr(populations, "SOURCE", "digits")
    monkeypatch.setattr(populations, "MEMBERS", 4)
    monkeypatch.setattr(populations, "WIDTH", 4)
    monkeypatch.setitem(populations._STEPS, "wide", 20)
    monkeypatch.setattr(populations, "_SHORT", (10,))
    monkeypatch.setattr(bounds, "_STEPS", 2)
    for module, constants in (
        (cases, {"GENERATIONS": 3, "IMAGES_PER_BATCH": 40, "VALIDATE_EVERY": 2, "VALIDATION": 60}),
        (policies, {"GENERATIONS": 2, "IMAGES": 40, "VALIDATION": 60, "CALIBRATION": 40}),
    ):
        for name, value in constants.items():
            monkeypatch.setattr(module, name, value)
