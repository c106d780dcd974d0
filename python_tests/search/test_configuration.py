"""Parameters: presets, ranges, the settings and state that the operators get."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any

import pytest
import torch

from deevo_ext.errors import DeevoError
from deevo_ext.ops.tables import Setting
from deevo_ext.search.configuration import Configuration
from deevo_ext.search.presets import PRESETS, configure
from deevo_ext.search.strategies import Strategy
from support.operators import SADE, SHADE, configurations


def test_paper_preset_has_the_authors_values() -> None:
    c = configure("paper")
    assert [s.name for s in c.strategies] == [
        "to-random",
        "to-best",
        "to-both",
        "to-both-u",
        "trig",
    ]
    assert (c.f_init, c.f_std, c.f_min, c.f_max) == (0.6, 0.05, 1e-4, 0.99)
    assert (c.cr_init, c.cr_std, c.cr_min, c.cr_max) == (0.8, 0.05, 0.0, 0.99)
    assert (c.frequency_init, c.frequency_std, c.sinusoid_1_frequency) == (0.5, 0.1, 0.5)
    assert (c.memory_size, c.strategy_period, c.sinusoid_period, c.adapt_start) == (5, 10, 5, 1)
    assert (c.strategies[-1].cap, c.odds_floor, c.switch, c.archive_size) == (0.8, 0.01, 0.5, 0)


NEEDED = {"l-shade": {"archive_size": 23, "evaluations": 400}}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_and_json(preset: str) -> None:
    c = configure(preset, generations=17, **NEEDED.get(preset, {}))
    assert c.generations == 17
    assert Configuration(**json.loads(json.dumps(c.to_json()))) == c


@pytest.mark.parametrize("name", configurations())
def test_json_round_trip_of_other_pools(name: str) -> None:
    c = configurations()[name]
    again = Configuration(**json.loads(json.dumps(c.to_json())))
    assert again == c
    assert torch.equal(again.settings(), c.settings())


def test_every_setting_is_where_its_name_says() -> None:
    c = configure(
        "paper", strategies=SHADE, archive_size=9, generations=40, switch=0.25, trig_offset=True
    )
    settings = c.settings(weights=70, genes=5)
    assert settings.dtype == torch.float64
    assert settings.shape == (len(Setting),)
    special = {
        Setting.SWITCH_GENERATION: 10.0,
        Setting.F_DISTRIBUTION: 0.0,
        Setting.SINUSOID_MODE: 0.0,
        Setting.CR_MEAN: 0.0,
        Setting.ARCHIVE_CAPACITY: 9.0,
        Setting.J_RAND_RANGE: 0.0,
        Setting.GENES: 5.0,
        Setting.ARCHIVE_SHRINKS: 0.0,
    }
    for setting in Setting:
        if setting in special:
            assert settings[setting] == special[setting], setting.name
        else:
            assert settings[setting] == float(getattr(c, setting.name.lower())), setting.name
    for number, sinusoid in enumerate(("ensemble", "decreasing", "increasing", "none")):
        assert configure("paper", sinusoid=sinusoid).settings()[Setting.SINUSOID_MODE] == number
    cauchy = configure("paper", f_distribution="cauchy", cr_mean="arithmetic").settings()
    assert cauchy[Setting.F_DISTRIBUTION] == 1.0
    assert cauchy[Setting.CR_MEAN] == 1.0
    reduced = configure("l-shade", archive_size=9, evaluations=70).settings()
    assert (reduced[Setting.EVALUATIONS], reduced[Setting.ARCHIVE_SHRINKS]) == (70.0, 1.0)


@pytest.mark.parametrize(
    ("weights", "genes", "expected"), [(70, 0, 70.0), (70, 5, 5.0), (0, 0, 0.0)]
)
def test_j_rand_is_drawn_among_weights_or_genes(weights: int, genes: int, expected: float) -> None:
    settings = configure("paper", j_rand=True).settings(weights, genes)
    assert settings[Setting.J_RAND_RANGE] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lower": 0.5}, "lower is 0.5; expected None or a number in"),
        ({"upper": -1.0}, "upper is -1.0; expected None or a number in"),
        ({"upper": math.nan}, "upper is nan, of type float; expected a number or None"),
        ({"population_min": 3}, "population_min is 3; expected 0"),
        ({"evaluations": 500}, "evaluations is 500 without population_min"),
        ({"crossover_unit": "layer"}, "crossover_unit is 'layer'; expected one of weight, channel"),
        ({"j_rand": 1}, "j_rand is 1, of type int; expected True or False"),
    ],
)
def test_breadth_is_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DeevoError, match=message):
        configure("paper", **changes)


def test_what_presets_leave_open_is_asked_for() -> None:
    for given in ({}, {"archive_size": 31}, {"evaluations": 400}):
        with pytest.raises(DeevoError, match="number as evaluations, and archive_size"):
            configure("l-shade", **given)


def test_an_archive_is_as_large_as_the_population_where_one_is_read() -> None:
    assert configure("shade").for_members(9) == configure("shade", archive_size=9)
    given = configure("shade", archive_size=3)
    assert given.for_members(9) is given
    assert configure("paper").for_members(9) == configure("paper")


def test_initial_state() -> None:
    c = configure("paper", memory_size=3, frequency_init=0.25)
    at, state = c.offsets(), c.initial_state()
    assert state.shape == (at.size,)
    assert (state[at.memory_f : at.memory_cr] == 0.6).all()
    assert (state[at.memory_cr : at.memory_frequency] == 0.8).all()
    assert (state[at.memory_frequency : at.pointer] == 0.25).all()
    assert (state[at.pointer : at.odds] == 0.0).all()
    assert state[at.odds : at.sinusoid1_odds].tolist() == pytest.approx([0.2] * 5)
    assert state[at.sinusoid1_odds] == 0.5
    assert (state[at.archive_count :] == 0.0).all()


def test_members_needed_is_the_hungriest_strategys() -> None:
    assert configure("paper").members_needed == 4
    assert configure("paper", strategies=SADE).members_needed == 6
    assert configure("paper", strategies=[("r1", "bin")]).members_needed == 3


def test_strategies_may_be_given_in_short() -> None:
    c = configure(
        "paper",
        strategies=[("r1", "none"), ("mine", "best", "bin"), {"name": "x", "formula": "target"}],
    )
    assert c.strategies == (
        Strategy("r1", "r1", "none"),
        Strategy("mine", "best", "bin"),
        Strategy("x", "target"),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generations": 0}, "generations is 0"),
        ({"generations": 2.5}, "whole number"),
        ({"generations": 2**31}, "generations is"),
        ({"memory_size": 0}, "memory_size is 0"),
        ({"strategy_period": 0}, "strategy_period"),
        ({"sinusoid_period": 0}, "sinusoid_period"),
        ({"f_init": math.nan}, "f_init is nan"),
        ({"f_std": math.inf}, "f_std is inf"),
        ({"f_min": 0.9, "f_max": 0.1}, "f_min is 0.9, above f_max"),
        ({"cr_init": 1.2}, "cr_init is 1.2"),
        ({"cr_min": 0.6, "cr_max": 0.5}, "cr_min is 0.6, above cr_max"),
        ({"cr_std": "wide"}, "cr_std is 'wide'"),
        ({"switch": -0.1}, "switch is -0.1"),
        ({"pbest_min": 0.3}, "pbest_min is 0.3, above pbest_max"),
        ({"odds_floor": 0.0}, "odds_floor"),
        ({"archive_size": -1}, "archive_size"),
        ({"f_distribution": "levy"}, "expected one of normal, cauchy"),
        ({"cr_mean": "median"}, "expected one of lehmer, arithmetic"),
        ({"sinusoid": "both"}, "expected one of ensemble"),
        ({"strategies": []}, "strategies is empty"),
        ({"strategies": ["r1"]}, "a strategy is 'r1'"),
        ({"strategies": [Strategy("a", "r1 + r2")]}, "must sum to 1"),
        ({"strategy": ()}, "unknown parameter 'strategy'"),
    ],
)
def test_wrong_parameters_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DeevoError, match=message):
        configure("paper", **changes)


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(DeevoError, match="preset is 'lshade'; expected one of paper"):
        configure("lshade")


def test_every_parameter_is_documented() -> None:
    documentation = Configuration.__doc__ or ""
    for field in fields(Configuration):
        assert field.name in documentation
