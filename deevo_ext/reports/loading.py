"""How a network that a run returned is loaded, and which images it takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.data.transform import Transform
from deevo_ext.networks.zoo import Architecture
from deevo_ext.population.naming import Naming
from deevo_ext.population.saved_names import saved_names


def loading_code(file: Path, naming: Naming, network: Architecture | None) -> str:
    """Returns Python that loads a file of weights whose names are those of a checkpoint.

    network: what the checkpoints are of, where that has a name.
    """
    imports, making = _making(network)
    lines = [*imports, "from safetensors.torch import load_file", "", making]
    lines.append(f"state = load_file({str(file)!r})")
    prefix = _prefix(naming.names)
    if network is not None and network.name.startswith("hf:") and _as_saved(naming, network):
        lines.append("model = type(model).from_pretrained(None, config=config, state_dict=state)")
        return "\n".join([*lines, "model.eval()"])
    if prefix is None:
        lines.append("# The file's names are the checkpoints'; make them the model's as for those.")
    elif prefix:
        lines.append(
            f"state = {{name.removeprefix({prefix!r}): tensor for name, tensor in state.items()}}"
        )
    # What the model does not have; of other names strict=False would load none, and not say so.
    more = ", strict=False" if naming.extra and prefix is not None else ""
    return "\n".join([*lines, f"model.load_state_dict(state{more})", "model.eval()"])


def _making(network: Architecture | None) -> tuple[list[str], str]:
    """The imports and the line that make an untrained model."""
    if network is None:
        return [], "model = ...  # made as for the checkpoints"
    source, _, name = network.name.partition(":")
    arguments = dict(network.arguments)
    if source == "hf" and "num_classes" in arguments:  # as a config calls it
        arguments = {"num_labels": arguments.pop("num_classes"), **arguments}
    options = "".join(f", {key}={value!r}" for key, value in arguments.items())
    if source == "torchvision":
        return ["import torchvision"], f"model = torchvision.models.get_model({name!r}{options})"
    if source == "timm":
        return ["import timm"], f"model = timm.create_model({name!r}{options})"
    if source == "hf":
        return (
            ["from transformers import AutoConfig, AutoModelForImageClassification"],
            f"config = AutoConfig.from_pretrained({name!r}{options})\n"
            "model = AutoModelForImageClassification.from_config(config)",
        )
    return [f"from {source} import {name}"], f"model = {name}({options.removeprefix(', ')})"


def _prefix(names: Mapping[str, str]) -> str | None:
    """What stands before each of the model's names in the file; None where they differ otherwise.

    names: the file's name for each of the model's.
    """
    prefixes = {
        in_file.removesuffix(name) if in_file.endswith(name) else None
        for name, in_file in names.items()
    }
    return prefixes.pop() if len(prefixes) == 1 else None


def _as_saved(naming: Naming, network: Architecture) -> bool:
    """Whether some of the file's names are those that transformers alone makes the model's."""
    renamed = saved_names(network.model)
    others = {in_file: name for name, in_file in naming.names.items() if in_file != name}
    return bool(others) and others.items() <= renamed.items()


def images_text(images: LabelledImages | None, transform: Transform | None) -> str:
    """Says in a sentence which images a network takes, and how they are made of pictures.

    images: some that it was given. transform: what made them, where that is known.
    """
    size = "" if images is None else f"Images are {' x '.join(map(str, images.image_shape))}"
    if transform is not None:
        return " ".join(filter(None, (f"{size}." if size else "", pictures_text(transform))))
    if images is None:
        return ""
    how = "as the run was given them"
    if images.mean is not None and images.std is not None:
        how = _normalised(images.mean, images.std)
    return f"{size} (channels, height, width), {how}."


def pictures_text(transform: Transform) -> str:
    """Says in a sentence what a transform does to a picture."""
    steps = ["turned as their EXIF orientation says"] if transform.exif else []
    if isinstance(transform.resize, int):
        steps.append(f"resized to {transform.resize} (shorter side, {transform.interpolation})")
    elif transform.resize is not None:
        how = {"bend": "to", "cover": "to cover", "contain": "to be contained in"}[transform.fit]
        steps.append(f"resized {how} {_sides(transform.resize)} ({transform.interpolation})")
    if transform.crop is not None:
        fill = list(transform.fill or ())
        ground = f" (what is missing is {fill})" if any(fill) else ""
        steps.append(f"cropped to {_sides(transform.crop)}{ground}")
    steps.append(_normalised(transform.mean, transform.std))
    return f"Pictures are {', '.join(steps)}."


def _normalised(mean: Any, std: Any) -> str:
    return f"normalised: mean {list(mean)}, deviation {list(std)} of values in 0..1"


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
