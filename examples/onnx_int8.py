"""Evolves the network that is deployed: onnxruntime's, quantised, on the CPU.

Each network that the search tries is quantised as it would be for its users, weights and ranges of
activations, by onnxruntime's static post-training quantisation; what is scored is what will run.
Activations have 8 bits, and weights 4: in 8 bits these networks lose next to nothing (0.0004 in
loss). What comes back may well be that another initial network loses less. Where training can
imitate the rounding, it takes back more (docs/evidence.md). Needs onnx and onnxruntime.

    python examples/onnx_int8.py [FOLDER]
"""

from __future__ import annotations

import copy
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime import quantization
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.functional import cross_entropy

import deevo_ext as deevo

IMAGES, CALIBRATION, TEST = 600, 50, 2000
State = dict[str, Tensor]


class Quantised:
    """Logits of quantised networks, as onnxruntime computes them.

    model: of the architecture; its BatchNorm is folded into the convolutions before it.
    calibration: float32 [n, C, H, W], which ranges of activations are taken from. weights: their
    type. file: that of the network that came last.
    """

    version = 1  # what the run's journal knows it by; another one if what it computes changes

    def __init__(
        self,
        model: nn.Module,
        calibration: Tensor,
        folder: Path,
        weights: quantization.QuantType = quantization.QuantType.QInt4,
    ) -> None:
        self.model, self.weights = copy.deepcopy(model).eval(), weights
        folded, exported = fuse(self.model), folder / "float32.onnx"
        for number, tensor in enumerate(folded.state_dict().values()):
            tensor.fill_(number)  # of tensors that are equal the exporter keeps one
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # the other exporter wants onnxscript
            torch.onnx.export(
                folded,
                (calibration[:2],),
                exported,
                dynamo=False,
                do_constant_folding=False,
                input_names=["images"],
                output_names=["logits"],
                dynamic_axes={"images": {0: "n"}},
            )
        self.graph = onnx.load(exported)
        add_pre_process_metadata(self.graph)  # it is: BatchNorm is folded
        self.calibration, self.file = calibration, folder / "quantised.onnx"
        self._state: State | None = None

    def __call__(self, state: State, images: Tensor) -> np.ndarray:
        """The engine: it is called with the same dict for all images of a network."""
        if state is not self._state:
            self._session, self._state = self.session(state), state
        (logits,) = self._session.run(None, {"images": images.numpy()})
        return logits

    def session(self, state: State) -> onnxruntime.InferenceSession:
        """Puts a network's weights into the graph, and quantises it."""
        self.model.load_state_dict(state)
        folded = fuse(self.model).state_dict()
        for tensor in self.graph.graph.initializer:
            weights = folded[tensor.name].numpy()
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights, tensor.name))
        quantization.quantize_static(
            self.graph, self.file, _Reader(self.calibration), weight_type=self.weights
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        return onnxruntime.InferenceSession(self.file, options)


class _Reader(quantization.CalibrationDataReader):
    def __init__(self, images: Tensor) -> None:
        self._parts = iter(images.split(50))

    def get_next(self) -> dict[str, np.ndarray] | None:
        part = next(self._parts, None)
        return None if part is None else {"images": part.numpy()}


def main(folder: Path) -> None:
    """Evolves, and prints what quantisation lost and what came back."""
    from small_population import small_population  # who imports the engine has no need of it

    started = time.perf_counter()
    logging.getLogger().setLevel(logging.ERROR)  # onnxruntime recommends to optimise graphs first
    sets, model, paths = small_population(folder)
    labelled, test = (
        images.slice(0, min(size, len(images)))
        for images, size in ((sets.fitness, IMAGES), (sets.test, TEST))
    )
    model.load_state_dict(deevo.Population.from_checkpoints(model, paths).state_dict(0))
    engine = Quantised(model, labelled.images[:CALIBRATION], folder)
    trained = time.perf_counter()
    result = deevo.evolve(model, paths, labelled, rounds=2, engine=engine, micro_batch=500)
    soup = result.run.state.initial["soup"].state_dict(result.run.population)

    def measured(logits: Tensor) -> tuple[float, float]:
        correct = logits.argmax(dim=1) == test.labels
        return float(cross_entropy(logits, test.labels)), float(correct.double().mean())

    with torch.no_grad():
        model.load_state_dict(soup)
        rows = {"greedy soup, float32": measured(model(test.images))}
        rows["greedy soup, quantised"] = measured(torch.from_numpy(engine(soup, test.images)))
        evolved = torch.from_numpy(engine(result.state_dict, test.images))
        rows[f"{result.candidate.name}, quantised"] = measured(evolved)
    print(f"On {len(test):,} test images of {sets.name}:")
    for name, (loss, top1) in rows.items():
        print(f"{name:35} loss {loss:.4f}  top-1 {top1:.1%}")
    (full, _), (before, _), (after, _) = rows.values()
    print(
        f"Quantisation lost {before - full:+.4f}, what was chosen took back {before - after:+.4f}. "
        f"The network that was scored and is deployed: {engine.file}\n"
        f"{time.perf_counter() - started:.0f} s, {trained - started:.0f} of them for the members"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
