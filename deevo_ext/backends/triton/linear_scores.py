"""linear_scores: losses of candidates whose logits a linear model gives, on tensor cores.

z[p, i, j] = z0[i, j] + sum over k of c[p, k] J[k, i, j]
loss = log sum_j exp(z_j - max) + (max - z_y) + s (z_y - mean_j z_j)
rank = #(z_j > z_y) + #(z_j == z_y, j < y), class = the first of the largest, probability = 1 / sum

A product of matrices, [candidates, directions] by [directions, images x classes], whose result is
never stored: a program takes 64 candidates and goes once through the classes of an image, keeping
for each candidate the largest logit so far and the sum of exponentials relative to it (online
softmax: Milakov & Gimelshein, arXiv:1805.02867, 2018). The classes that come first are those with
the label, so that every later logit meets the label's. Of few classes a tile holds several images.
Programs of the same images stand side by side, so that all their candidates' J comes from L2 but
once.

Coefficients are written first, by a kernel of their own, as sums of PARTS numbers of the slopes'
type, so that products are exact: two parts of float16 keep 22 bits (scaled by a power of two for
each candidate, so that small ones keep them too), three of bfloat16 all 24. Products of float32 are
three of tf32, which keep 21. Sums are float32. Nothing depends on how many candidates or images
there are.
Bytes: J and z0 read once from memory, J read through L2 by every 64 candidates, the parts by every
tile; 16 bytes written a candidate and image.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from deevo_ext.backends.triton.exact_math import exact_log
from deevo_ext.backends.triton.launch import (
    in_units,
    launch,
    power_of_two,
    require_conversions,
    require_device,
    workspace,
)

CANDIDATES = 64  # of a program
WARPS, STAGES = 4, 3
REGISTERS = 255  # of a thread; ptxas may spill to save more
PARTS = {torch.float32: 1, torch.bfloat16: 3, torch.float16: 2}
SPLIT_BLOCK = 256

INFINITE = tl.constexpr(0x7F800000)
LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def scale_of(largest):
    """The power of two that brings the largest magnitude into [2^14, 2^15), and its inverse."""
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) - 127
    exponent = tl.minimum(tl.maximum(exponent, -112), 127)
    scale = ((127 + 14 - exponent) << 23).to(tl.float32, bitcast=True)
    return scale, ((127 - 14 + exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["candidates", "directions", "padded", "part"])
def split_kernel(
    coefficients, parts, inverses, candidates, directions, padded, part,
    PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """parts [PARTS, all candidates, padded] of one candidate; 0 beyond those that there are."""
    p = tl.program_id(0)
    row = coefficients + p.to(tl.int64) * directions
    to = parts + p.to(tl.int64) * padded
    lane = tl.arange(0, BLOCK)
    known = tl.where(p < candidates, directions, 0)
    scale, inverse = 1.0, 1.0
    if PARTS == 2:
        largest = tl.zeros((BLOCK,), dtype=tl.float32)
        for start in range(0, known, BLOCK):
            c = tl.load(row + start + lane, mask=start + lane < known, other=0.0)
            largest = tl.maximum(largest, tl.abs(c))
        scale, inverse = scale_of(tl.max(largest, axis=0))
    tl.store(inverses + p, inverse)
    for start in range(0, padded, BLOCK):
        k = start + lane
        rest = tl.load(row + k, mask=k < known, other=0.0) * scale
        for i in tl.static_range(PARTS):
            rounded = rest.to(parts.dtype.element_ty)
            tl.store(to + i * part + k, rounded, mask=k < padded)
            rest -= rounded.to(tl.float32)


@triton.jit
def product(slopes, parts, directions, padded, part, stride, p, column, exists,
            PARTS: tl.constexpr, DIRECTIONS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Sums over the directions, [candidates, columns]; the smaller parts come first."""
    k = tl.arange(0, DIRECTIONS)
    a = parts + p[:, None] * padded + k[None, :]
    b = slopes + k.to(tl.int64)[:, None] * stride + column[None, :]
    acc = tl.zeros((p.shape[0], column.shape[0]), dtype=tl.float32)
    for start in range(0, padded, DIRECTIONS):
        j = tl.load(b, mask=(start + k < directions)[:, None] & exists[None, :], other=0.0)
        for i in tl.static_range(PARTS):
            c = tl.load(a + (PARTS - 1 - i) * part)
            acc = tl.dot(c, j, acc, input_precision=PRECISION)
        a += DIRECTIONS
        b += DIRECTIONS * stride
    return acc


@triton.jit
def logits(acc, z0_row, j, known, classes):
    """Logits of classes j; what is no class adds nothing to a sum and is ahead of nothing."""
    return tl.load(z0_row + j, mask=known & (j < classes), other=LOWEST) + acc


@triton.jit
def rank_own(z, j, label):
    """The labels' logits, among classes j, and how many of these are ahead of them."""
    own = tl.sum(tl.where(j == label, z, 0.0), axis=2)
    limit = own[:, :, None]
    ahead = (z > limit) | ((z == limit) & (j < label))
    return own, tl.sum(ahead.to(tl.int32), axis=2)


@triton.jit
def rank_later(z, own, before):
    """How many of other classes are ahead of the label; before: they come before it."""
    if before:  # noqa: SIM108 (a branch of the program)
        ahead = z >= own[:, :, None]
    else:
        ahead = z > own[:, :, None]
    return tl.sum(ahead.to(tl.int32), axis=2)


@triton.jit
def absorb(z, j, classes, largest, total, least, mean, best, SMOOTHING: tl.constexpr):
    """The state of candidates and images after further logits z of classes j."""
    least = tl.minimum(least, tl.min(z, axis=2))
    here = tl.max(z, axis=2)
    place = tl.min(tl.where(z == here[:, :, None], j, classes), axis=2)
    place = tl.where(here == largest, tl.minimum(place, best), place)
    best = tl.where(here >= largest, place, best)
    before = largest
    largest = tl.maximum(largest, here)
    total = total * tl.exp(before - largest)
    total += tl.sum(tl.exp(z - largest[:, :, None]), axis=2)
    if SMOOTHING:
        share = tl.where(j < classes, z * (1.0 / classes.to(tl.float32)), 0.0)
        mean += tl.sum(share, axis=2)
    return largest, total, least, mean, best


@triton.jit
def write(outputs, rows, p, n, candidates, images, classes, label, smoothing, own, better,
          largest, total, least, mean, best, SMOOTHING: tl.constexpr):  # fmt: skip
    """What the state says of candidates p and images n, both [candidates, images]."""
    # Infinity and NaN have made the sum NaN, minus infinity the least logit.
    usable = (total < float("inf")) & (least > float("-inf")) & (label >= 0) & (label < classes)
    total = tl.where(usable, total, 1.0).to(tl.float64)
    wide_own = own.to(tl.float64)
    loss = exact_log(total) + (largest.to(tl.float64) - wide_own)
    if SMOOTHING:
        loss += smoothing * (wide_own - mean.to(tl.float64))
    loss = loss.to(tl.float32)
    usable = usable & ((loss.to(tl.int32, bitcast=True) & INFINITE) != INFINITE)
    written = (p < candidates) & (n < images)
    losses, ranks, predicted, probability = outputs
    losses_row, ranks_row, predicted_row, probability_row = rows
    p = p.to(tl.int64)
    tl.store(losses + p * losses_row + n, tl.where(usable, loss, float("inf")), mask=written)
    tl.store(ranks + p * ranks_row + n, tl.where(usable, better, classes), mask=written)
    tl.store(predicted + p * predicted_row + n, tl.where(usable, best, -1), mask=written)
    likely = tl.where(usable, (1.0 / total).to(tl.float32), 0.0)
    tl.store(probability + p * probability_row + n, likely, mask=written)


@triton.jit
def halves_of(acc, CANDIDATES: tl.constexpr, IMAGES: tl.constexpr, CLASSES: tl.constexpr):
    """The two halves of the columns, [candidates, images, classes]."""
    both = tl.reshape(acc, (CANDIDATES, 2, IMAGES, CLASSES))
    return tl.split(tl.permute(both, (0, 2, 3, 1)))


@triton.jit(
    do_not_specialize=[
        "candidates",
        "images",
        "classes",
        "directions",
        "stride",
        "losses_row",
        "ranks_row",
        "predicted_row",
        "probability_row",
    ]
)
def scores_kernel(
    z0, slopes, parts, inverses, labels, losses, ranks, predicted, probability,
    candidates, images, classes, directions, padded, part, stride,
    losses_row, ranks_row, predicted_row, probability_row, smoothing: tl.float32,
    CANDIDATES: tl.constexpr, IMAGES: tl.constexpr, CLASSES: tl.constexpr, TILED: tl.constexpr,
    DIRECTIONS: tl.constexpr, PARTS: tl.constexpr, WIDE: tl.constexpr, SMOOTHING: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = IMAGES * CLASSES
    groups = tl.cdiv(candidates, CANDIDATES)
    p = tl.program_id(0) % groups * CANDIDATES + tl.arange(0, CANDIDATES)
    item = tl.program_id(0) // groups
    inverse = tl.load(inverses + p)[:, None]
    if WIDE:  # they count blocks of 8, so that 16 bytes can be loaded at a time
        classes *= 8
        stride = stride.to(tl.int64) * 8
    else:
        stride = stride.to(tl.int64)
    outputs = losses, ranks, predicted, probability
    rows = losses_row, ranks_row, predicted_row, probability_row
    r = tl.arange(0, 2 * HALF)
    slot = tl.arange(0, CLASSES)[None, None, :]
    zeros = tl.zeros((CANDIDATES, IMAGES), dtype=tl.float32)
    lowest = tl.full((CANDIDATES, IMAGES), LOWEST, dtype=tl.float32)
    none = tl.zeros((CANDIDATES, IMAGES), dtype=tl.int32)
    if TILED:  # one image, whose classes come HALF at a time, the label's first
        label = tl.load(labels + item).to(tl.int32)
        tiles = tl.cdiv(classes, 2 * HALF)
        first = tl.minimum(tl.maximum(label, 0), classes - 1) // HALF
        # The half with the label becomes the left one.
        flip = first % 2
        swap = tl.where(r < HALF, flip, -flip)
        z0_row = z0 + item.to(tl.int64) * classes
        largest, total, least, mean, best = lowest, zeros, lowest, zeros, none
        own, better = zeros, none
        for step in range(0, tiles):
            start = (first // 2 + step) % tiles * (2 * HALF)
            left = start + flip * HALF
            right = start + (1 - flip) * HALF
            of_column = start + r + swap * HALF
            exists = of_column < classes
            if WIDE:  # visibly the same for 8 columns
                exists = start // 8 + r // 8 + swap * (HALF // 8) < classes // 8
            column = item.to(tl.int64) * classes + of_column
            acc = product(slopes, parts, directions, padded, part, stride, p, column, exists,
                          PARTS, DIRECTIONS, PRECISION)  # fmt: skip
            z, more = halves_of(acc * inverse, CANDIDATES, IMAGES, CLASSES)
            z = logits(z, z0_row, left + slot, True, classes)
            if step == 0:
                own, better = rank_own(z, left + slot, label)
            else:
                better += rank_later(z, own, left < label)
            state = largest, total, least, mean, best
            state = absorb(z, left + slot, classes, *state, SMOOTHING)
            z = logits(more, z0_row, right + slot, True, classes)
            better += rank_later(z, own, right < label)
            state = absorb(z, right + slot, classes, *state, SMOOTHING)
            largest, total, least, mean, best = state
        write(outputs, rows, p[:, None], item + none, candidates, images, classes, label,
              smoothing, own, better, largest, total, least, mean, best, SMOOTHING)  # fmt: skip
    else:  # two times IMAGES images with all their classes
        image = 2 * IMAGES * item + r // CLASSES
        exists = (image < images) & (r % CLASSES < classes)
        if WIDE:
            exists = (image < images) & (r % CLASSES // 8 < classes // 8)
        column = image.to(tl.int64) * classes + r % CLASSES
        acc = product(slopes, parts, directions, padded, part, stride, p, column, exists,
                      PARTS, DIRECTIONS, PRECISION)  # fmt: skip
        left, right = halves_of(acc * inverse, CANDIDATES, IMAGES, CLASSES)
        for side in tl.static_range(2):
            n = (2 * item + side) * IMAGES + tl.arange(0, IMAGES)[None, :]
            label = tl.load(labels + n, mask=n < images, other=0).to(tl.int32)
            z0_row = z0 + n.to(tl.int64)[:, :, None] * classes
            z = left if side == 0 else right
            z = logits(z, z0_row, slot, n[:, :, None] < images, classes)
            own, better = rank_own(z, slot, label[:, :, None])
            largest, total, least, mean, best = absorb(
                z, slot, classes, lowest, zeros, lowest, zeros, none, SMOOTHING
            )
            write(outputs, rows, p[:, None], n, candidates, images, classes, label,
                  smoothing, own, better, largest, total, least, mean, best, SMOOTHING)  # fmt: skip


def score_tiles(classes: int, dtype: torch.dtype, hopper: bool) -> dict[str, int | bool | str]:
    """Returns the images and classes of half a tile, and how its products are formed.

    Only on compute capability 9.0 are there registers for 128 columns of products of 16 bits.
    """
    half = 64 if hopper and dtype != torch.float32 and classes > 64 else 32
    width = min(half, max(16, power_of_two(classes)))
    return {
        "CANDIDATES": CANDIDATES,
        "IMAGES": half // width,
        "CLASSES": width,
        "TILED": classes > half,
        "DIRECTIONS": 16 if dtype == torch.float32 else 32,
        "PARTS": PARTS[dtype],
        "PRECISION": "tf32x3" if dtype == torch.float32 else "ieee",
    }


def linear_scores(
    z0: torch.Tensor,
    slopes: torch.Tensor,
    coefficients: torch.Tensor,
    labels: torch.Tensor,
    smoothing: float,
    losses: torch.Tensor,
    ranks: torch.Tensor,
    predicted: torch.Tensor,
    probability: torch.Tensor,
) -> None:
    """Does what `deevo_ext.backends.reference.linear_scores` does, with sums in float32."""
    require_device("linear_scores", scores_kernel, z0.device)
    require_conversions("linear_scores", slopes)
    (candidates, directions), (images, classes) = coefficients.shape, z0.shape
    hopper = z0.device.type == "cpu" or torch.cuda.get_device_capability(z0.device)[0] == 9
    tiles = score_tiles(classes, slopes.dtype, hopper)
    groups = triton.cdiv(candidates, CANDIDATES)
    rows = groups * CANDIDATES
    padded = triton.cdiv(directions, tiles["DIRECTIONS"]) * tiles["DIRECTIONS"]
    part = rows * padded
    part_bytes = tiles["PARTS"] * part * slopes.element_size()
    memory = workspace(z0.device, part_bytes + 4 * rows)
    parts = memory[:part_bytes].view(slopes.dtype)
    inverses = memory[part_bytes : part_bytes + 4 * rows].view(torch.float32)
    launch(
        split_kernel,
        (rows,),
        z0.device,
        coefficients,
        parts,
        inverses,
        candidates,
        directions,
        padded,
        part,
        PARTS=tiles["PARTS"],
        BLOCK=SPLIT_BLOCK,
        num_warps=1,
    )
    in_blocks = classes % 8 == 0 and slopes.stride(0) % 8 == 0
    launch(
        scores_kernel,
        (groups * (images if tiles["TILED"] else triton.cdiv(images, 2 * tiles["IMAGES"])),),
        z0.device,
        z0,
        slopes,
        parts,
        inverses,
        labels,
        losses,
        ranks,
        predicted,
        probability,
        candidates,
        images,
        in_units(classes, in_blocks),
        directions,
        padded,
        part,
        in_units(slopes.stride(0), in_blocks),
        losses.stride(0),
        ranks.stride(0),
        predicted.stride(0),
        probability.stride(0),
        smoothing,
        **tiles,
        WIDE=in_blocks,
        SMOOTHING=smoothing > 0.0,
        num_warps=WARPS,
        num_stages=STAGES,
        maxnreg=REGISTERS,
    )
