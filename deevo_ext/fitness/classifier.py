"""A network's classifier: its last linear layer, the features that it reads, and its refit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.refit import Refit
from deevo_ext.fitness.statistics import Used
from deevo_ext.networks.execution.feed import ImageFeed, MicroBatch
from deevo_ext.networks.execution.modules import Modules, call, logits_of
from deevo_ext.networks.execution.preprocessing import Preprocessing
from deevo_ext.networks.execution.workers import Workers


@dataclass(frozen=True)
class Classifier:
    """The nn.Linear whose output is the logits.

    module: its name in the network. weight, bias: the names of its tensors in the row; bias is None
    where it has none.
    """

    module: str
    weight: str
    bias: str | None


def find_classifier(
    evaluator: Evaluator, row: Tensor, images: LabelledImages, used: Used | None = None
) -> Classifier | str:
    """Finds the classifier of the population's network, or says in a sentence why it has none.

    It is looked for with one micro-batch of images, which is not counted as forward passes; row
    [D] is any member's, with the statistics [S] that it is used with. A classifier is an nn.Linear
    that is called once, whose output leaves the network as it is; its tensors must be evolved, and
    its own.
    """
    layers = {
        name: module
        for name, module in evaluator.forward.module.named_modules()
        if isinstance(module, nn.Linear)
    }
    try:
        name = _Features(evaluator).whose_output_is_logits(list(layers), row, images, used)
    except Exception as error:  # of a module that stands for what a user's function evaluates
        if not evaluator.forward.own_engine:
            raise
        return f"the module cannot be run ({error}), so its classifier is not refitted"
    if name is None:
        return "no linear layer's output is the network's logits, so there is none to refit"
    names = [f"{name}.weight", *([] if layers[name].bias is None else [f"{name}.bias"])]
    entries = {n: entry for entry in evaluator.population.layout.entries for n in entry.names}
    for tensor in names:
        if tensor not in entries:
            return f"{tensor} is not evolved, so the classifier cannot be refitted"
        if len(entries[tensor].names) > 1:
            return f"{tensor} is another layer's, too, so the classifier cannot be refitted"
    return Classifier(name, names[0], names[1] if len(names) > 1 else None)


def features(
    evaluator: Evaluator,
    classifier: Classifier,
    row: Tensor,
    images: LabelledImages,
    used: Used | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns what the classifier reads, float32 [N, k], and the logits float32 [N, C] of a row.

    row: [D], with the statistics [S] that it is used with. One float32 forward pass an image, in
    the evaluator's micro-batches, counted in its `forward_passes`; both lie where the labels are.
    """
    found = _Features(evaluator).all_of(classifier.module, row, images, used)
    evaluator.count(len(images))
    return found


def changes_of(classifier: Classifier, refit: Refit) -> dict[str, Tensor]:
    """Returns what a refit adds to the row's tensors, by name: float32, for a recipe's file."""
    changes = {classifier.weight: refit.weight.cpu()}
    if classifier.bias is not None:
        changes[classifier.bias] = refit.bias.cpu()
    return changes


class _Features:
    """Runs the network with hooks on linear layers."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.population, self.device = evaluator.population, evaluator.device
        self._feed = ImageFeed(self.device, evaluator.micro_batch, Preprocessing(None, None))
        self._workers = Workers(self.device)
        self._modules = Modules(evaluator.forward.module, self._workers.count)

    def whose_output_is_logits(
        self, names: list[str], row: Tensor, images: LabelledImages, used: Used | None
    ) -> str | None:
        """Returns the layer, called once for [n, k], whose output no later one changes."""
        batch, tensors = self._feed.first(images, torch.float32), self._tensors(row, used)
        [(calls, logits)] = self._workers.run([lambda: self._run(names, tensors, batch)])
        found = [
            name
            for name, made in calls.items()
            if len(made) == 1 and made[0][0].ndim == 2 and torch.equal(made[0][1], logits)
        ]
        return found[-1] if found else None

    def all_of(
        self, name: str, row: Tensor, images: LabelledImages, used: Used | None
    ) -> tuple[Tensor, Tensor]:
        """Returns a layer's inputs [N, k] and the logits [N, C] of all images."""
        tensors, home = self._tensors(row, used), images.labels.device
        parts: list[tuple[Tensor, Tensor]] = []

        def task(batch: MicroBatch) -> Callable[[], tuple[Tensor, Tensor]]:
            def run() -> tuple[Tensor, Tensor]:
                calls, logits = self._run([name], tensors, batch)
                found = calls[name][0][0]
                return found[: batch.size].to(home), logits[: batch.size].to(home)

            return run

        for batches in self._feed.batches(images, torch.float32):
            parts += self._workers.run([task(batch) for batch in batches])
        inputs, logits = zip(*parts, strict=True)
        return torch.cat(inputs), torch.cat(logits)

    def _tensors(self, row: Tensor, used: Used | None) -> dict[str, Tensor]:
        row = row.to(self.device, torch.float32)
        return self.population.views(row, statistics=None if used is None else used.to(self.device))

    def _run(
        self, names: list[str], tensors: dict[str, Tensor], batch: MicroBatch
    ) -> tuple[dict[str, list[tuple[Tensor, Tensor]]], Tensor]:
        """Returns inputs and outputs of each call of the layers, by name, and the logits."""
        calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
        with self._modules.take(batch.images) as (model, own):
            handles = []
            for name in names:

                def keep(
                    module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name
                ) -> None:
                    # A later layer may write into the output.
                    calls[name].append((inputs[0], output.clone()))

                handles.append(model.get_submodule(name).register_forward_hook(keep))
            try:
                logits = logits_of(lambda x: call(model, tensors, (x,)), own, "images")
            finally:
                for handle in handles:
                    handle.remove()
        return calls, logits
