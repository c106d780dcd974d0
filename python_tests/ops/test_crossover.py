"""Crossover by genes, forced mutants (j_rand) and bounds: plan, trials and commit."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from deevo_ext import backends
from deevo_ext.errors import DeevoError
from deevo_ext.ops.tables import ChoiceColumn, gene_words
from deevo_ext.search.presets import configure
from support.operators import (
    BIG_SEED,
    GENERATION,
    MIXED,
    NATIVE_BACKENDS,
    Evolution,
    evolution,
    same_bits,
    serving,
)
from support.oracles import oracle_trial, philox_words, words
from support.weights import Weights, random_weights

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORCED = int(ChoiceColumn.FORCED)
THRESHOLD = int(ChoiceColumn.THRESHOLD)

SERVING = serving(*GENERATION)


def bits(mask: torch.Tensor, genes: int) -> list[bool]:
    """The genes of one member's mask; asserts that the rest of the last word is empty."""
    whole = sum((word & 0xFFFFFFFF) << 32 * i for i, word in enumerate(mask.tolist()))
    assert whole >> genes == 0
    return [bool(whole >> k & 1) for k in range(genes)]


def planned(genes: int, weights: int = 0, generation: int = 4, **changes: object) -> Evolution:
    c = configure("paper", strategies=MIXED, archive_size=3, **changes)
    fitness = torch.linspace(1.0, 2.0, 9, dtype=torch.float64)
    run = evolution(c, fitness, BIG_SEED, generation, weights, genes)
    run.alive[3] = 0
    run.plan()
    return run


@pytest.mark.parametrize("genes", [1, 31, 32, 33, 250])
def test_gene_masks_are_the_contracts_draws(backend: str, genes: int) -> None:
    """Gene 8b + 2w + h uses half h of word w of block b of purpose 2, 7 rounds."""
    run = planned(genes)
    key = (BIG_SEED % 2**32, BIG_SEED // 2**32)
    for member in range(run.members):
        threshold = run.choices[member, THRESHOLD].item()
        expected = []
        for gene in range(genes):
            block, rest = divmod(gene, 8)
            word = philox_words((2, 4, member, block), key, 7)[rest // 2]
            expected.append((word >> 16 * (rest % 2) & 0xFFFF) < threshold)
        assert bits(run.gene_mask[member], genes) == expected
    assert not run.gene_mask[3].any()  # the dead change nothing


@pytest.mark.parametrize("genes", [0, 70])
def test_j_rand_is_the_contracts_draw(backend: str, genes: int) -> None:
    run = planned(genes, weights=1000, j_rand=True, cr_init=0.0, cr_std=0.0)
    kinds = set()
    for member in range(run.members):
        threshold, forced = run.choices[member, [THRESHOLD, FORCED]].tolist()
        binomial = bool(run.alive[member]) and threshold < 65536
        word = words(8, 4, member, 0, BIG_SEED)[0]
        kinds.add(binomial)
        if genes == 0:
            assert forced == ((word * 1000) >> 32 if binomial else -1)
            continue
        assert forced == -1
        if binomial:  # CR = 0: the forced gene is alone
            assert bits(run.gene_mask[member], genes) == [
                gene == (word * genes) >> 32 for gene in range(genes)
            ]
    assert kinds == {True, False}


def test_forced_mutants_are_uniform() -> None:
    run = evolution(configure("paper", j_rand=True), torch.linspace(1, 2, 4000).double(), weights=7)
    run.plan()
    forced = run.choices[:, FORCED]
    counts = torch.bincount(forced[forced >= 0].long(), minlength=7)
    share = counts.sum() / 7.0  # binomial: five standard deviations
    assert ((counts - share).abs() < 5.0 * math.sqrt(share * 6.0 / 7.0)).all()


def variants() -> dict[str, dict[str, object]]:
    return {
        "genes": {"genes": 40},
        "many genes": {"genes": 128},
        "forced": {"forced": True},
        "bounds": {"bounds": (-0.5, 1.25)},
        "one bound": {"bounds": (-math.inf, 0.0)},
        "all": {"genes": 33, "forced": True, "bounds": (-1.0, 1.0)},
    }


@pytest.mark.parametrize("name", variants())
@pytest.mark.parametrize("dtype", DTYPES)
def test_trials_follow_the_oracle(backend: str, dtype: torch.dtype, name: str) -> None:
    for draw in range(3):
        w = random_weights(6, 129, dtype, seed=BIG_SEED, draw=draw, **variants()[name])
        if w.genes.numel() == 0:
            w.choices[1, THRESHOLD] = w.choices[2, THRESHOLD] = 0
        trials = w.trials()
        for member in range(6):
            assert same_bits(trials[member], oracle_trial(w, member)), member


@pytest.mark.parametrize("name", variants())
@pytest.mark.parametrize("dtype", DTYPES)
def test_backends_agree(dtype: torch.dtype, name: str) -> None:
    for columns in (129, 5003):
        w = random_weights(6, columns, dtype, seed=3, **variants()[name])
        accepted = torch.tensor([1, 1, 0, 1, 0, 1], dtype=torch.uint8)
        slots = torch.tensor([1, -1, -1, 0, -1, -1], dtype=torch.int32)
        results = []
        for backend_name in serving("trials", "commit", among=NATIVE_BACKENDS):
            with backends.use(backend_name):
                own = w.clone()
                trials = own.trials()
                own.commit(accepted, slots)
                results.append((trials, own.population, own.archive))
        for other in results[1:]:
            assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


def test_slices_of_columns_share_genes_and_forced_weights(backend: str) -> None:
    w = random_weights(5, 160, genes=30, forced=True)
    for genes in (w.genes, w.genes[:0]):
        w = dataclasses.replace(w, genes=genes, gene_mask=w.gene_mask if genes.numel() else None)
        whole = w.trials()
        for start, end in ((0, 40), (40, 96), (96, 160)):
            part = dataclasses.replace(w, population=w.population[:, start:end],
                                       archive=w.archive[:, start:end], first_weight=start,
                                       nonneg_start=max(w.nonneg_start - start, 0))  # fmt: skip
            assert same_bits(part.trials(), whole[:, start:end].contiguous())


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_trial_leaves_the_bounds(backend: str, dtype: torch.dtype) -> None:
    bounds = (-0.375, 0.25)
    w = random_weights(20, 1000, dtype, nonneg=0, bounds=bounds)
    w.coefficients.mul_(4.0)
    trials = w.trials()
    assert trials.min() >= bounds[0] and trials.max() <= bounds[1]
    assert ((trials != w.population).sum(1) > 100).any()  # not by standing still


def test_bad_genes_and_bounds_are_refused(backend: str) -> None:
    w = random_weights(4, 32, genes=3)
    assert w.gene_mask is not None
    for genes in ([1, 2, 3], [0, 5, 5], [0, 7, 3]):
        bad = dataclasses.replace(w, genes=torch.tensor(genes))
        with pytest.raises(DeevoError, match="deevo::trials: genes are not ascending starts"):
            bad.trials()
        with pytest.raises(DeevoError, match="deevo::commit: genes are not ascending starts"):
            bad.commit(torch.ones(4, dtype=torch.uint8), torch.full((4,), -1, dtype=torch.int32))
    for bounds, message in (
        ((0.5, 1.0), "lower is 0.5 with upper 1.0; expected lower <= 0 <= upper"),
        ((-1.0, -0.5), "lower is -1.0 with upper -0.5; expected lower <= 0 <= upper"),
        ((-0.1, 1.0), "lower is -0.1; expected a number that torch.float32 holds exactly"),
        ((-1.0, math.nan), "upper is nan; expected a number that torch.float32 holds exactly"),
    ):
        with pytest.raises(DeevoError, match=f"deevo::trials: {message}"):
            Weights(w.population, w.archive, w.choices, w.coefficients, 1, 32,
                    bounds=bounds).trials()  # fmt: skip


@pytest.mark.parametrize(("genes", "size"), [(0, 0), (1, 1), (32, 1), (33, 2)])
def test_words_of_a_mask(genes: int, size: int) -> None:
    assert gene_words(genes) == size
