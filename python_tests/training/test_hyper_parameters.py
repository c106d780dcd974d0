"""The hyper-parameters of gradient descent, and how the members of a population differ in them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from deevo_ext.errors import DeevoError
from deevo_ext.training.hyper_parameters import Choices, HyperParameters, derived_seed
from deevo_ext.training.trainings import PopulationOptions, Trainings, trainings_of


def _trainings(images: int = 1000, **options: Any) -> Trainings:
    values = {"members": 5, "batch_size": 100, "learning_rate": 0.01, **options}
    return trainings_of(images, PopulationOptions(**values))


def test_rate_rises_stays_and_falls() -> None:
    flat = HyperParameters(seed=0, steps=100, batch_size=8, learning_rate=0.1)
    rates = [flat.rate(step) for step in range(100)]
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1]) and set(rates[5:]) == {0.1}
    falling = dataclasses.replace(flat, anneal=0.5)
    rates = [falling.rate(step) for step in range(100)]
    assert rates[49] == 0.1 and rates[75] == pytest.approx(0.05) and 0 < rates[99] < 0.003
    for field, value in {
        "steps": 0,
        "learning_rate": 0.0,
        "label_smoothing": 1.0,
        "optimizer": "lbfgs",
    }.items():
        with pytest.raises(DeevoError, match=field):
            dataclasses.replace(flat, **{field: value})


def test_no_two_members_are_alike_and_none_depends_on_how_many() -> None:
    many = _trainings(members=30, shift=2)
    members = list(many.members.values())
    bare = {dataclasses.astuple(dataclasses.replace(member, seed=0)) for member in members}
    assert len(bare) == 30 and len({member.seed for member in members}) == 30
    assert list(_trainings(shift=2).members.items()) == list(many.members.items())[:5]
    for field in ("learning_rate", "weight_decay", "label_smoothing", "shift", "mirror", "mixup"):
        assert len({getattr(member, field) for member in members[:12]}) > 1, field
    rates = [member.learning_rate for member in members[:12]]
    assert min(rates) == 0.01 and max(rates) == 0.04
    assert all(member.steps == 10 for member in members) and many.steps == 300
    other = _trainings(seed=1).members.values()
    assert {member.seed for member in other}.isdisjoint({member.seed for member in members})
    assert not any(
        member.mirror for member in _trainings(mirror=False, base_epochs=1).members.values()
    )
    assert 0 <= derived_seed(2**63 - 1, 5) < 2**63


def test_snapshots_are_one_run_after_the_base() -> None:
    trainings = _trainings(members=2, epochs=2, base_epochs=1, snapshots=True)
    assert trainings.snapshots == (15, 20) and trainings.steps == 10 + 20
    assert len(set(trainings.members.values())) == 1
    assert [line[-1] for line in trainings.table()] == ["taken_at_step", "15", "20"]
    with pytest.raises(DeevoError, match="at least 12 steps"):
        _trainings(members=6, snapshots=True)


@pytest.mark.parametrize(
    "wrong", [{"members": 1}, {"epochs": 0}, {"seed": -1}, {"learning_rate": 0}]
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DeevoError):
        _trainings(**wrong)


def test_choices_are_read_and_drawn_by_lines() -> None:
    text = "crop:0.35, jitter:0.2,erase:0.1,cutmix:1,trivial"
    choices = Choices.parse(text)
    assert choices == Choices(0.0, 0.35, 0.2, True, 0.1, 1.0)
    lines = [choices.of_line(line) for line in range(12)]
    assert not any(lines[0].values())
    assert all(any(line[name] for line in lines) for name in ("crop", "jitter", "erase", "cutmix"))
    assert any(line["trivial"] for line in lines)
    assert Choices.parse("none") == Choices(0.0)
    assert Choices.for_images(1, 28, 28) == Choices() == Choices.parse("mixup:0.1")
    assert Choices.for_images(3, 224, 224).crop > 0
    for wrong in ("rotate", "crop", "crop:2", "erase:-1", "jitter:x", "", "none,crop:0.5"):
        with pytest.raises(DeevoError, match="augment is"):
            Choices.parse(wrong)
