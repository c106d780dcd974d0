"""Both searches on real data: ResNet-18s trained here, evolved on clean and on blurred images.

    python -m bench.fashion [--device cuda] [--seconds N] [--quick] IDX_FOLDER OUT

IDX_FOLDER holds Fashion-MNIST's four files. OUT.json and OUT.md get seconds a round, forward passes
a second, and the comparison tables; they are renewed after every search, so that what was found is
there, whatever stops the script. Two fifths of the time, at most 150 s, train one network and then
twelve fine-tunings of it; the searches share the rest, in the order of what a reader asks first.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bench

bench.prefer_installed()

from bench import machine  # noqa: E402
from bench.networks import BASIC, ResNet  # noqa: E402
from deevo_ext.data.arrays import open_idx  # noqa: E402
from deevo_ext.data.images import ImageSet, split_class_balanced  # noqa: E402
from deevo_ext.files import write_whole  # noqa: E402
from deevo_ext.networks.small_resnet import SmallResNet  # noqa: E402
from deevo_ext.runs.evolve import evolve  # noqa: E402
from deevo_ext.runs.preflight import Preflight  # noqa: E402
from deevo_ext.runs.round_preflight import RoundPreflight  # noqa: E402
from deevo_ext.text import markdown_table  # noqa: E402
from deevo_ext.training.fine_tune import fine_tune  # noqa: E402
from deevo_ext.training.hyper_parameters import Choices, HyperParameters  # noqa: E402
from deevo_ext.training.populate import populate  # noqa: E402
from deevo_ext.training.trainings import PopulationOptions, Trainings, trainings_of  # noqa: E402

PARTS = ("train", "fitness", "validation")
SEARCHES = tuple((kind, s) for kind in ("blurred", "clean") for s in ("coefficients", "weights"))
"""Images and search, in the order of their value."""
TRAINING, MOST_TRAINING = 0.4, 150.0
# Epochs beyond which a base or a fine-tuning leaves little to gain, however fast the machine is.
_MOST_BASE, _MOST_EACH = 12.0, 2.0
_WARM_UPS, _TIMED = 10, 20  # steps of a training that is thrown away
_SEED = 19


def resnet18() -> nn.Module:
    """ResNet-18 for small images of one channel: a 3x3 stem of stride 1, no pool behind it."""
    model = ResNet(BASIC, (2, 2, 2, 2))
    model.conv1, model.fc = nn.Conv2d(1, 64, 3, 1, 1, bias=False), nn.Linear(512, 10)
    model.add_module("maxpool", nn.Identity())
    return model


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    sizes: images of `PARTS` and test. batch: images a step; micro_batch: a forward pass. most:
    seconds of evaluation that a search gets at most.
    """

    network: Callable[[], nn.Module]
    members: int
    sizes: tuple[int, int, int, int]
    batch: int
    micro_batch: int
    most: float = math.inf


FULL = Scale(resnet18, 12, (40_000, 10_000, 5_000, 10_000), 512, 512)
QUICK = Scale(lambda: SmallResNet(1, 10, 4), 3, (640, 150, 100, 100), 64, 50, most=2.0)


def images_of(folder: Path, scale: Scale) -> dict[str, ImageSet]:
    """The parts and "test", float32 [N, 1, 28, 28], normalised by what train says."""
    pictures = open_idx(folder)
    pixels = torch.from_numpy(pictures.images).float()[:, None] / 255
    labels = torch.from_numpy(pictures.labels)
    start, stop = pictures.parts["train"]
    whole = ImageSet(pixels[start:stop], labels[start:stop], "train")
    parts = split_class_balanced(whole, scale.sizes[:3], _SEED, PARTS)
    start, stop = pictures.parts["val"]
    test = ImageSet(pixels[start:stop], labels[start:stop], "test").slice(0, scale.sizes[3])
    mean, deviation = parts[0].images.mean(), parts[0].images.std()
    every = [replace(part, images=(part.images - mean) / deviation) for part in (*parts, test)]
    return {part.name: part for part in every}


def blurred(images: ImageSet) -> ImageSet:
    """The images behind a Gaussian blur of one pixel's standard deviation, borders repeated."""
    places = torch.arange(-2.0, 3.0)
    line = torch.exp(-(places**2) / 2)
    kernel = (line[:, None] * line)[None, None] / line.sum() ** 2
    around = nn.functional.pad(images.images, (2, 2, 2, 2), mode="replicate")
    soft: Tensor = nn.functional.conv2d(around, kernel)
    return replace(images, images=soft)


def steps_per_second(network: nn.Module, images: ImageSet, batch: int) -> float:
    """How fast such networks are trained, by a training that is thrown away."""
    device = next(network.parameters()).device
    times: list[float] = []

    def on_step(step: int) -> None:
        if step in (_WARM_UPS, _WARM_UPS + _TIMED):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter())

    hyper = HyperParameters(_SEED, _WARM_UPS + _TIMED, batch, 0.01)
    fine_tune(copy.deepcopy(network), images, hyper, on_step=on_step)
    return _TIMED / (times[1] - times[0])


def schedule(rate: float, seconds: float, images: int, scale: Scale) -> Trainings:
    """What is trained in so many seconds at a rate in steps a second: a third of it the base."""
    epochs = max(1e-3, 0.9 * rate * seconds / max(1, images // scale.batch))
    return trainings_of(
        images,
        PopulationOptions(
            members=scale.members,
            epochs=min(_MOST_EACH, epochs * 2 / 3 / scale.members),
            batch_size=scale.batch,
            learning_rate=0.008,
            base_epochs=min(_MOST_BASE, epochs / 3),
            seed=_SEED,
            augmentations=Choices(mixup=0.0),
        ),
    )


def evolved(
    network: nn.Module,
    paths: Sequence[Path],
    images: Sequence[ImageSet],
    search: str,
    share: float,
    scale: Scale,
) -> dict[str, Any]:
    """Evolves on (fitness, validation, test) images in about `share` seconds; what came of it."""
    started, known = time.perf_counter(), list[Preflight | RoundPreflight]()
    result = evolve(
        network,
        paths,
        *images,
        search=search,
        seconds=min(scale.most, share / 2),  # the rest: choosing engines, the comparison
        micro_batch=scale.micro_batch,
        device=next(network.parameters()).device,
        chunk=scale.members,
        progress=False,
        preliminaries=known.append,
    )
    run, comparison = result.run, result.comparison
    assert comparison is not None and run.evaluator is not None
    ends = [run.initial_seconds, *(line["seconds"] for line in result.history)]
    print(*known)
    return {
        "outcome": "passed",
        "precision": run.evaluator.forward.precision,
        "seconds": round(time.perf_counter() - started, 3),
        "seconds_per_round": [round(b - a, 4) for a, b in pairwise(ends)],
        "forward_passes": run.forward_passes,
        "member_images_per_s": round(run.forward_passes / run.seconds),
        "forward_member_images_per_s": [round(1 / one.seconds_per_pass) for one in known],
        "comparison": comparison.to_json(),
        "table": [list(comparison.header), *map(list, comparison.cells())],
    }


def write(out: Path, record: dict[str, Any]) -> None:
    """Renews OUT.json and OUT.md."""
    write_whole(out.with_suffix(".json"), (json.dumps(record, indent=1) + "\n").encode())
    lines = []
    if trained := record.get("training"):
        lines.append(
            f"{trained['members']} networks trained in {trained['seconds']:.0f} s: "
            f"{trained['base_steps']} steps, then {trained['steps_each']} each, of "
            f"{trained['batch']} images; {trained['images_per_s']:,.0f} images/s."
        )
    for one in record["searches"]:
        lines.append(f"## {one['images']} images, search of {one['search']}: {one['outcome']}")
        if "table" in one:
            each = ", ".join(f"{s:.2f}" for s in one["seconds_per_round"])
            lines.append(
                f"{one['seconds']:.1f} s; seconds a round: {each}; "
                f"{one['member_images_per_s']:,} member-images/s in {one['precision']}"
            )
            lines.append(markdown_table(one["table"][0], one["table"][1:]))
            lines.append(one["comparison"]["verdict"])
    write_whole(out.with_suffix(".md"), ("\n\n".join(lines) + "\n").encode())


def measure(folder: Path, out: Path, device: str, seconds: float, scale: Scale) -> dict[str, Any]:
    """Trains and evolves within so many seconds; returns what OUT.json has."""
    started = time.perf_counter()

    def left() -> float:
        return seconds - (time.perf_counter() - started)

    sets = images_of(folder, scale)
    record: dict[str, Any] = {**machine.environment(device), "searches": []}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        network = scale.network().to(device)
    train = sets["train"]
    with tempfile.TemporaryDirectory() as members:
        rate = steps_per_second(network, train, scale.batch)
        trainings = schedule(rate, min(MOST_TRAINING, TRAINING * left()), len(train), scale)
        begun = time.perf_counter()
        origin = {"network": scale.network.__name__, "images": "fashion-mnist"}
        paths = populate(network, train, trainings, members, origin=origin, save_every=1e9)
        spent = time.perf_counter() - begun
        assert trainings.base is not None
        record["training"] = {
            "members": len(paths),
            "seconds": round(spent, 3),
            "base_steps": trainings.base.steps,
            "steps_each": next(iter(trainings.members.values())).steps,
            "batch": scale.batch,
            "images_per_s": trainings.steps * scale.batch / spent,
        }
        write(out, record)
        for number, (kind, search) in enumerate(SEARCHES):
            share = left() / (len(SEARCHES) - number)
            one: dict[str, Any] = {"images": kind, "search": search}
            record["searches"].append(one)
            if share <= 0:
                one["outcome"] = "not begun: no time was left"
            else:
                used = [sets[name] if kind == "clean" else blurred(sets[name]) for name in sets]
                try:
                    one.update(evolved(network, paths, used[1:], search, share, scale))
                except Exception as error:  # the other searches are worth their time all the same
                    traceback.print_exc()
                    one["outcome"] = f"failed: {error}"
            write(out, record)
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures; 0 where every search was run."""
    parser = argparse.ArgumentParser(prog="python -m bench.fashion", description=__doc__)
    parser.add_argument("folder", type=Path, help="where Fashion-MNIST's four files are")
    parser.add_argument("out", type=Path, help="OUT.json and OUT.md are written")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=250.0, help="for everything")
    parser.add_argument("--quick", action="store_true", help="small networks, to see that it runs")
    chosen = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    scale = QUICK if chosen.quick else FULL
    record = measure(chosen.folder, chosen.out, chosen.device, chosen.seconds, scale)
    return int(any(one["outcome"] != "passed" for one in record["searches"]))


if __name__ == "__main__":
    raise SystemExit(main())
