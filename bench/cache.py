"""The cases of images: decoding them into a cache, and evaluating from one.

decode: seconds a build takes for its pictures once the workers run, which is what a build of twice
as many takes longer. limit_s: the same work in one process, divided by the workers. Pictures are
synthetic JPEG of ImageNet's usual size, transformed as for a ResNet.

feed: losses of networks on images in a memory-mapped file. limit_s: on the same images, normalised
already, as a float32 tensor in memory.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench import measure
from bench.job import Job, WrongResult, check_close
from bench.networks import batch_of, subject_of
from bench.row import Row
from deevo_ext.data import CachedImages, ImageSet, Transform, build_cache, open_pictures

TRANSFORM = Transform(256, (224, 224), "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_PIXELS = 224 * 224 * 3
_DISTINCT = 64  # pictures; the rest are further names of the same files


def run_job(job: Job) -> Row:
    """The row of either case."""
    return decode(job) if job.case == "decode" else feed(job)


def decode(job: Job) -> Row:
    """Builds caches of one and of two parts in turn, by the workers and in this process."""
    count = 32 if job.quick else 400
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        trees = [_write(root / str(parts), parts * count, job.seed) for parts in (1, 2)]
        seconds: dict[int, list[float]] = {0: [], job.threads: []}
        for repetition in range(1 if job.quick else min(job.repetitions, 3)):
            for workers, times in seconds.items():
                took = []
                for tree in trees:
                    out = root / f"{repetition}-{workers}-{tree.name}"
                    started = time.perf_counter()
                    cache = build_cache(
                        open_pictures(tree), out, TRANSFORM, workers=workers, progress=False
                    )
                    took.append(time.perf_counter() - started)
                    if cache.skipped or not cache.pixels[-1].any():
                        raise WrongResult(f"decode: {out} lacks pictures")
                    out.unlink()
                times.append(max(took[1] - took[0], 1e-9))
                start = took[0] - times[-1]
    alone = measure.summary(seconds[0])["median_s"]
    result = measure.summary(seconds[job.threads])
    rate = count / result["median_s"]
    return {
        **result,
        "bytes": count * _PIXELS,
        "limit_s": alone / job.threads,
        "batch": count,
        "images_per_s": rate,
        "images_per_s_alone": count / alone,
        **measure.how("cpu"),
        "note": f"{rate:,.0f} images/s, {count / alone:,.0f} in one process; workers start in "
        f"{max(start, 0):.1f} s",
    }


def _write(root: Path, count: int, seed: int) -> Path:
    """A folder of one class: 500x375 JPEG of quality 90."""
    from PIL import Image

    draw = np.random.Generator(np.random.PCG64(seed))
    (root / "class").mkdir(parents=True)
    for number in range(count):
        path = root / "class" / f"{number:06d}.jpg"
        if number >= _DISTINCT:
            os.link(root / "class" / f"{number % _DISTINCT:06d}.jpg", path)
            continue
        coarse = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + draw.integers(-12, 13, smooth.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return root


def feed(job: Job) -> Row:
    """Evaluates from the map and from memory in turn."""
    subject = subject_of(job, batch_of(job) * (1 if job.quick else 8))
    count, channels, height, width = subject.images.shape
    draw = torch.Generator().manual_seed(job.seed)
    shape = (count, height, width, channels)
    store = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
    mean, std = (0.5,) * channels, (0.25,) * channels
    with tempfile.NamedTemporaryFile() as file:
        store.numpy().tofile(file)
        file.flush()
        mapped = torch.from_numpy(np.memmap(file.name, np.uint8, "c", shape=shape))
        cached = CachedImages(mapped, subject.labels, mean, std, "cached", in_memory=False)
        floats = ((store.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25).contiguous()
        plain = ImageSet(floats, subject.labels, "plain")
        forward = subject.forward("auto", job.dtype_name)
        losses, expected = (forward(subject.rows, images).losses for images in (cached, plain))
        check_close("feed: losses from the cache", losses, expected, 1e-3)
        times = measure.interleaved(
            lambda: forward(subject.rows, cached),
            lambda: forward(subject.rows, plain),
            effort=job.effort(least=3),
        )
    return {
        **measure.summary(times[0]),
        "bytes": count * channels * height * width,
        "limit_s": measure.summary(times[1])["median_s"],
        "batch": count,
        **measure.how("cpu"),
        "note": f"{job.members} members on {count} images of {width}x{height}",
    }
