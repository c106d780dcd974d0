"""head and loss_and_rank: global average pool, linear layer, cross-entropy and rank per sample.

loss = log sum_j exp(z_j - max) + (1 - s) (max - z_y) + s mean_j (max - z_j)
rank = #(z_j > z_y) + #(z_j == z_y, j < y)

The pool is a kernel of its own, since it alone moves memory: features read once, float32 means
written. A program then takes SAMPLES samples of a member and goes through the classes in tiles,
twice: for the largest logit, then for the sums, which are exact (fixed point, see
csrc/include/deevo/head.h), so that given the logits, losses and ranks are every backend's. Logits
are made anew in the second pass, not stored. Products of 16-bit weights run on tensor cores, with
the means split into two 16-bit parts, so that they keep 21 bits (16 for bfloat16).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from deevo_ext.backends.triton.exact_math import LN2_HIGH, LN2_LOW, exact_log, rint
from deevo_ext.backends.triton.launch import (
    launch,
    power_of_two,
    require_conversions,
    require_device,
    stored,
)
from deevo_ext.backends.triton.pooling import mean
from deevo_ext.backends.triton.storage import widen

INVERSE_FACTORIALS = tl.constexpr(tuple(1.0 / math.factorial(n) for n in range(12)))
EXP_BITS = tl.constexpr(40)
LARGEST_GAP = tl.constexpr(2.0**20)

SAMPLES = 16
WARPS = 4
STAGES = 2  # of the products' pipeline; a third would not fit the registers of sm_90


@triton.jit
def exp_fixed(gap):
    """rint(2^40 exp(-gap)) of float64 gaps >= 0, as int64."""
    x = tl.where(gap > 32.0, gap * 0.0 + 32.0, gap)
    k = rint(x * 1.4426950408889634)
    r = (k * LN2_HIGH - x) + k * LN2_LOW
    p = r * INVERSE_FACTORIALS[11] + INVERSE_FACTORIALS[10]
    for i in tl.static_range(10):
        p = p * r + INVERSE_FACTORIALS[9 - i]
    power = ((1023 + EXP_BITS) - k.to(tl.int64)) << 52
    return rint(p * power.to(tl.float64, bitcast=True)).to(tl.int64)


@triton.jit
def scan(z, j, classes, label, largest, label_logit, finite):
    """First pass over a tile of logits [SAMPLES, CLASSES]: maximum, label's logit, finiteness."""
    exists = (j < classes)[None, :]
    usable = (z.to(tl.int32, bitcast=True) & 0x7F800000) != 0x7F800000
    finite = finite & (tl.min((usable | (not exists)).to(tl.int32), axis=1) != 0)
    kept = tl.where(exists & usable, z, float("-inf"))
    largest = tl.maximum(largest, tl.max(kept, axis=1))
    labels = tl.where((j[None, :] == label[:, None]) & usable, z, 0.0)
    return largest, label_logit + tl.sum(labels, axis=1), finite


@triton.jit
def add(z, j, classes, label, largest, label_logit, GAP_UNIT: tl.constexpr,
        exponentials, gaps, better):  # fmt: skip
    """Second pass: sums of exponentials and gaps, and the classes before the label's."""
    exists = (j < classes)[None, :]
    z = tl.where(exists & (z <= largest[:, None]), z, largest[:, None])
    gap = largest.to(tl.float64)[:, None] - z.to(tl.float64)
    exponentials += tl.sum(tl.where(exists, exp_fixed(gap), 0), axis=1)
    limited = tl.where(gap > LARGEST_GAP, gap * 0.0 + LARGEST_GAP, gap)
    gaps += tl.sum(tl.where(exists, rint(limited * GAP_UNIT).to(tl.int64), 0), axis=1)
    labels = label_logit[:, None]
    before = (z > labels) | ((z == labels) & (j[None, :] < label[:, None]))
    better += tl.sum((before & exists).to(tl.int32), axis=1)
    return exponentials, gaps, better


@triton.jit
def finish(losses, ranks, place, exists, classes, label, largest, label_logit, finite,
           exponentials, gaps, better,
           SMOOTHING: tl.constexpr, GAP_UNIT: tl.constexpr):  # fmt: skip
    """Loss and rank of each sample; +inf and `classes` where a logit or the loss is not finite."""
    usable = finite & (label >= 0) & (label < classes)
    total = tl.where(usable, exponentials, 1).to(tl.float64)
    label_gap = largest.to(tl.float64) - label_logit.to(tl.float64)
    mean_gap = gaps.to(tl.float64) * (1.0 / GAP_UNIT) / classes.to(tl.float64)
    label_part = (1.0 - SMOOTHING) * label_gap + SMOOTHING * mean_gap
    loss = (exact_log(total * 9.094947017729282e-13) + label_part).to(tl.float32)
    usable = usable & ((loss.to(tl.int32, bitcast=True) & 0x7F800000) != 0x7F800000)
    tl.store(losses + place, tl.where(usable, loss, float("inf")), mask=exists)
    tl.store(ranks + place, tl.where(usable, better, classes), mask=exists)


@triton.jit
def logit_tile(
    x, weight, bias, sample_exists, channels, classes, j,
    SAMPLES: tl.constexpr, CLASSES: tl.constexpr, CHANNELS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Logits [SAMPLES, CLASSES] of classes j; x: rows of pooled float32 features."""
    c = tl.arange(0, CHANNELS)
    acc = tl.zeros((SAMPLES, CLASSES), dtype=tl.float32)
    class_exists = j < classes
    for start in range(0, channels, CHANNELS):
        channel = start + c
        known = channel < channels
        a = tl.load(x[:, None] + channel[None, :], mask=sample_exists[:, None] & known[None, :],
                    other=0.0)  # fmt: skip
        w = tl.load(
            weight + j.to(tl.int64)[None, :] * channels + channel[:, None],
            mask=class_exists[None, :] & known[:, None],
            other=0.0,
        )
        if SPLIT:
            high = a.to(w.dtype)
            low = (a - high.to(tl.float32)).to(w.dtype)
            acc = tl.dot(low, w, acc)
            acc = tl.dot(high, w, acc)
        else:
            acc = tl.dot(a, w, acc, input_precision="ieee")
    return acc + tl.load(bias + j, mask=class_exists, other=0.0)[None, :]


@triton.jit
def read_tile(logits, sample_exists, classes, j):
    """Logits of classes j as they are stored; logits: rows of them."""
    exists = sample_exists[:, None] & (j < classes)[None, :]
    return widen(tl.load(logits[:, None] + j[None, :], mask=exists, other=0))


@triton.jit(do_not_specialize=["classes"])
def head_kernel(
    x, weight, bias, labels, losses, ranks,
    samples, channels, classes, weight_member, bias_member, losses_member, ranks_member,
    SMOOTHING: tl.constexpr, GAP_UNIT: tl.constexpr,
    SAMPLES: tl.constexpr, CLASSES: tl.constexpr, CHANNELS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    member = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * SAMPLES + tl.arange(0, SAMPLES)
    exists = n < samples
    label = tl.load(labels + n, mask=exists, other=0)
    rows = x + (member * samples + n) * channels
    weight += member * weight_member
    bias += member * bias_member
    largest = tl.full((SAMPLES,), float("-inf"), dtype=tl.float32)
    label_logit = tl.zeros((SAMPLES,), dtype=tl.float32)
    finite = exists
    for start in range(0, classes, CLASSES):
        j = start + tl.arange(0, CLASSES)
        z = logit_tile(rows, weight, bias, exists, channels, classes, j, SAMPLES, CLASSES, CHANNELS,
                       SPLIT)  # fmt: skip
        largest, label_logit, finite = scan(z, j, classes, label, largest, label_logit, finite)
    largest = tl.where(finite, largest, 0.0)
    exponentials = tl.zeros((SAMPLES,), dtype=tl.int64)
    gaps = tl.zeros((SAMPLES,), dtype=tl.int64)
    better = tl.zeros((SAMPLES,), dtype=tl.int32)
    for start in range(0, classes, CLASSES):
        j = start + tl.arange(0, CLASSES)
        z = logit_tile(rows, weight, bias, exists, channels, classes, j, SAMPLES, CLASSES, CHANNELS,
                       SPLIT)  # fmt: skip
        exponentials, gaps, better = add(
            z, j, classes, label, largest, label_logit, GAP_UNIT, exponentials, gaps, better
        )
    finish(losses + member * losses_member, ranks + member * ranks_member, n, exists, classes,
           label, largest, label_logit, finite, exponentials, gaps, better,
           SMOOTHING, GAP_UNIT)  # fmt: skip


@triton.jit(do_not_specialize=["classes"])
def losses_kernel(
    logits, labels, losses, ranks,
    samples, classes, logits_member, losses_member, ranks_member,
    SMOOTHING: tl.constexpr, GAP_UNIT: tl.constexpr,
    SAMPLES: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    member = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * SAMPLES + tl.arange(0, SAMPLES)
    exists = n < samples
    label = tl.load(labels + n, mask=exists, other=0)
    rows = logits + member * logits_member + n.to(tl.int64) * classes
    largest = tl.full((SAMPLES,), float("-inf"), dtype=tl.float32)
    label_logit = tl.zeros((SAMPLES,), dtype=tl.float32)
    finite = exists
    for start in range(0, classes, CLASSES):
        j = start + tl.arange(0, CLASSES)
        z = read_tile(rows, exists, classes, j)
        largest, label_logit, finite = scan(z, j, classes, label, largest, label_logit, finite)
    largest = tl.where(finite, largest, 0.0)
    exponentials = tl.zeros((SAMPLES,), dtype=tl.int64)
    gaps = tl.zeros((SAMPLES,), dtype=tl.int64)
    better = tl.zeros((SAMPLES,), dtype=tl.int32)
    for start in range(0, classes, CLASSES):
        j = start + tl.arange(0, CLASSES)
        z = read_tile(rows, exists, classes, j)
        exponentials, gaps, better = add(
            z, j, classes, label, largest, label_logit, GAP_UNIT, exponentials, gaps, better
        )
    finish(losses + member * losses_member, ranks + member * ranks_member, n, exists, classes,
           label, largest, label_logit, finite, exponentials, gaps, better,
           SMOOTHING, GAP_UNIT)  # fmt: skip


def head_tiles(classes: int, channels: int, dtype: torch.dtype) -> dict[str, int | bool]:
    """Returns the samples, classes and channels of a tile of head that the registers hold."""
    widest = 64 if dtype == torch.float32 else 128
    return {
        "SAMPLES": SAMPLES,
        "CLASSES": min(widest, max(16, power_of_two(classes))),
        "CHANNELS": min(64, max(16, power_of_two(channels))),
        "SPLIT": dtype != torch.float32,
    }


def loss_tiles(classes: int) -> dict[str, int]:
    """Returns the samples and classes of a tile of loss_and_rank."""
    width = min(256, power_of_two(classes))
    return {"SAMPLES": 512 // width, "CLASSES": width}


def sums(classes: int, smoothing: float) -> dict[str, float]:
    """Returns the constants of the class sums."""
    gap_bits = min(31, 42 - (classes - 1).bit_length())  # the sum over classes must fit 63 bits
    return {"SMOOTHING": smoothing, "GAP_UNIT": 2.0**gap_bits}


def head(
    features: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    labels: torch.Tensor,
    smoothing: float,
    losses: torch.Tensor,
    ranks: torch.Tensor,
) -> None:
    """Does what `deevo_ext.backends.reference.head` does, but sums logits in another order."""
    require_device("head", head_kernel, features.device)
    require_conversions("head", features)
    members, samples, _, channels = features.shape
    classes = weight.shape[1]
    pooled = torch.empty(members, samples, channels, device=features.device)
    mean(features, pooled)
    sizes = (samples, channels, classes)
    strides = (tensor.stride(0) for tensor in (weight, bias, losses, ranks))
    launch(
        head_kernel,
        (triton.cdiv(samples, SAMPLES), members),
        features.device,
        pooled,
        weight,
        bias,
        labels,
        losses,
        ranks,
        *sizes,
        *strides,
        **sums(classes, smoothing),
        **head_tiles(classes, channels, weight.dtype),
        num_warps=WARPS,
        num_stages=STAGES,
    )


def loss_and_rank(
    logits: torch.Tensor,
    labels: torch.Tensor,
    smoothing: float,
    losses: torch.Tensor,
    ranks: torch.Tensor,
) -> None:
    """Does what `deevo_ext.backends.reference.loss_and_rank` does, to the same bits."""
    require_device("loss_and_rank", losses_kernel, logits.device)
    members, samples, classes = logits.shape
    tiles = loss_tiles(classes)
    launch(
        losses_kernel,
        (triton.cdiv(samples, tiles["SAMPLES"]), members),
        logits.device,
        stored(logits),
        labels,
        losses,
        ranks,
        samples,
        classes,
        logits.stride(0),
        losses.stride(0),
        ranks.stride(0),
        **sums(classes, smoothing),
        **tiles,
        num_warps=WARPS,
    )
