"""The names under which transformers writes a model's tensors, where these are not the model's own.

Its models have new names for old checkpoints' tensors (ViT, BEiT, DINOv2, Swin, SegFormer, ...):
`save_pretrained` goes on writing the old ones, and `from_pretrained` reads both.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from deevo_ext.population.matching import NameOptions


def with_saved_names(options: NameOptions, model: nn.Module) -> NameOptions:
    """Returns the options, by which files of transformers' `save_pretrained` fit the model, too.

    What the options map themselves stays as it is.
    """
    names = saved_names(model)
    return replace(options, key_map={**names, **options.key_map}) if names else options


def saved_names(model: nn.Module) -> Mapping[str, str]:
    """Returns the model's name of each tensor that `save_pretrained` renames, by that in its file.

    It is made to save one number for each tensor, which says where that went. Tensors that it
    splits or joins are left out, and so is every model but transformers'. Of one that cannot be
    saved, for whatever reason, none are known: files must have its own names, or do not fit it.
    """
    transformers: Any = sys.modules.get("transformers")
    if transformers is None or not isinstance(model, transformers.PreTrainedModel):
        return {}
    own = list(model.state_dict())
    numbers = {name: torch.tensor([float(i)]) for i, name in enumerate(own)}
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    config = model.config
    try:
        model.config = copy.deepcopy(config)  # which saving changes
        # Of several ranks it lets only the first one save; each asks here for itself.
        vars(model)["should_save_on_this_rank"] = lambda *_, **__: True
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder, state_dict=numbers)
            saved = load_file(Path(folder) / "model.safetensors")
    except Exception:  # its class may be somebody's own, and of an older transformers
        return {}
    finally:
        model.config = config
        vars(model).pop("should_save_on_this_rank", None)
        if shown:
            bars.enable_progress_bar()
    found = {name: own[int(value)] for name, value in saved.items() if value.numel() == 1}
    return {name: in_model for name, in_model in found.items() if name not in own}
