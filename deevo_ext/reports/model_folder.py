"""A network as a folder that timm and transformers load: config, weights and a model card.

    timm.create_model("local-dir:FOLDER", pretrained=True)
    transformers.AutoModelForImageClassification.from_pretrained("FOLDER")

Networks of timm get timm's config, which transformers reads, too; networks of a Hugging Face folder
get the config that they were made with, and keep that folder's image processor.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from deevo_ext.data.transform import Transform
from deevo_ext.errors import DeevoError
from deevo_ext.extras import import_extra
from deevo_ext.files import read_regular, write_whole
from deevo_ext.networks.hugging_face import CONFIG, PROCESSOR, transform_of
from deevo_ext.networks.transforms import of_timm
from deevo_ext.networks.zoo import Architecture
from deevo_ext.reports.card import render
from deevo_ext.reports.loading import images_text

FORMATS = ("checkpoint", "timm", "hf")
"""The layout of the first checkpoint alone; beside it a folder for timm, or for Hugging Face."""
WEIGHTS, README = "model.safetensors", "README.md"


def check_format(form: str, network: Architecture) -> None:
    """Refuses a format that is none, or that a network or its transform cannot have."""
    source, _, name = network.name.partition(":")
    if form not in FORMATS:
        raise DeevoError(f"format is {form!r}; expected one of {', '.join(FORMATS)}")
    sources = {"checkpoint": (source,), "timm": ("timm",), "hf": ("timm", "hf")}
    if source not in sources[form]:
        also = " or a Hugging Face folder (hf:FOLDER)" if form == "hf" else ""
        raise DeevoError(
            f"format is {form!r}, but {network.name} is no architecture of timm{also}; leave it "
            "out: evolved.safetensors holds the network"
        )
    if form != "checkpoint" and source == "timm":
        transform, model = network.needs_transform(), nn.Identity()
        model.pretrained_cfg = _data_config(transform)  # type: ignore[assignment]
        if of_timm(model, network.name) != transform:
            raise DeevoError(
                f"format is {form!r}, but timm's config has no words for {transform}; expected a "
                "crop, of which resize is one multiple, or leave --format out"
            )
    if form == "hf" and source == "hf":
        _check_processor(Path(name), network.transform)


def _check_processor(origin: Path, transform: Transform | None) -> None:
    """Refuses an image processor, which would be copied, that does other than the transform."""
    try:
        own = transform_of(origin)
    except DeevoError as error:
        why = str(error).removesuffix("; give --transform FILE")  # it was given
        other = f"cannot be compared with the given transform ({why})"
    else:
        if own in (None, transform):  # without one the card alone says what images it takes
            return
        other = f"does {own}, but the network is given {transform}"
    raise DeevoError(
        f"format is 'hf', which copies {origin / PROCESSOR}, and that {other}; expected one that "
        "does the same: mend or remove the file, or leave --format out"
    )


def write_model_folder(
    folder: Path,
    network: Architecture,
    state: Mapping[str, Tensor],
    class_names: Sequence[str],
    card: Path,
) -> None:
    """Writes a network of timm or of a Hugging Face folder, trained weights and all.

    network: the architecture; its transform goes into the config. state: for it, under the model's
    names. class_names: in the labels' order. card: the run's, which its own card repeats; the
    pictures that it shows lie beside it and are copied.
    """
    source, _, name = network.name.partition(":")
    folder.mkdir(parents=True, exist_ok=True)
    if source == "timm":
        config = _timm_config(folder, network, class_names)
    else:
        config = _config_of_transformers(network.model, class_names)
        if (Path(name) / PROCESSOR).exists():
            write_whole(folder / PROCESSOR, read_regular(Path(name) / PROCESSOR))
    write_whole(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    # transformers asks for the metadata to say whose tensors these are.
    write_whole(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    said = card.read_text(encoding="utf-8")
    for picture in re.findall(r"^!\[.*?\]\((.+)\)$", said, re.MULTILINE):
        write_whole(folder / picture, read_regular(card.parent / picture))
    values = {
        "timm": source == "timm",
        "name": name if source == "timm" else type(network.model).__name__,
        "title": folder.name,
        "classes": len(class_names) or network.num_classes,
        "takes": images_text(None, network.transform),
        "card": said,
    }
    write_whole(folder / README, render("model_folder.md.j2", values).encode())


def _timm_config(folder: Path, network: Architecture, class_names: Sequence[str]) -> dict[str, Any]:
    """Makes timm's config, which says how the network was made and what pictures it takes."""
    hub = import_extra("timm.models._hub")
    path = folder / CONFIG
    data = _data_config(network.needs_transform())
    hub.save_config_for_hf(
        network.model, path, model_config={"label_names": list(class_names)}, data_config=data
    )
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    config.get("model_args", {}).pop("num_classes", None)  # it is said elsewhere, once
    return config


def _data_config(transform: Transform) -> dict[str, Any]:
    """Says a transform as timm does: the inverse of how `zoo` reads it."""
    data: dict[str, Any] = {
        "interpolation": transform.interpolation,
        "mean": transform.mean,
        "std": transform.std,
    }
    resize = transform.resize
    if transform.crop is None or resize is None:
        return data
    height = transform.crop[0]
    scaled = resize if isinstance(resize, int) else resize[0]
    share = height / scaled
    if math.floor(height / share) != scaled:
        share = height / (scaled + 0.5)  # timm rounds down what it gets by division
    modes = {"bend": "squash", "cover": "center", "contain": "border"}
    mode = modes[transform.fit] if isinstance(resize, tuple) else "center"
    size = (transform.channels, *transform.crop)
    return {**data, "input_size": size, "crop_pct": share, "crop_mode": mode}


def _config_of_transformers(model: nn.Module, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns the config that the model was made with, and the names of the classes if any."""
    made: Any = model.config
    config: dict[str, Any] = json.loads(made.to_json_string())
    if class_names:  # transformers counts the classes by them, and would count none
        config["id2label"] = {str(i): name for i, name in enumerate(class_names)}
        config["label2id"] = {name: i for i, name in enumerate(class_names)}
    return config
