"""Architectures by name: torchvision's, timm's, or any factory; and the transforms they expect.

    resnet50, torchvision:resnet50    a classifier of torchvision
    timm:convnext_tiny.fb_in1k        a model of timm; the tag says which weights' transform
    hf:FOLDER                         a Hugging Face folder, of timm's or transformers'
    package.module:factory            a function that returns an nn.Module

A bare name is torchvision's where torchvision has it, else timm's. These packages are extras,
imported when a name needs them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.data.transform import Transform
from deevo_ext.errors import DeevoError
from deevo_ext.extras import import_extra, import_named
from deevo_ext.networks import hugging_face
from deevo_ext.networks.execution.modules import logits_of
from deevo_ext.networks.transforms import transform_of
from deevo_ext.population.checkpoints import load_matched
from deevo_ext.population.finding import PathLike
from deevo_ext.population.inventory import Inventory
from deevo_ext.population.matching import NameOptions
from deevo_ext.population.mismatch import require_fit
from deevo_ext.population.saved_names import with_saved_names

_HOW = (
    'expected "torchvision:NAME", "timm:NAME", a bare name of either, "hf:FOLDER" or '
    '"package.module:factory"'
)
_LOCAL = "local-dir:"
"""How timm calls a network that a folder describes."""

_NORMALISING = ("googlenet", "inception_v3")
"""torchvision's, which normalise images once more where torchvision makes them with weights."""


@dataclass(frozen=True)
class Architecture:
    """An untrained network and what it expects.

    name: with its source, as "torchvision:resnet50". model: in eval mode, float32, on the CPU.
    num_classes: logits it gives, where that is known. transform: the one that was chosen, or that
    of the model's metadata; None where there is neither. names: how the checkpoint's names were
    made the model's, as a sentence; "" where they are the same. arguments: what the model was made
    with.
    """

    name: str
    model: nn.Module
    num_classes: int | None
    transform: Transform | None
    names: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def needs_transform(self) -> Transform:
        """The transform; DeevoError that says how to give one where there is none."""
        if self.transform is None:
            raise DeevoError(
                f"{self.name} says nothing of its preprocessing; give --transform FILE, a JSON or "
                'TOML file such as {"resize": 256, "crop": 224, "interpolation": "bilinear", '
                '"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}'
            )
        return self.transform

    def classes(self) -> int | None:
        """Returns the number of logits that it gives for an image; None where its size is open.

        A blank image is put through the network. Raises DeevoError where it fails on that.
        """
        if self.transform is None or self.transform.crop is None:
            return self.num_classes
        blank = torch.zeros(1, self.transform.channels, *self.transform.crop)
        with torch.no_grad():
            return logits_of(self.model, blank, "images").shape[1]


def architecture(
    arch: str,
    *,
    checkpoint: PathLike | None = None,
    options: NameOptions | None = None,
    num_classes: int | None = None,
    model_args: Mapping[str, Any] | None = None,
    transform: str | Path | Transform | None = None,
    seed: int = 0,
) -> Architecture:
    """Makes the network called `arch`, a name as the module describes it.

    checkpoint: one that must fit the network; its classifier says the number of classes. options:
    how weights are found in it. num_classes: that number, if not the checkpoint's or the
    architecture's own. model_args: what else the network is made with, as {"img_size": 96};
    torchvision's googlenet and inception_v3 have transform_input=True unless told otherwise, as
    torchvision makes them with weights. transform: a Transform, a JSON or TOML file, the name of
    torchvision weights ("IMAGENET1K_V1"; without it their default ones), or None for the model's
    own. seed: of the initial weights; the global generators are left as they are.

    Raises DeevoError: unknown name, missing package, a factory that fails, unreadable transform, a
    checkpoint whose tensors are not the network's.
    """
    source, name, make = _find(arch)
    full_name = f"{source}:{name}"
    given: dict[str, Any] = dict(model_args or {})
    if source == "torchvision" and name in _NORMALISING:
        given = {"transform_input": True} | given
    sizes = {} if num_classes is None else {"num_classes": num_classes}
    model = _made(make, full_name, given | sizes, seed)
    names = ""
    if checkpoint is not None:
        expected = model.state_dict().keys()
        options = with_saved_names(options or NameOptions(), model)
        state, matched = load_matched(checkpoint, expected, options, mapped=True)
        if num_classes is None:
            num_classes = classes_in(state, model)
            if num_classes is not None:
                model = _made(make, full_name, given | {"num_classes": num_classes}, seed)
        try:
            require_fit(Inventory.of(model), state, str(checkpoint))
        except DeevoError as error:
            raise DeevoError(f"{error}. --arch and --model-arg decide the model") from error
        names = matched.describe()
    size = given.get("img_size")
    chosen = transform_of(source, name, model, transform, size)
    if num_classes is not None:
        given["num_classes"] = num_classes
    return Architecture(full_name, model, num_classes, chosen, names, given)


def classes_in(state: Mapping[str, Tensor], model: nn.Module) -> int | None:
    """The number of classes of a checkpoint, where it alone tells it from the model.

    That is so where it has the model's tensors, and all of another shape differ in their first size
    only, and by the same: a classifier's weight and bias.
    """
    own = model.state_dict()
    if any(name not in own for name in state):
        return None
    pairs = set()
    for name, tensor in own.items():
        if name in state and state[name].shape != tensor.shape:
            here, there = tensor.shape, state[name].shape
            if len(here) != len(there) or here[1:] != there[1:]:
                return None
            pairs.add((here[0], there[0]))
    return pairs.pop()[1] if len(pairs) == 1 else None


@torch.no_grad()
def check_fit(
    network: Architecture, images: LabelledImages, class_names: list[str] | None = None
) -> None:
    """Refuses images whose size or classes do not fit the network, everything in one DeevoError.

    One image is put through the network. class_names: none where nobody named them.
    """
    wrong = []
    shape = images.image_shape
    if network.transform is not None:
        size = network.transform.size_of(*shape[1:])
        if (network.transform.channels, *size) != shape:
            wrong.append(
                f"{images.name} are {'x'.join(map(str, shape))}, but the transform gives "
                f"{network.transform.channels}x{size[0]}x{size[1]}"
            )
    classes = network.num_classes
    try:
        classes = logits_of(network.model, torch.zeros(1, *shape), images.name).shape[1]
    except (DeevoError, AssertionError) as error:
        wrong.append(str(error).splitlines()[0])
    highest = int(images.labels.max())
    if classes is not None and class_names and len(class_names) != classes:
        wrong.append(
            f"it has {classes} classes, but the images have {len(class_names)} "
            f"({class_names[0]} .. {class_names[-1]})"
        )
    elif classes is not None and highest >= classes:
        wrong.append(f"it has {classes} classes, but {images.name} have label {highest}")
    if wrong:
        raise DeevoError(
            f"{network.name} and the images do not fit: {'; '.join(wrong)}. Check --arch, --data "
            "and --transform"
        )


def _find(arch: str) -> tuple[str, str, Callable[..., nn.Module]]:
    """Returns source, name, and a constructor that takes num_classes."""
    source, separator, name = arch.partition(":")
    if not separator:
        return _bare(arch)
    if source == "torchvision":
        models = import_extra("torchvision").models
        if name not in models.list_models(module=models):
            raise DeevoError(f"torchvision has no classifier {name!r}; {_HOW}")
        return source, name, lambda **options: models.get_model(name, weights=None, **options)
    if source == "timm":
        timm = import_extra("timm")
        if not name.startswith(_LOCAL) and not timm.is_model(name):
            close = ", ".join(timm.list_models(f"*{name.partition('.')[0][:6]}*")[:5])
            raise DeevoError(f"timm has no model {name!r}{f' ({close}, ...)' if close else ''}")
        return source, name, lambda **options: timm.create_model(name, pretrained=False, **options)
    if source == "hf":
        folder = Path(name).expanduser()
        if hugging_face.is_timm(folder):
            return _find(f"timm:{_LOCAL}{folder}")
        return source, str(folder), hugging_face.maker(folder)
    return source, name, _factory(source, name)


def _bare(arch: str) -> tuple[str, str, Callable[..., nn.Module]]:
    missing = []
    for source in ("torchvision", "timm"):
        try:
            import_extra(source)
        except DeevoError as error:
            missing.append(str(error))
            continue
        try:
            return _find(f"{source}:{arch}")
        except DeevoError:
            continue
    reason = " ".join(missing) or "neither torchvision nor timm has it"
    raise DeevoError(f"arch is {arch!r}: {reason}; {_HOW}")


def _factory(module: str, name: str) -> Callable[..., nn.Module]:
    make = import_named(f"{module}:{name}", "arch")

    def call(**options: Any) -> nn.Module:
        parameters = inspect.signature(make).parameters
        anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if not anything and "num_classes" not in parameters:
            options.pop("num_classes", None)  # of one size; check_fit compares it with the data
        return make(**options)

    return call


def _made(
    make: Callable[..., nn.Module], name: str, options: dict[str, Any], seed: int
) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = make(**options)
    except (Exception, SystemExit) as error:  # a factory is somebody's own code
        what = f"{type(error).__name__} {error}".strip()
        raise DeevoError(f"{name} cannot be made with {options or 'no arguments'}: {what}") from (
            error
        )
    if not isinstance(model, nn.Module):
        raise DeevoError(f"{name} returned a {type(model).__name__}; expected a torch.nn.Module")
    return model.eval()
