"""Member-images per second of PopulationForward, beside what users would write instead.

`python -m bench.inference` evaluates K networks of one architecture on the same images, in the same
process and in turn: eager (functional_call in inference mode, the baseline), torch.compile, and the
fused plan in each precision, all on the same number of threads. Losses are compared before anything
is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench

bench.prefer_installed()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.func import functional_call  # noqa: E402

from bench import measure  # noqa: E402
from deevo_ext.inference.forward import PopulationForward  # noqa: E402
from deevo_ext.layout import Layout  # noqa: E402

sys.path.insert(0, str(bench.ROOT / "python_tests"))

from support.zoo import CifarResNet, pictures, randomised, torchvision_model  # noqa: E402


@dataclass(frozen=True)
class Case:
    """A network, its images and how many members there are."""

    name: str
    make: Callable[[], nn.Module]
    size: int
    batch: int
    members: int


CASES = {
    "resnet18": Case("resnet18", lambda: torchvision_model("resnet18"), 64, 64, 8),
    "resnet50": Case("resnet50", lambda: torchvision_model("resnet50"), 224, 8, 8),
    "resnet20": Case("resnet20", CifarResNet, 32, 256, 32),
}
METHODS = ("eager", "compile", "float32", "bfloat16")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints and writes the table; 1 if a method gave wrong losses."""
    parser = argparse.ArgumentParser(prog="python -m bench.inference", description=__doc__)
    parser.add_argument("--case", action="append", choices=CASES, help="default: all")
    parser.add_argument("--method", action="append", choices=METHODS[1:], help="default: all")
    parser.add_argument("--members", type=int, help="K; default 8, resnet20 32")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for name in options.case or CASES:
        found = run(CASES[name], options)
        if found is None:
            return 1
        rows.extend(found)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def run(case: Case, options: argparse.Namespace) -> list[dict[str, Any]] | None:
    """The rows of one case; None (and a message) if a method gave wrong losses."""
    members = options.members or case.members
    model = randomised(case.make, case.size)
    state = {n: t for n, t in model.state_dict().items() if t.is_floating_point()}
    layout = Layout.build(state, nonneg=[n for n in state if n.endswith("running_var")])
    rows = torch.zeros(members, layout.stride)
    generator = torch.Generator().manual_seed(0)
    for row in rows:  # members 1 % apart
        layout.flatten(state, row)
        row.mul_(1 + 0.01 * torch.randn(row.shape, generator=generator))
    images = pictures(8, case.size).repeat(-(-case.batch // 8), 1, 1, 1)[: case.batch]
    labels = torch.arange(case.batch) % 10

    methods: dict[str, Callable[[], Tensor]] = {"eager": eager(model, layout, rows, images, labels)}
    building: dict[str, float] = {"eager": 0.0}
    for method in options.method or METHODS[1:]:
        started = time.perf_counter()
        if method == "compile":
            methods[method] = compiled(model, layout, rows, images, labels)
        else:
            forward = PopulationForward(
                model, layout, precision=method, micro_batch=case.batch, label_smoothing=0.0
            )
            methods[method] = lambda f=forward: f(rows, images, labels).losses
        methods[method]()
        building[method] = time.perf_counter() - started
    exact = methods["eager"]()
    for method, call in methods.items():
        error = float((call() - exact).abs().max() / exact.abs().max())
        if error > (0.2 if method == "bfloat16" else 1e-3):
            print(f"bench: {case.name} by {method}: losses are off by {error:.2g}", file=sys.stderr)
            return None
    times: dict[str, list[float]] = {method: [] for method in methods}
    spent: dict[str, list[float]] = {method: [] for method in methods}
    for _ in range(options.repetitions):  # in turn, so that drift hits all of them
        for method, call in methods.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            times[method].append(time.perf_counter() - wall)
            spent[method].append(time.process_time() - cpu)
    count = members * case.batch
    medians = {method: measure.summary(seconds) for method, seconds in times.items()}
    used = {method: measure.summary(seconds)["median_s"] for method, seconds in spent.items()}
    return [
        {
            "case": case.name,
            "method": method,
            "image_size": case.size,
            "batch": case.batch,
            "members": members,
            "threads": options.threads,
            **medians[method],
            "member_images_per_s": count / medians[method]["median_s"],
            "speedup": medians["eager"]["median_s"] / medians[method]["median_s"],
            "cpu_s": used[method],
            "cpu_speedup": used["eager"] / used[method],
            "build_s": building[method],
            **measure.environment(),
        }
        for method in methods
    ]


def eager(
    model: nn.Module, layout: Layout, rows: Tensor, images: Tensor, labels: Tensor
) -> Callable[[], Tensor]:
    """functional_call on views of the rows, in inference mode."""

    @torch.inference_mode()
    def call() -> Tensor:
        losses = []
        for row in rows:
            logits = functional_call(model, layout.views(row), (images,))
            losses.append(nn.functional.cross_entropy(logits, labels, reduction="none"))
        return torch.stack(losses)

    return call


def compiled(
    model: nn.Module, layout: Layout, rows: Tensor, images: Tensor, labels: Tensor
) -> Callable[[], Tensor]:
    """The same through torch.compile, with weights as arguments and images channels-last."""

    def one(tensors: dict[str, Tensor], x: Tensor) -> Tensor:
        logits = functional_call(model, tensors, (x,))
        return nn.functional.cross_entropy(logits, labels, reduction="none")

    fast = torch.compile(one, dynamic=False)
    x = images.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def call() -> Tensor:
        return torch.stack([fast(layout.views(row), x) for row in rows])

    return call


def table(rows: list[dict[str, Any]]) -> str:
    """Aligned text."""
    header = ("case", "method", "images", "K", "threads", "member-images/s", "x", "cpu x", "build")
    lines = [header]
    for row in rows:
        images = f"{row['batch']} of {row['image_size']}x{row['image_size']}"
        lines.append(
            (
                row["case"],
                row["method"],
                images,
                str(row["members"]),
                str(row["threads"]),
                f"{row['member_images_per_s']:.1f}",
                f"{row['speedup']:.2f}",
                f"{row['cpu_speedup']:.2f}",
                f"{row['build_s']:.1f} s",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


if __name__ == "__main__":
    raise SystemExit(main())
