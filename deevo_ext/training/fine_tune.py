"""Fine-tuning of one network on a set of images, interruptible at any step.

Everything random derives from the hyper-parameters' seed and the step or the epoch, so that a run
that goes on from a saved state takes the same path: bit for bit on one machine with one thread
count, on the CPU, however many processes read the images.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from deevo_ext.data.cache import default_workers
from deevo_ext.data.labelled import LabelledImages
from deevo_ext.errors import DeevoError
from deevo_ext.files import write_whole
from deevo_ext.networks.execution.modules import contiguous, logits_of, memory_format_of
from deevo_ext.networks.execution.preprocessing import Preprocessing
from deevo_ext.training.batches import TrainingBatches, batch_mixing, changes_pictures
from deevo_ext.training.hyper_parameters import HyperParameters, derived_seed

_STEP = 2  # what a seed is derived for


class State:
    """A file that holds a training's network, optimizer and step.

    seconds: the time from one save to the next. hyper_parameters: plain values that the file keeps;
    a training of others does not go on from it.
    """

    def __init__(self, path: Path, seconds: float, hyper_parameters: dict[str, Any]) -> None:
        self.path, self.seconds, self.hyper_parameters = path, seconds, hyper_parameters
        self._saved = time.monotonic()

    def due(self) -> bool:
        """Returns whether the last save is `seconds` ago."""
        return time.monotonic() - self._saved >= self.seconds

    def save(self, step: int, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Replaces the file, which is always whole."""
        content = io.BytesIO()
        parts = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
        kept = {"step": step, "hyper_parameters": self.hyper_parameters, **parts}
        torch.save(kept, content)
        write_whole(self.path, content.getvalue())
        self._saved = time.monotonic()

    def load(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Restores network and optimizer; returns the step to go on with, 0 without a file."""
        for torn in self.path.parent.glob(f".{self.path.name}.*"):
            torn.unlink(missing_ok=True)  # what a kill left of a save, as large as the network
        saved = self.require_same(next(network.parameters()).device)
        if saved is None:
            return 0
        try:
            network.load_state_dict(saved["network"])
            optimizer.load_state_dict(saved["optimizer"])
            return int(saved["step"])
        except Exception as error:  # torch raises nearly anything where they do not fit
            raise self._damaged(error) from error

    def require_same(self, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """Returns what the file holds, None without one.

        Raises DeevoError where it is of a training with other hyper-parameters.
        """
        if not self.path.is_file():
            return None
        try:
            saved = dict(torch.load(self.path, map_location=device, weights_only=True))
        except Exception as error:  # torch raises nearly anything on a damaged file
            raise self._damaged(error) from error
        told, own = saved.get("hyper_parameters"), self.hyper_parameters
        if told is None:
            raise DeevoError(
                f"{self.path}: does not say what hyper-parameters its training has, as an earlier "
                "release wrote it; delete it, and this training begins anew"
            )
        if told != own:
            names = [name for name in {**told, **own} if told.get(name) != own.get(name)]
            raise DeevoError(
                f"{self.path}: of a training with other hyper-parameters ({names[0]} is "
                f"{told.get(names[0])}, not {own.get(names[0])}); give those to go on with it, or "
                "delete it, and this training begins anew"
            )
        return saved

    def _damaged(self, error: Exception) -> DeevoError:
        return DeevoError(f"{self.path}: not a whole state ({error}); delete it")

    def remove(self) -> None:
        """Deletes the file, if there is one."""
        self.path.unlink(missing_ok=True)


def fine_tune(
    network: nn.Module,
    images: LabelledImages,
    hyper: HyperParameters,
    *,
    state: State | None = None,
    on_step: Callable[[int], None] | None = None,
    workers: int | None = None,
) -> None:
    """Trains `network` in place by gradient descent; it is left in eval mode.

    On a CUDA device that has bfloat16 it runs under autocast. No global generator is moved.

    network: float32, on the device it is to be trained on. images: what it learns from. state:
    the file that keeps the training, and from which it goes on. on_step: called with the number of
    steps done, at the start and after each step. workers: processes that read and augment the
    images, 0 for none; by default as many as there are processors where that is work, and none for
    plain images in memory.

    Raises DeevoError when the loss is not finite: the learning rate is too high; and where the
    network returns no logits [N, classes], neither as they are nor as `logits` of its output.
    """
    device = next(network.parameters()).device
    batches = TrainingBatches(images, hyper)
    mixing = batch_mixing(hyper, int(images.labels.max()) + 1)
    normalise = Preprocessing(images.mean, images.std).normalise
    memory_format = _memory_format(network, device)
    network.eval().to(memory_format=memory_format)  # type: ignore[call-overload]
    if memory_format == torch.channels_last:
        two = normalise(images.pixels(0, min(2, len(images))), device)
        memory_format = memory_format_of(network, two)
        network.to(memory_format=memory_format)  # type: ignore[call-overload]
    optimizer = _optimizer(network, hyper)
    first = 0 if state is None else state.load(network, optimizer)
    if on_step is not None:
        on_step(first)
    bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    network.train()
    if workers is None:
        workers = 0 if images.in_memory and not changes_pictures(hyper) else default_workers()
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(first, hyper.steps),
        num_workers=workers,
        # Forked, workers share the pages of the images: nothing is copied to them.
        multiprocessing_context="fork" if workers else None,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # or it would draw the workers' seeds from the global one
    )
    # Mixing and layers such as dropout draw from the global generators; they are left as they were.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for step, (pixels, labels) in enumerate(loader, first):
            torch.manual_seed(derived_seed(derived_seed(hyper.seed, _STEP), step))
            for group in optimizer.param_groups:
                group["lr"] = hyper.rate(step)
            x = normalise(pixels.to(device, non_blocking=True), device)
            targets = labels.to(device, non_blocking=True)
            if mixing is not None:
                x, targets = mixing(x, targets)
            if memory_format == torch.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            else:
                x = contiguous(x)
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                logits = logits_of(network, x, images.name)
            loss = _loss(logits.float(), targets, hyper.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            saves = state is not None and state.due()
            if (saves or step + 1 == hyper.steps) and not bool(torch.isfinite(loss)):
                raise DeevoError(
                    f"the loss is not finite after {step + 1} steps at learning rate "
                    f"{hyper.learning_rate:g}; choose a lower --learning-rate"
                )
            if state is not None and saves and step + 1 < hyper.steps:
                state.save(step + 1, network, optimizer)
            if on_step is not None:
                on_step(step + 1)
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    network.eval()


def _memory_format(network: nn.Module, device: torch.device) -> torch.memory_format:
    """Channels-last, which trains convolutions a quarter faster, where it is safe.

    On the CPU, oneDNN's gradient of a strided 1x1 convolution of so few channels writes past its
    workspace: https://github.com/uxlfoundation/oneDNN/issues/6035.
    """
    risky = any(
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.in_channels // module.groups < 16
        for module in network.modules()
    )
    return torch.contiguous_format if risky and device.type == "cpu" else torch.channels_last


def _optimizer(network: nn.Module, hyper: HyperParameters) -> torch.optim.Optimizer:
    if hyper.optimizer == "adamw":
        return torch.optim.AdamW(
            network.parameters(), lr=hyper.learning_rate, weight_decay=hyper.weight_decay
        )
    return torch.optim.SGD(
        network.parameters(),
        lr=hyper.learning_rate,
        weight_decay=hyper.weight_decay,
        momentum=hyper.momentum,
        nesterov=hyper.momentum > 0,
    )


def _loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy; targets: labels [n], or shares [n, K] of the first K classes."""
    if targets.is_floating_point():
        targets = F.pad(targets, (0, logits.shape[1] - targets.shape[1]))
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)
