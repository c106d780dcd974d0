"""Fine-tuning of one network on a set of images, interruptible at any step.

Everything random derives from the recipe's seed and the step, so that a run that goes on from a
saved state takes the same path: bit for bit on one machine with one thread count, on the CPU.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.labelled import LabelledImages
from ..errors import DeevoError
from ..files import write_whole
from ..networks.execution.preprocessing import Preprocessing
from .augment import augment, erase
from .mixing import draw_mixing
from .pictures import change_pictures, require_operations
from .recipes import Recipe, derived_seed

_ORDER, _STEP = 1, 2  # what a seed is derived for


class State:
    """A file that holds a run's network, optimizer and step; written at most every few seconds."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds = path, seconds
        self._saved = time.monotonic()

    def due(self) -> bool:
        """Whether the last save is `seconds` ago."""
        return time.monotonic() - self._saved >= self.seconds

    def save(self, step: int, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Replaces the file, which is always whole."""
        content = io.BytesIO()
        parts = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({"step": step, **parts}, content)
        write_whole(self.path, content.getvalue())
        self._saved = time.monotonic()

    def load(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """The step to go on with; 0 without a file."""
        for torn in self.path.parent.glob(f".{self.path.name}.*"):
            torn.unlink(missing_ok=True)  # what a kill left of a save, as large as the network
        if not self.path.is_file():
            return 0
        device = next(network.parameters()).device
        try:
            found = torch.load(self.path, map_location=device, weights_only=True)
            network.load_state_dict(found["network"])
            optimizer.load_state_dict(found["optimizer"])
            return int(found["step"])
        except Exception as error:  # torch raises nearly anything on a damaged file
            raise DeevoError(f"{self.path}: not a whole state ({error}); delete it") from error

    def remove(self) -> None:
        """Deletes the file, if there is one."""
        self.path.unlink(missing_ok=True)


def fine_tune(
    network: nn.Module,
    images: LabelledImages,
    recipe: Recipe,
    *,
    state: State | None = None,
    on_step: Callable[[int], None] | None = None,
) -> None:
    """Trains `network` in place by `recipe`, from `state` if that has begun; left in eval mode.

    On a CUDA device that has bfloat16 it runs under autocast. Epochs are shuffled, and what is left
    at their end that fills no batch is skipped; batches are read one ahead.

    network: float32, on the device it is to be trained on. images: N, of which a batch is at most
    all. on_step: called with the number of steps done: at the start, and after each step.

    Raises DeevoError when the loss is not finite: the learning rate is too high.
    """
    device = next(network.parameters()).device
    require_operations(recipe)  # here, not in the reading thread
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    )
    first = 0 if state is None else state.load(network, optimizer)
    if on_step is not None:
        on_step(first)
    mixed = device.type == "cuda" and torch.cuda.is_bf16_supported()
    network.train()
    # Layers such as dropout draw from the global generators, which are left as they were.
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        for step, x, labels in _batches(images, recipe, first, device):
            torch.manual_seed(derived_seed(derived_seed(recipe.seed, _STEP), step))
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step)
            mixing = draw_mixing(recipe, step, len(labels), *x.shape[2:])
            x = mixing(x)
            with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                logits = network(x.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
            if mixing.share < 1:
                other = F.cross_entropy(
                    logits.float(),
                    labels[mixing.order.to(device)],
                    label_smoothing=recipe.label_smoothing,
                )
                loss = mixing.share * loss + (1 - mixing.share) * other
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            saves = state is not None and state.due()
            if (saves or step + 1 == recipe.steps) and not bool(torch.isfinite(loss)):
                raise DeevoError(
                    f"the loss is not finite after {step + 1} steps at learning rate "
                    f"{recipe.learning_rate:g}; choose a lower --learning-rate"
                )
            if state is not None and saves and step + 1 < recipe.steps:
                state.save(step + 1, network, optimizer)
            if on_step is not None:
                on_step(step + 1)
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    network.eval()


def _batches(
    images: LabelledImages, recipe: Recipe, first: int, device: torch.device
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(step, augmented and normalised images, labels) from step `first` on."""
    size = min(recipe.batch_size, len(images))
    each = len(images) // size  # batches of an epoch
    normalise = Preprocessing(images.mean, images.std).normalise
    # What is erased is the mean colour: zero, once normalised.
    ground = tuple(round(255 * value) for value in images.mean or (0.0,) * images.image_shape[0])

    def read(step: int) -> tuple[Tensor, Tensor]:
        epoch, number = divmod(step, each)
        seed = derived_seed(derived_seed(recipe.seed, _ORDER), epoch)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        chosen = images.subset(order[number * size : (number + 1) * size])
        generator = torch.Generator().manual_seed(derived_seed(recipe.seed + step, _STEP))
        moved = augment(chosen.pixels(0, size), recipe.shift, recipe.mirror, generator)
        moved = change_pictures(moved, recipe.crop, recipe.jitter, recipe.trivial, generator)
        moved = erase(moved, recipe.erase, ground, generator)
        if device.type == "cuda":
            moved = moved.pin_memory()
        return moved, chosen.labels

    with ThreadPoolExecutor(1, "deevo-batches") as reader:
        following = reader.submit(read, first) if first < recipe.steps else None
        for step in range(first, recipe.steps):
            assert following is not None
            pixels, labels = following.result()
            following = reader.submit(read, step + 1) if step + 1 < recipe.steps else None
            moved = pixels.to(device, non_blocking=True)
            yield step, normalise(moved, device), labels.to(device, non_blocking=True)
