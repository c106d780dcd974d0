"""The comparison's statistics, its text, soups and the picture of a run."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from deevo_ext.errors import DeevoError
from deevo_ext.runs.comparison import (
    Comparison,
    Difference,
    Measured,
    bootstrap_interval,
    mcnemar,
)
from deevo_ext.runs.soups import average, greedy_soup
from support.evolution import population


def test_bootstrap_interval_covers_a_normal_mean_as_it_should() -> None:
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for trial in range(200):
        values = torch.randn(300, generator=generator, dtype=torch.float64) + 0.3
        low, high = bootstrap_interval(values, resamples=400, seed=trial)
        assert low < high
        hits += low <= 0.3 <= high
    # 95 % of 200 with a standard deviation of 3.1; four of them either way.
    assert 177 <= hits <= 200
    values = torch.randn(1000, generator=generator, dtype=torch.float64)
    low, high = bootstrap_interval(values)
    width = 2 * 1.96 * float(values.std()) / math.sqrt(1000)
    assert (high - low) == pytest.approx(width, rel=0.1)
    assert bootstrap_interval(values) == (low, high)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    from scipy.stats import binomtest

    for gained, lost in [(0, 0), (1, 0), (3, 9), (9, 3), (40, 40), (120, 90), (3000, 2700)]:
        expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)


def comparison(low: float, high: float, evolved: str = "evolved soup") -> Comparison:
    row = Measured("evolved soup", 0.25, 0.9, 100, 3, 1, 5000, 1.5, 1, True)
    rival = Difference("classifier refitted", (low + high) / 2, (low, high))
    parent = Difference("best parent", -0.3, (-0.4, -0.2))
    return Comparison([row], evolved, rival, parent, "loss", "test")


def test_verdicts() -> None:
    assert "no measurable difference" in comparison(-0.1, 0.2).verdict
    assert "no measurable difference" in comparison(0.0, 0.0).verdict
    better = comparison(-0.2, -0.1)
    assert better.verdict == (
        "The network that was evolved (evolved soup) is better than the best initial one, the "
        "classifier refitted, on test: loss difference -0.15000, 95 % paired bootstrap interval "
        "[-0.20000, -0.10000]; it is better than the best parent: -0.30000, 95 % paired bootstrap "
        "interval [-0.40000, -0.20000]."
    )
    same = dataclasses.replace(better, rival=better.parent)
    assert same.verdict.count("best parent") == 1
    worse = comparison(0.1, 0.2, "evolved mean").verdict
    assert worse.startswith("Validation chose the evolved soup, which is returned; the network")
    assert "(evolved mean) is worse than the best initial one" in worse
    broken = comparison(math.nan, math.nan)
    assert "cannot be compared" in broken.verdict
    assert broken.to_json()["rival"]["mean"] is None


def test_table_as_text_and_json(tmp_path: Path) -> None:
    c = comparison(-0.2, -0.1)
    text = c.format()
    assert "> evolved soup" in text and "5,000" in text and c.verdict in text
    assert dataclasses.replace(c, note="keep the soup.").format().endswith("keep the soup.")
    c.save(tmp_path / "table.json", data="digits")
    saved = json.loads((tmp_path / "table.json").read_text())
    assert Comparison.load(tmp_path / "table.json") == c
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(DeevoError, match="not the table of a run"):
        Comparison.load(tmp_path / "broken.json")
    assert saved["data"] == "digits" and saved["rival"]["interval"] == [-0.2, -0.1]
    assert "margin" not in text
    by_margin = dataclasses.replace(
        c, networks=[dataclasses.replace(c.networks[0], metric=1.5)], metric="package.margin"
    )
    assert "margin" in by_margin.format().splitlines()[0] and "1.5000" in by_margin.format()
    by_margin.save(tmp_path / "margin.json")
    assert Comparison.load(tmp_path / "margin.json") == by_margin
    assert saved["rows"][0]["mcnemar"] == pytest.approx(2 * 5 / 16)  # 3 gained, 1 lost
    assert {"loss", "top1", "images", "forward_passes"} <= saved["rows"][0].keys()


def test_average_is_the_mean_of_the_members() -> None:
    pop = population(5)
    row, statistics = average(pop, [1, 3, 4])
    expected = pop.rows[[1, 3, 4]].double().mean(dim=0)
    assert statistics is None and torch.allclose(row.double(), expected, rtol=1e-7, atol=0)


def test_greedy_soup_is_the_greedy_choice() -> None:
    pop = population(6)
    target = pop.mean([0, 2, 5])

    def score(row: torch.Tensor, statistics: torch.Tensor | None) -> float:
        return float((row.double() - target.double()).square().sum())

    losses = [score(row, None) for row in pop.rows]
    chosen, best = greedy_soup(pop, range(pop.size), losses, score)
    expected = [int(np.argmin(losses))]
    for member in sorted(range(6), key=losses.__getitem__)[1:]:
        if score(pop.mean([*expected, member]), None) <= score(pop.mean(expected), None):
            expected.append(member)
    assert chosen == expected and best == score(pop.mean(chosen), None) <= min(losses)
