"""F, CR, frequencies and thresholds that plan draws: waves, distributions, bounds."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch

from deevo_ext.ops.tables import ChoiceColumn, ParameterColumn, Setting, Source, TermCode
from deevo_ext.search.presets import configure
from support.operators import (
    BIG_SEED,
    NATIVE_BACKENDS,
    Evolution,
    configurations,
    evolution,
    serving,
)
from support.plans import FITNESS, planned, scrambled_state

CONFIGURATIONS = configurations()

SERVING = serving("plan", among=NATIVE_BACKENDS)


def linear_f(run: Evolution, source: Source) -> torch.Tensor:
    chosen = run.choices[:, ChoiceColumn.SOURCE] == int(source)
    assert chosen.any()
    return run.parameters[chosen, ParameterColumn.F]


def assert_mean(values: torch.Tensor, mean: float, deviation: float) -> None:
    """Sample mean within 5 standard errors."""
    assert abs(values.mean().item() - mean) < 5.0 * deviation / math.sqrt(len(values))


# F


def test_sinusoid_1_is_constant_at_frequency_one_half(backend: str) -> None:
    """Headline find 2 of the dossier: sin(pi g + pi) is 0 at whole g, exactly here."""
    for generation in (1, 2, 3, 17, 49):
        run = planned(configure("paper"), 30, generation=generation)
        assert (linear_f(run, Source.SINUSOID_1) == 0.6).all()


def test_sinusoid_1_decreases_at_other_frequencies() -> None:
    c = configure("paper", sinusoid_1_frequency=0.25, sinusoid="decreasing", f_max=2.0)
    for generation in range(1, 50):
        run = planned(c, 8, generation=generation)
        wave = [0.0, -1.0, 0.0, 1.0][generation % 4]
        expected = 0.6 * (1.0 + wave * (100 - generation) / 100)
        assert linear_f(run, Source.SINUSOID_1).tolist() == pytest.approx(
            [expected] * len(linear_f(run, Source.SINUSOID_1)), abs=1e-12
        )


def test_sinusoid_2_amplitude_grows_with_the_generation() -> None:
    c = configure("paper", sinusoid="increasing", f_min=-10.0, f_max=10.0, frequency_std=1.0)
    for generation in (1, 10, 49):
        run = planned(c, 400, generation=generation)
        f = linear_f(run, Source.SINUSOID_2)
        amplitude = 0.6 * generation / 100
        assert (f - 0.6).abs().max() <= amplitude * (1 + 1e-12)
        assert (f - 0.6).abs().max() > amplitude * 0.95
        chosen = run.choices[:, ChoiceColumn.SOURCE] == int(Source.SINUSOID_2)
        frequency = run.parameters[chosen, ParameterColumn.FREQUENCY]
        wave = torch.sin(2 * math.pi * frequency * generation)
        assert torch.allclose(f, 0.6 * (1 + wave * generation / 100), atol=1e-12)
        assert ((frequency > 0) & (frequency <= 1)).all()


@pytest.mark.parametrize("mean", [-1e6, 0.0])
def test_redraws_end(backend: str, mean: float) -> None:
    """The first valid of 32 attempts, else clipped."""
    c = configure("paper", sinusoid="increasing", frequency_std=0.0, switch=0.5, f_std=0.0,
                  f_distribution="cauchy")  # fmt: skip
    at = c.offsets()
    for generation in (3, 60):
        run = evolution(c, FITNESS["random"](6), generation=generation)
        run.state[: at.memory_cr] = mean
        run.state[at.memory_frequency : at.pointer] = mean
        run.plan()
        linear = run.choices[:, ChoiceColumn.SOURCE] != int(Source.NONE)
        assert (run.parameters[:, ParameterColumn.FREQUENCY] == 0.0).all()
        expected = 0.6 if generation == 3 else c.f_min
        assert (run.parameters[linear, ParameterColumn.F] == expected).all()


def test_sinusoids_end_at_the_switch() -> None:
    c = configure("paper", generations=20)
    before, after = planned(c, 100, generation=9), planned(c, 100, generation=10)
    sinusoids = {int(Source.NONE), int(Source.SINUSOID_1), int(Source.SINUSOID_2)}
    assert set(before.choices[:, ChoiceColumn.SOURCE].tolist()) == sinusoids
    memory = {int(Source.NONE), int(Source.MEMORY)}
    assert set(after.choices[:, ChoiceColumn.SOURCE].tolist()) == memory
    none = planned(configure("paper", sinusoid="none"), 100)
    assert set(none.choices[:, ChoiceColumn.SOURCE].tolist()) == memory


def test_f_after_the_switch_is_normal_around_the_memory() -> None:
    run = planned(configure("paper", f_init=0.5), 20000, generation=60)
    f = linear_f(run, Source.MEMORY)
    assert_mean(f, 0.5, 0.05)
    assert f.std().item() == pytest.approx(0.05, rel=5.0 / math.sqrt(2 * len(f)))
    for quantile in (0.01, 0.25, 0.75, 0.99):
        below = (f < NormalDist(0.5, 0.05).inv_cdf(quantile)).double()
        assert_mean(below, quantile, math.sqrt(quantile * (1 - quantile)))


def test_cauchy_f_has_the_truncated_cauchy_quantiles() -> None:
    c = configure("paper", f_init=0.5, f_distribution="cauchy", f_std=0.1, f_max=1.0, f_min=0.0)
    f = linear_f(planned(c, 20000, generation=60), Source.MEMORY)

    def cdf(x: float) -> float:
        return 0.5 + math.atan((x - 0.5) / 0.1) / math.pi

    for x in (0.05, 0.3, 0.5, 0.7, 0.99):
        expected = (cdf(x) - cdf(0.0)) / (1 - cdf(0.0))
        assert_mean((f < x).double(), expected, math.sqrt(expected * (1 - expected)))
    assert_mean((f == 1.0).double(), (1 - cdf(1.0)) / (1 - cdf(0.0)), 0.3)


def test_settings_table_is_read_by_name() -> None:
    """A setting moved in one of the two tables would show here."""
    run = evolution(configure("paper", sinusoid="none", f_std=0.0), FITNESS["random"](9))
    run.settings[Setting.F_MAX] = 0.125
    run.plan()
    assert (linear_f(run, Source.MEMORY) == 0.125).all()
    assert TermCode.ARCHIVE == 8


# CR


def test_cr_is_normal_around_the_memory_and_clipped() -> None:
    run = planned(configure("paper", cr_init=0.5), 20000)
    binomial = run.choices[:, ChoiceColumn.STRATEGY] < 4
    cr = run.parameters[binomial, ParameterColumn.CR]
    assert_mean(cr, 0.5, 0.05)
    assert cr.std().item() == pytest.approx(0.05, rel=5.0 / math.sqrt(2 * len(cr)))
    assert (run.parameters[~binomial, ParameterColumn.CR] == 1.0).all()
    assert (run.choices[~binomial, ChoiceColumn.THRESHOLD] == 65536).all()
    clipped = planned(configure("paper", cr_init=0.6, cr_min=0.59, cr_max=0.61, cr_std=0.5), 2000)
    cr = clipped.parameters[clipped.choices[:, ChoiceColumn.STRATEGY] < 4, ParameterColumn.CR]
    assert cr.min() == 0.59
    assert cr.max() == 0.61


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_f_and_cr_stay_inside_their_bounds(name: str) -> None:
    c = CONFIGURATIONS[name]
    for generation in range(1, 60, 7):
        run = evolution(c, FITNESS["random"](500), BIG_SEED, generation)
        scrambled_state(run)
        run.plan()
        linear = run.choices[:, ChoiceColumn.SOURCE] != int(Source.NONE)
        f = run.parameters[linear, ParameterColumn.F]
        assert ((f >= c.f_min) & (f <= c.f_max)).all()
        drawn = run.choices[:, ChoiceColumn.THRESHOLD] < 65536
        cr = run.parameters[drawn, ParameterColumn.CR]
        terminal = cr == 0.0
        assert (terminal | ((cr >= c.cr_min) & (cr <= c.cr_max))).all()


def test_terminal_cr_gives_0(backend: str) -> None:
    c = configure("paper", cr_init=0.9, cr_min=0.5, memory_size=1)
    run = evolution(c, FITNESS["random"](20))
    at = c.offsets()
    run.state[at.memory_cr : at.memory_cr + 5] = -1.0
    run.plan()
    binomial = run.choices[:, ChoiceColumn.STRATEGY] < 4
    assert (run.parameters[binomial, ParameterColumn.CR] == 0.0).all()
    assert (run.choices[binomial, ChoiceColumn.THRESHOLD] == 0).all()


@pytest.mark.parametrize(
    ("cr", "threshold"),
    [
        (0.0, 0),
        (1e-300, 1),
        (0.25 / 65536, 1),
        (1.0 / 65536, 1),
        (1.5 / 65536, 2),
        (2.5 / 65536, 2),  # halves to even
        (2.5000001 / 65536, 3),
        (0.5, 32768),
        (1.0 - 0.75 / 65536, 65535),
        (1.0 - 0.25 / 65536, 65536),
        (1.0, 65536),
    ],
)
def test_threshold_of_cr(backend: str, cr: float, threshold: int) -> None:
    run = planned(configure("paper", cr_init=cr, cr_std=0.0, cr_max=1.0), 12)
    binomial = run.choices[:, ChoiceColumn.STRATEGY] < 4
    assert (run.parameters[binomial, ParameterColumn.CR] == cr).all()
    assert (run.choices[binomial, ChoiceColumn.THRESHOLD] == threshold).all()
