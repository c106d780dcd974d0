"""An nn.Module as a functional ATen graph.

`capture` asks torch.export for the graph of an eval-mode module at one input shape: parameters and
buffers are named placeholders, composite operators (conv2d, linear, batch_norm, ...) stay whole,
and nothing is written in place. Where torch.export refuses, torch.fx traces the operators on fake
tensors instead (composites then come apart, so that less is fused). Both refuse what depends on the
values of the images.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from deevo_ext.errors import DeevoError
from deevo_ext.networks.execution.modules import copy_of

# Unlike nn.Module.to, these leave complex tensors alone.
_CAST = {
    torch.float32: nn.Module.float,
    torch.float16: nn.Module.half,
    torch.bfloat16: nn.Module.bfloat16,
}
# What a module may raise when traced is open; these are no failures of tracing.
_NOT_OURS = (KeyboardInterrupt, SystemExit, MemoryError)


class NotExportable(DeevoError):
    """A module that has no graph; the message says why."""


@dataclass(frozen=True)
class Capture:
    """A graph and what its placeholders are.

    graph: functional, in order; node.meta["val"] has shape and dtype. image: the placeholder of the
    images. names: placeholders of the model's tensors, by their names in the module. constants:
    further tensors by placeholder (or get_attr node). output: the node of the logits. how:
    "torch.export" or "torch.fx".
    """

    graph: fx.Graph
    image: fx.Node
    names: Mapping[fx.Node, str]
    constants: Mapping[fx.Node, Tensor]
    output: fx.Node
    how: str


def as_dtype(model: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Returns a copy in eval mode whose floating tensors have a dtype; complex ones keep theirs."""
    return _CAST[dtype](copy_of(model).eval().to(device))


def capture(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> Capture:
    """Returns the graph of `model` (eval mode, in `dtype`) on images of `shape` [N, C, H, W].

    Raises NotExportable where there is none: control flow or shapes that depend on values, writes
    to buffers, several outputs.
    """
    device = next((t.device for t in model.state_dict().values()), torch.device("cpu"))
    image = torch.zeros(shape, dtype=dtype, device=device)
    reasons = []
    attempts: tuple[tuple[str, Callable[[nn.Module, Tensor], Capture]], ...] = (
        ("torch.export", _exported),
        ("torch.fx", _traced),
    )
    for how, attempt in attempts:
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecations inside torch itself
                captured = attempt(model, image)
            _check(captured)
            return captured
        except _NOT_OURS:
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reasons.append(f"{how}: {lines[0]}")
    raise NotExportable("; ".join(reasons))


def _exported(model: nn.Module, image: Tensor) -> Capture:
    from torch.export.graph_signature import InputKind, OutputKind  # slow to import

    program = torch.export.export(model, (image,)).run_decompositions({})
    signature = program.graph_signature
    placeholders = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    names: dict[fx.Node, str] = {}
    constants: dict[fx.Node, Tensor] = {}
    images: list[fx.Node] = []
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    for spec in signature.input_specs:
        node = placeholders[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT:
            images.append(node)
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target in tensors:
            names[node] = str(spec.target)
        elif spec.target in program.constants:
            constants[node] = program.constants[spec.target]
        else:
            raise NotExportable(f"input {spec.arg.name!r} of kind {spec.kind.name}")
    outputs = signature.output_specs
    if len(outputs) != 1 or outputs[0].kind is not OutputKind.USER_OUTPUT:
        kinds = ", ".join(spec.kind.name.lower() for spec in outputs)
        raise NotExportable(f"outputs are {kinds}; expected one tensor of logits")
    (result,) = next(n for n in program.graph.nodes if n.op == "output").args[0]
    return Capture(program.graph, images[0], names, constants, result, "torch.export")


def _traced(model: nn.Module, image: Tensor) -> Capture:
    from torch.fx.experimental.proxy_tensor import make_fx  # slow to import

    state: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def forward(tensors: dict[str, Tensor], x: Tensor) -> Any:
        return functional_call(model, tensors, (x,))

    traced = make_fx(torch.func.functionalize(forward), tracing_mode="fake")(state, image)
    placeholders = [n for n in traced.graph.nodes if n.op == "placeholder"]
    names = dict(zip(placeholders, state, strict=False))
    constants = {
        n: getattr(traced, str(n.target)).detach() for n in traced.graph.nodes if n.op == "get_attr"
    }
    result = next(n for n in traced.graph.nodes if n.op == "output").args[0]
    if isinstance(result, (list, tuple)) and len(result) == 1:
        (result,) = result
    if not isinstance(result, fx.Node):
        raise NotExportable("several outputs; expected one tensor of logits")
    written = [n for n in traced.graph.nodes if str(n.target).startswith("aten.copy_")]
    if written:
        raise NotExportable("it writes to its buffers in eval mode")
    return Capture(traced.graph, placeholders[-1], names, constants, result, "torch.fx")


def _check(captured: Capture) -> None:
    for node in captured.graph.nodes:
        if node.op not in ("placeholder", "call_function", "get_attr", "output"):
            raise NotExportable(f"the graph has a {node.op} node")
        target = node.target
        if isinstance(target, torch._ops.HigherOrderOperator):
            raise NotExportable(f"the graph calls {target.name()}")
        if isinstance(target, torch._ops.OpOverload):
            seeded = torch.Tag.nondeterministic_seeded in target.tags
            if target is torch.ops.aten.scaled_dot_product_attention.default:
                arguments = {**dict(enumerate(node.args)), **node.kwargs}
                seeded = bool(arguments.get(4, arguments.get("dropout_p", 0.0)))
            if seeded and node.users:
                raise NotExportable(f"{target} draws random numbers in eval mode")
            if target._schema.is_mutable:
                raise NotExportable(f"{target} writes in place")
            if target.overloadpacket is torch.ops.aten.as_strided:
                raise NotExportable("as_strided depends on the memory layout")
    value = captured.output.meta.get("val")
    if not isinstance(value, Tensor):
        raise NotExportable("the output is no tensor")
