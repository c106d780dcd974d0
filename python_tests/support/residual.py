"""The toy ResNets for K members, by calls of fold, conv2d, pool2d and head alone."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from deevo_ext.backends.triton.convolution import Operands, Operation, conv2d
from deevo_ext.backends.triton.pooling import pool2d
from deevo_ext.backends.windows import Window
from deevo_ext.ops.fold_table import Space
from support.convolutional import ResNet
from support.folding import Builder, Entry
from support.operators import OPERATORS


class Engine:
    """K ResNets: their folded weights, and their losses and ranks through conv2d, pool and head."""

    def __init__(self, models: list[ResNet], dtype: torch.dtype, device: str) -> None:
        self.device, self.dtype, self.members = device, dtype, len(models)
        b = Builder()
        self.places: dict[str, Entry] = {}
        sources: list[tuple[tuple[Space, int] | None, str]] = []
        names = dict(models[0].named_modules())
        for name, module in names.items():
            if isinstance(module, nn.Sequential):
                conv = module[0]
                padded = 4 if conv.in_channels == 3 else 0
                b.add(conv.out_channels, conv.in_channels, conv.kernel_size[0] ** 2, padded=padded)
                e = b.entries[-1]
                norm = f"{name}.1"
                sources += [
                    (e.weight, f"{name}.0.weight"),
                    (e.gamma, f"{norm}.weight"),
                    (e.beta, f"{norm}.bias"),
                    (e.mean, f"{norm}.running_mean"),
                    (e.var, f"{norm}.running_var"),
                ]
            elif isinstance(module, nn.Linear):
                sizes = (module.out_features, module.in_features)
                b.add(*sizes, bias=True, affine=None, statistics=None)
                e = b.entries[-1]
                sources += [(e.weight, f"{name}.weight"), (e.bias, f"{name}.bias")]
            else:
                continue
            self.places[name] = e
        rows = torch.zeros(len(models), b.sizes[Space.ROWS])
        for row, model in zip(rows, models, strict=True):
            state = model.state_dict()
            for place, name in sources:
                assert place is not None
                tensor = state[name].flatten()
                row[place[1] : place[1] + tensor.numel()] = tensor
        p = b.problem(members=len(models))
        p.rows = rows
        weights, vectors = p.fold(dtype)
        self.weights, self.vectors = weights.to(device), vectors.to(device)

    def weight(self, name: str, kernel: int) -> torch.Tensor:
        e = self.places[name]
        count = e.out * e.taps * e.padded
        flat = self.weights[:, e.to_weight : e.to_weight + count]
        return flat.view(self.members, e.out, kernel, kernel, e.padded)

    def shift(self, name: str) -> torch.Tensor:
        e = self.places[name]
        return self.vectors[:, e.to_shift : e.to_shift + e.out]

    def convolve(
        self,
        x: torch.Tensor,
        name: str,
        layer: nn.Sequential,
        residual: torch.Tensor | None = None,
        shortcut: tuple[torch.Tensor, nn.Sequential] | None = None,
    ) -> torch.Tensor:
        conv = layer[0]
        k, s = conv.kernel_size[0], conv.stride[0]
        size = [(n - 1) // s + 1 for n in x.shape[2:4]]
        out = torch.empty(self.members, x.shape[1], *size, conv.out_channels,
                          dtype=self.dtype, device=self.device)  # fmt: skip
        bias, downsample = self.shift(name), None
        if shortcut is not None:
            x2, layer2 = shortcut
            stride = tuple(layer2[0].stride)
            where = name.replace("layers", "shortcut").rpartition(".")[0]
            downsample = (x2, self.weight(where, 1), stride)
            bias = bias + self.shift(where)
        operands = Operands(x, self.weight(name, k), bias, out, residual, downsample)
        return conv2d(operands, Operation((s, s), (k // 2, k // 2), activation="relu"))

    def features(self, model: ResNet, images: torch.Tensor) -> torch.Tensor:
        """Activations [K, N, H, W, C] of the last block; images [N, 3, H, W], the same for all."""
        x = functional.pad(images.permute(0, 2, 3, 1), (0, 1)).to(self.device, self.dtype)
        y = self.convolve(x[None].contiguous(), "stem", model.stem)
        size = [(n - 1) // 2 + 1 for n in y.shape[2:4]]
        flat = y.flatten(0, 1)
        pooled = torch.empty(flat.shape[0], *size, flat.shape[3], dtype=y.dtype, device=y.device)
        pool2d(flat, Window(True, (3, 3), (2, 2), (1, 1)), pooled)
        y = pooled.view(self.members, -1, *pooled.shape[1:])
        for i, block in enumerate(model.blocks):
            inner = y
            for j, layer in enumerate(block.layers[:-1]):
                inner = self.convolve(inner, f"blocks.{i}.layers.{j}", layer)
            last = f"blocks.{i}.layers.{len(block.layers) - 1}"
            if block.shortcut is None:
                y = self.convolve(inner, last, block.layers[-1], residual=y)
            else:
                more = (y, block.shortcut)
                y = self.convolve(inner, last, block.layers[-1], shortcut=more)
        return y

    def losses(
        self, features: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        flat = features.flatten(2, 3)
        weight = self.weight("classifier", 1)[:, :, 0, 0]
        losses = torch.empty(flat.shape[:2], device=self.device)
        ranks = torch.empty(flat.shape[:2], dtype=torch.int32, device=self.device)
        OPERATORS.head(flat, weight, self.shift("classifier"), labels.to(self.device),
                       0.0, losses, ranks)  # fmt: skip
        return losses, ranks
