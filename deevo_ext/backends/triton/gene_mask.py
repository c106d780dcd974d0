"""The second half of plan: which genes take the mutant, a bit each.

Gene k's 16 random bits are half h of word w of block b, k = 8b + 2w + h, as weights' are; its bit
is set where they are below the member's threshold, or where j_rand forces it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from deevo_ext.backends.triton.launch import launch
from deevo_ext.backends.triton.philox import below, first_word, mask_draws
from deevo_ext.backends.triton.tables import (
    CHOICE_COLUMNS,
    CROSSOVER,
    GENERATION,
    GENES,
    J_RAND_RANGE,
    PURPOSE_GENE_MASK,
    PURPOSE_J_RAND,
    STRATEGY,
    STRATEGY_COLUMNS,
    THRESHOLD,
)

WORDS = 64
WARPS = 4


@triton.jit
def forced_mutant(settings, seed, generation, member, binomial):
    """j_rand: the weight or gene that takes the mutant whatever CR says; -1: none."""
    candidates = tl.load(settings + J_RAND_RANGE).to(tl.int64).to(tl.uint32)
    word = first_word(seed, PURPOSE_J_RAND, generation, member, 0)
    drawn = below(word, candidates + tl.zeros_like(word))
    return tl.where(binomial & (candidates != 0), drawn, -1)


@triton.jit(do_not_specialize=["num_words", "seed"])
def gene_mask_kernel(
    settings,
    strategies,
    alive,
    choices,
    gene_mask,
    num_words,
    seed: tl.int64,
    WORDS: tl.constexpr,
):
    chunks = tl.cdiv(num_words, WORDS)
    member = tl.program_id(0) // chunks
    word = tl.program_id(0) % chunks * WORDS + tl.arange(0, WORDS)[:, None]
    bit = tl.arange(0, 32)[None, :]
    gene = word * 32 + bit
    num_genes = tl.load(settings + GENES).to(tl.int32)
    choice = choices + member.to(tl.int64) * CHOICE_COLUMNS
    generation = tl.load(choice + GENERATION)
    strategy = tl.load(choice + STRATEGY)
    binomial = tl.load(strategies + strategy * STRATEGY_COLUMNS + CROSSOVER) != 0.0
    draws = mask_draws(seed, PURPOSE_GENE_MASK, generation, member, gene // 8, bit)
    taken = draws < tl.load(choice + THRESHOLD)
    taken = taken | (gene == forced_mutant(settings, seed, generation, member, binomial))
    taken = taken & (gene < num_genes) & (tl.load(alive + member) != 0)
    bits = tl.sum(taken.to(tl.uint32) << bit.to(tl.uint32), axis=1)
    index = tl.program_id(0) % chunks * WORDS + tl.arange(0, WORDS)
    to = gene_mask + member.to(tl.int64) * num_words + index
    tl.store(to, bits.to(tl.int32, bitcast=True), mask=index < num_words)


def draw_gene_mask(
    settings: torch.Tensor,
    strategies: torch.Tensor,
    alive: torch.Tensor,
    choices: torch.Tensor,
    seed: int,
    gene_mask: torch.Tensor,
) -> None:
    """Fills gene_mask [NP, ceil(G/32)] from a plan's choices; nothing to do when G = 0."""
    members, words = gene_mask.shape
    if words == 0:
        return
    launch(
        gene_mask_kernel,
        members * triton.cdiv(words, WORDS),
        gene_mask.device,
        settings,
        strategies,
        alive,
        choices,
        gene_mask,
        words,
        seed,
        WORDS=WORDS,
        num_warps=WARPS,
    )
