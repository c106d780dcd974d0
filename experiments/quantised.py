"""Networks whose weights have 4 bits: evolved as they are deployed, or quantised at the end.

onnxruntime's static post-training quantisation makes them: BatchNorm folded, symmetric weights with
one scale a tensor, activations of 8 bits, ranges from least to greatest. N labelled images of the
kind trained on are given, and no others. Two runs choose by folds of them: one scores float32
networks, whose results are quantised at the end, the other what onnxruntime computes. Beside them
Adam trains the soup on the same labels: in float32, and with weights and activations rounded, the
gradient taken as if nothing were (Jacob et al., CVPR 2018).
"""

from __future__ import annotations

import copy
import importlib.util
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils import parametrize

import deevo_ext as deevo
from deevo_ext.data.images import ImageSet
from deevo_ext.networks.execution.user_engine import EngineFunction
from deevo_ext.runs.state import SOUP
from deevo_ext.training import few_labels

from .cases import Case, case_of
from .csv_files import Line, Lines
from .populations import Setting
from .training import careful

LABELS, CALIBRATION, TEST = 1000, 200, 4000
PASSES = 300_000
"""At most, of each run's rounds: three of `vgg`, one of `resnet`."""
SEARCHES = FLOAT, QUANTISED = ("float32", "quantised")
TRAINED, AWARE = "trained by Adam", "trained by Adam, rounded"
EIGHT_BITS = f"{SOUP}, 8 bits"
_WEIGHTS, _ACTIVATIONS = 4, 8  # bits
_EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "onnx_int8.py"


class Rounded(nn.Module):
    """A weight as onnxruntime rounds it to signed integers; the gradient goes through unchanged."""

    def forward(self, weight: Tensor) -> Tensor:
        """Weight of any shape to the nearest of the values that it may have."""
        most = 2 ** (_WEIGHTS - 1)
        with torch.no_grad():
            # torch's own multiplies by the inverse, and the greatest weight may end a step off.
            scale = (weight.abs().max() / (most - 0.5)).clamp_min(1e-12)
            change = (weight / scale).round().clamp(-most, most - 1) * scale - weight
        return weight + change


def rounded(network: nn.Module) -> nn.Module:
    """Returns a copy of a network that computes as if quantised; BatchNorm is folded.

    Activations are rounded where a convolution or the classifier reads them, by the batch's range.
    """
    folded = fuse(network).requires_grad_(True)
    for module in folded.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            parametrize.register_parametrization(module, "weight", Rounded())
            module.register_forward_pre_hook(_round_input)
    return folded


def unrounded(network: nn.Module) -> nn.Module:
    """Returns a copy of such a network with the float32 weights that are rounded in it."""
    plain = copy.deepcopy(network)
    for module in plain.modules():
        if parametrize.is_parametrized(module):
            assert isinstance(module, nn.Module)
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
            module._forward_pre_hooks.clear()
    return plain


def _round_input(_: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
    (inputs,) = given
    low, high = (float(edge) for edge in inputs.detach().aminmax())
    low, high = min(low, 0.0), max(high, 0.0)
    most = 2**_ACTIVATIONS - 1
    scale = max((high - low) / most, 1e-12)  # of inputs that are all 0
    zero = round(-low / scale)
    return (torch.fake_quantize_per_tensor_affine(inputs, scale, zero, 0, most),)


def compare(root: Path, setting: Setting, seed: int) -> Lines:
    """Evolves a population in float32 and quantised, and trains its soup.

    Returns the networks' lines of `quantised.csv`: which run made a network, what its labels or
    folds say, and losses on test images, quantised and in float32.
    """
    case = case_of(root, setting, seed)
    labelled = case.sets.fitness.slice(0, LABELS)
    test = case.sets.test.slice(0, min(TEST, len(case.sets.test)))
    calibration = labelled.images[:CALIBRATION]
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as folder:
        engine = engine_of(case.network, calibration, Path(folder))
        soup = None
        for search in SEARCHES:
            began = time.process_time()
            result = _evolved(case, labelled, "auto" if search == FLOAT else engine)
            seconds = round(time.process_time() - began, 2)
            lines += [
                {"search": search, **line, "forward_passes": result.run.forward_passes,
                 "seconds": seconds}
                for line in _candidates(case.network, result, engine, test)
            ]  # fmt: skip
            if search == FLOAT:
                soup = result.run.state.initial["soup"].state_dict(result.run.population)
        assert soup is not None
        eight = engine_of(case.network, calibration, Path(folder), "QInt8")
        lines.append({"network": EIGHT_BITS, **_scores(eight(soup, test.images), test)})
        case.network.load_state_dict(soup)
        start = fuse(case.network).requires_grad_(True)
        for name, network in ((TRAINED, start), (AWARE, rounded(start))):
            began = time.process_time()
            trained = careful(network, labelled, seed, few_labels.LENGTHS)
            seconds = round(time.process_time() - began, 2)
            plain = unrounded(trained.network)
            own = engine_of(plain, calibration, Path(folder))
            about = {"network": name, "score": trained.loss, "seconds": seconds,
                     "forward_passes": trained.images}  # fmt: skip
            lines.append(about | _both(plain, plain.state_dict(), own, test))
    about = {"setting": setting.name, "population": seed, "labels": LABELS}
    return {"quantised": [{**about, "search": None, "returned": 0, **line} for line in lines]}


def engine_of(
    network: nn.Module, calibration: Tensor, folder: Path, weights: str = "QInt4"
) -> EngineFunction:
    """Returns the example's engine, which quantises what it is given by onnxruntime.

    calibration: images whose ranges of activations count. weights: their type, as in onnxruntime.
    """
    from onnxruntime.quantization import QuantType  # it has no wheel for every Python

    spec = importlib.util.spec_from_file_location(_EXAMPLE.stem, _EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example.Quantised(network, calibration, folder, QuantType[weights])


def _evolved(case: Case, labelled: ImageSet, engine: str | EngineFunction) -> deevo.Result:
    return deevo.evolve(
        case.network,
        case.paths,
        labelled,
        seed=case.seed,
        passes=PASSES,
        precision="float32",
        micro_batch=len(labelled),
        basin="ignore",
        progress=False,
        engine=engine,
    )


def _candidates(
    network: nn.Module, result: deevo.Result, engine: EngineFunction, test: ImageSet
) -> list[Line]:
    """The lines of the networks that a run considered, each with its score by the run's folds."""
    state = result.run.state
    lines = []
    for candidate in (*state.initial.values(), *state.treated, *state.evolved.values()):
        weights = candidate.state_dict(result.run.population)
        network.load_state_dict(weights)
        line = {"network": candidate.name, "score": candidate.score,
                "returned": int(candidate is result.candidate)}  # fmt: skip
        lines.append(line | _both(network, weights, engine, test))
    return lines


def _both(
    network: nn.Module, weights: dict[str, Tensor], engine: EngineFunction, test: ImageSet
) -> Line:
    exact = _scores(few_labels.logits_of(network, test), test)
    return {
        **_scores(engine(weights, test.images), test),
        **{f"float_{name}": value for name, value in exact.items()},
    }


def _scores(logits: Any, images: ImageSet) -> Line:
    logits = torch.as_tensor(logits)
    right = logits.argmax(dim=1) == images.labels
    loss = F.cross_entropy(logits.double(), images.labels)
    return {"loss": float(loss), "top1": float(right.double().mean())}
