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
from deevo_ext.fitness.metrics import Metric
from deevo_ext.runs.comparison import Comparison, Measured
from deevo_ext.runs.paired import Difference, bootstrap_interval, mcnemar
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
    rows = [
        Measured("best parent", 0.55, 0.8, 100, 0, 0, 500, 0.1, 1, False),
        Measured("classifier refitted", 0.4, 0.85, 100, 5, 1, 900, 0.2, 1, False),
        Measured("logit ensemble", 0.2, 0.91, 100, 9, 1, 0, 0.0, 7, False),
        Measured("evolved soup", 0.25, 0.9, 100, 3, 1, 5000, 1.5, 1, True),
        Measured("evolved mean", 0.45, 0.9, 100, 3, 1, 5000, 1.5, 1, False),
    ]
    rival = Difference("classifier refitted", (low + high) / 2, (low, high))
    parent = Difference("best parent", -0.3, (-0.4, -0.2))
    return Comparison(rows, evolved, rival, parent, "loss", "test")


ENSEMBLE = " The logit ensemble of all 7 comes to 0.2000 at 7 times its cost per image."


def test_verdicts() -> None:
    assert "no measurable difference" in comparison(-0.1, 0.2).verdict
    assert "no measurable difference" in comparison(0.0, 0.0).verdict
    better = comparison(-0.2, -0.1)
    assert better.verdict == (
        "The network that was evolved (evolved soup) is better than the best initial one by "
        "validation, the classifier refitted, on test: loss 0.2500 against 0.4000, a "
        "difference of -0.15000 [-0.20000, -0.10000], the 95 % paired bootstrap interval in "
        "brackets; it is better than the best parent: 0.2500 against 0.5500, a difference of "
        "-0.30000 [-0.40000, -0.20000]." + ENSEMBLE
    )
    same = dataclasses.replace(better, rival=better.parent)
    assert same.verdict.count("best parent") == 1
    worse = comparison(0.1, 0.2, "evolved mean").verdict
    assert worse.startswith("Validation chose the evolved soup, which is returned; the network")
    assert "(evolved mean) is worse than the best initial one" in worse
    assert "loss 0.4500 against 0.4000" in worse
    broken = comparison(math.nan, math.nan)
    assert "cannot be compared" in broken.verdict
    assert broken.to_json()["rival"]["mean"] is None
    nothing = dataclasses.replace(better, evolved=None, rival=None).verdict
    assert nothing == (
        "No step of the search was taken; the evolved soup is returned, which is better than the "
        "best parent on test: loss 0.2500 against 0.5500, a difference of -0.30000 [-0.40000, "
        "-0.20000], the 95 % paired bootstrap interval in brackets." + ENSEMBLE
    )


def test_nothing_is_said_of_differences_that_are_not_finite() -> None:
    def minus_log(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        right = (logits.argmax(dim=1) == labels).double()
        return -torch.stack([right[labels == c].mean() for c in range(2)]).min().log()

    # A class of which both networks get few images right, and in some resamples none.
    labels = torch.arange(200) % 20 == 0
    sure = torch.nn.functional.one_hot(labels.long(), 2).float()
    few, fewer = (sure.clone() for _ in range(2))
    for one, right in ((few, 2), (fewer, 1)):
        places = labels.nonzero().flatten()[right:]
        one[places] = one[places].flip(1)
    metric = Metric.of(minus_log, whole=True)
    for both in ((few, fewer), (fewer, few)):
        difference = Difference.of("best parent", metric, *both, labels.long())
        assert math.isfinite(difference.mean) and not difference.finite
        assert difference.finding == "shows no measurable difference to"
    for higher in (False, True):  # a bound that is known decides, the other is the same or infinite
        for interval, low in (((0.1, math.nan), higher), ((math.nan, -0.1), not higher)):
            said = Difference("best parent", 0.0, interval, higher).finding
            assert said == ("is better than" if low else "is worse than")
        unknown = Difference("best parent", 0.0, (-0.762, math.nan), higher).finding
        assert "no measurable difference" in unknown

    whole = comparison(-0.2, -0.1)
    for mean, interval in ((0.2, (-0.762, math.nan)), (math.nan, (math.nan, math.nan))):
        rival = Difference("classifier refitted", mean, interval)
        parent = Difference("best parent", mean, interval)
        text = dataclasses.replace(whole, rival=rival).verdict
        assert "cannot be compared with the best initial one" in text and "nan" not in text
        text = dataclasses.replace(whole, parent=parent).verdict
        assert "is better than the best initial one" in text and "nan" not in text
        assert "; it cannot be compared with the best parent: a loss, or that of a" in text
        nothing = dataclasses.replace(whole, evolved=None, rival=None, parent=parent)
        assert nothing.verdict == (
            "No step of the search was taken; the evolved soup is returned, which cannot be "
            "compared with the best parent on test: a loss, or that of a resample of the images, "
            "is not finite." + ENSEMBLE
        )


def test_verdicts_are_in_the_users_metric() -> None:
    of_loss = comparison(0.1, 0.2)
    rows = [
        dataclasses.replace(row, metric=1.0 - 2.0 * (1.0 - row.top1)) for row in of_loss.networks
    ]
    rival = dataclasses.replace(of_loss.rival, higher_is_better=True)
    parent = Difference("best parent", 0.2, (0.1, 0.3), True)
    own = dataclasses.replace(
        of_loss, networks=rows, rival=rival, parent=parent, metric="worst-class"
    )
    assert (
        "the classifier refitted, on test: worst class 0.8000 against 0.7000, a difference of +"
        in own.verdict
    )
    assert (
        "is better than the best parent: 0.8000 against 0.6000, a difference of +0.2" in own.verdict
    )
    assert own.verdict.endswith("7 comes to 0.8200 at 7 times its cost per image.")
    shares = dataclasses.replace(own, metric="top1").verdict
    assert "top-1 0.9000 against 0.8500" in shares


def test_table_as_text_and_json(tmp_path: Path) -> None:
    c = comparison(-0.2, -0.1)
    rows, text = c.networks, c.format()
    assert "> evolved soup" in text and "5,000" in text and c.verdict in text
    table, legend, verdict = text.split("\n\n")
    assert len(table.splitlines()) == 1 + len(c.networks) and verdict == c.verdict
    assert all(f" {column} " in f" {legend.lower()}" for column in ("gained", "lost", "p"))
    assert dataclasses.replace(c, note="keep the soup.").format().endswith("keep the soup.")
    c.save(tmp_path / "table.json", data="digits")
    saved = json.loads((tmp_path / "table.json").read_text())
    assert Comparison.load(tmp_path / "table.json") == c
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(DeevoError, match="not the table of a run"):
        Comparison.load(tmp_path / "broken.json")
    with pytest.raises(DeevoError, match=r"none\.json does not exist: .* --test IMAGES gives"):
        Comparison.load(tmp_path / "none.json")
    assert saved["data"] == "digits" and saved["rival"]["interval"] == [-0.2, -0.1]
    assert "margin" not in text
    by_margin = dataclasses.replace(
        c,
        networks=[dataclasses.replace(network, metric=1.5) for network in c.networks],
        metric="package.margin",
    )
    assert "margin" in by_margin.format().splitlines()[0] and "1.5000" in by_margin.format()
    by_margin.save(tmp_path / "margin.json")
    assert Comparison.load(tmp_path / "margin.json") == by_margin
    broken = dataclasses.replace(by_margin.networks[0], metric=-math.inf)
    broken = dataclasses.replace(by_margin, networks=[broken, *by_margin.networks[1:]])
    broken.save(tmp_path / "broken_margin.json")
    for table in (broken, Comparison.load(tmp_path / "broken_margin.json")):
        cells = [line.split()[-7] for line in table.format().splitlines()[1 : 1 + len(rows)]]
        assert cells[0] in ("-inf", "nan") and cells[1:] == ["1.5000"] * (len(rows) - 1)
        assert cells[0] in table._repr_html_()
    assert saved["rows"][3]["mcnemar"] == pytest.approx(2 * 5 / 16)  # 3 gained, 1 lost
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
