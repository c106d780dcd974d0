"""What is checked when a module is first run: batches, chance, and its graph against itself."""

from __future__ import annotations

import math
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from deevo_ext import DatasetFitness, DeevoError, Population
from deevo_ext.data import ImageSet
from deevo_ext.networks import build
from deevo_ext.networks.forward import PopulationForward
from deevo_ext.networks.graph.fuse import fuse
from deevo_ext.networks.graph.network_graph import Convolution, NetworkGraph
from deevo_ext.training.populate import populate
from deevo_ext.training.trainings import PopulationOptions, trainings_of

LABELS = torch.arange(12) % 3


def pictures() -> Tensor:
    return torch.randn((12, 3, 6, 6), generator=torch.Generator().manual_seed(0))


def two_of(model: nn.Module) -> Population:
    """The model, and one whose first tensor is half as large again."""
    states = [{k: v.clone() for k, v in model.state_dict().items()} for _ in "12"]
    next(iter(states[1].values())).mul_(1.5)
    return Population.from_state_dicts(model, states)


class Mixing(nn.Module):
    """A classifier of what `mix` makes of a batch [N, 8]."""

    def __init__(self, mix: str) -> None:
        super().__init__()
        self.conv, self.fc, self.mix = nn.Conv2d(3, 8, 3), nn.Linear(8, 3), mix
        self.norm = nn.BatchNorm1d(8, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).mean((2, 3))
        mixed = {
            "norm": lambda: self.norm(x) if len(x) > 1 else x,
            "mean": lambda: x - x.mean(0),
            "sum so far": lambda: x.cumsum(0),
            "neighbour": lambda: x + 0.1 * x.roll(1, 0),
            "chance": lambda: functional.dropout(x, 0.5),
            "none": lambda: x,
        }
        return self.fc(mixed[self.mix]())


@pytest.mark.parametrize("engine", ["auto", "fused", "eager"])
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("mix", ["norm", "mean", "sum so far", "neighbour"])
def test_losses_that_depend_on_the_batch_are_refused(mix: str, same: bool, engine: str) -> None:
    """Also where all images are the same, which hides a mean over them."""
    model = Mixing(mix).eval()
    population, images = two_of(model), pictures()
    if same:
        images = images[:1].expand(12, -1, -1, -1)
    with pytest.raises(DeevoError, match="depend on the images beside it"):
        PopulationForward(model, population, engine=engine)(population.rows, images, LABELS)
    losses = PopulationForward(model, population, engine=engine, micro_batch=1)(
        population.rows[:1], images, LABELS
    ).losses[0]
    with torch.no_grad():
        alone = torch.cat([model(image) for image in images.split(1)])
    assert torch.allclose(losses, functional.cross_entropy(alone, LABELS, reduction="none"))


def test_chance_in_eval_mode_is_refused() -> None:
    model = Mixing("chance").eval()
    population = two_of(model)
    with pytest.raises(DeevoError, match="draws random numbers in eval mode"):
        PopulationForward(model, population, engine="eager")(population.rows, pictures(), LABELS)


class Writing(nn.Module):
    """Normalises images in their own memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5)
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


@pytest.mark.filterwarnings("ignore:Writing is served unfused")
@pytest.mark.parametrize("engine", ["fused", "eager"])
@pytest.mark.parametrize("micro_batch", [1, 4])
def test_a_model_that_writes_to_its_images_writes_to_a_copy(micro_batch: int, engine: str) -> None:
    model, images = Writing().eval(), pictures()
    population = two_of(model)
    forward = PopulationForward(model, population, engine=engine, micro_batch=micro_batch)
    losses = forward(population.rows, images, LABELS).losses
    assert torch.equal(images, pictures())
    for k, found in enumerate(losses):
        model.load_state_dict(population.state_dict(k))
        with torch.no_grad():
            expected = functional.cross_entropy(model(pictures()), LABELS, reduction="none")
        assert torch.allclose(found, expected, atol=1e-5)


class Filtering(nn.Module):
    """A filter of frequencies, as FFT networks and rotary embeddings hold: complex, not evolved."""

    factors: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)
        angles = torch.randn((4, 3), generator=torch.Generator().manual_seed(1))
        factors = torch.polar(torch.ones_like(angles), angles)
        self.register_buffer("factors", factors, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = torch.fft.irfft2(torch.fft.rfft2(x.float()) * self.factors, s=(4, 4)).to(x.dtype)
        return self.fc(torch.relu(x).mean((2, 3)))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("engine", ["fused", "eager"])
def test_complex_buffers_keep_their_imaginary_parts(
    engine: str, precision: str, recwarn: pytest.WarningsRecorder
) -> None:
    model = Filtering().eval()
    population = two_of(model)
    forward = PopulationForward(model, population, engine=engine, precision=precision)
    logits = forward.logits(population.rows[0], pictures())
    with torch.no_grad():
        expected = model(pictures())
    atol = {"float32": 1e-5, "bfloat16": 0.02 * float(expected.abs().max())}[precision]
    assert torch.allclose(logits, expected, atol=atol)
    assert not recwarn.list


def test_an_overflow_leaves_the_check_to_later_calls() -> None:
    model = Mixing("mean").eval()
    population = two_of(model)
    forward = PopulationForward(model, population, engine="eager")
    rows = torch.full_like(population.rows, 3e38)
    assert bool((forward(rows, pictures(), LABELS).losses == math.inf).all())
    with pytest.raises(DeevoError, match="depend on the images beside it"):
        forward(population.rows, pictures(), LABELS)


class Recurrent(nn.Module):
    """Columns of features, one after the other, into an LSTM, which reads memory as it lies."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat, self.conv = flat, nn.Conv2d(3, 8, 3, padding=1)
        self.recurrent, self.fc = nn.LSTM(48, 16, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        x = x.flatten(1, 2).transpose(1, 2) if self.flat else x.permute(0, 3, 1, 2).flatten(2)
        return self.fc(self.recurrent(x)[0][:, -1])


@pytest.mark.parametrize("flat", [False, True])
def test_recurrent_layers_are_fused_with_what_lies_where_they_read(
    flat: bool, recwarn: pytest.WarningsRecorder
) -> None:
    model = Recurrent(flat).eval()
    population = two_of(model)
    logits = PopulationForward(model, population, engine="fused", micro_batch=4).logits(
        population.rows[0], pictures()
    )
    with torch.no_grad():
        assert torch.allclose(logits, model(pictures()), atol=1e-5)
    assert not [w for w in recwarn if "functional_call" in str(w.message)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_graph_that_is_wrong_is_left_for_the_module(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*arguments: object) -> NetworkGraph:
        graph = fuse(*arguments)  # type: ignore[arg-type]
        next(x for x in graph.layers if isinstance(x, Convolution)).activation = None
        return graph

    monkeypatch.setattr(build, "fuse", wrong)
    torch.manual_seed(0)  # of some weights half of the logits is little
    model = Mixing("none").eval()
    population = two_of(model)
    forward = PopulationForward(model, population, engine="fused", precision=precision)
    with pytest.warns(UserWarning, match=r"differ from the module's .* served by functional_call"):
        logits = forward.logits(population.rows[0], pictures())
    with torch.no_grad():
        expected = model(pictures())
    atol = {"float32": 1e-5, "bfloat16": 0.02 * float(expected.abs().max())}[precision]
    assert torch.allclose(logits, expected, atol=atol)
    with pytest.raises(DeevoError, match="served without a graph: the network graph of Mixing"):
        forward.graph((3, 6, 6))


class Packed(nn.Module):
    """Logits inside of something else."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.fc, self.kind = nn.Linear(3, 3), kind

    def forward(self, x: Tensor) -> object:
        logits = self.fc(x.mean((2, 3)))
        kinds = {
            "key": {"logits": logits, "loss": None},
            "attribute": types.SimpleNamespace(logits=logits, hidden=x),
            "dict": {"y": logits},
            "tuple": (logits, logits),
            "shape": logits[:, :, None],
        }
        return kinds[self.kind]


@pytest.mark.filterwarnings("ignore:Packed is served unfused")
@pytest.mark.parametrize("kind", ["key", "attribute", "dict", "tuple", "shape"])
@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_logits_are_read_or_what_is_there_is_named(kind: str, engine: str) -> None:
    model = Packed(kind).eval()
    forward = PopulationForward(model, two_of(model), engine=engine)
    row = two_of(model).rows[0]
    if kind in ("key", "attribute"):
        with torch.no_grad():
            exact = model.fc(pictures().mean((2, 3)))
        assert torch.allclose(forward.logits(row, pictures()), exact, atol=1e-6)
    else:
        with pytest.raises(DeevoError, match=r"the model returned .*; expected logits"):
            forward.logits(row, pictures())


def test_lazy_modules_are_named() -> None:
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(DeevoError, match=r"'1.weight' has no shape yet"):
        Population.from_state_dicts(model, [{}, {}])


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_model_that_cannot_be_copied_is_named_with_the_remedy(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(108, 3)))
    population = two_of(model)
    images = ImageSet(pictures(), LABELS, "pictures")
    trained = trainings_of(12, PopulationOptions(members=2, epochs=1, batch_size=4))
    data = TensorDataset(pictures(), LABELS)
    for refused in (
        lambda: PopulationForward(model, population),
        lambda: DatasetFitness(model, population, data, nn.CrossEntropyLoss()),
        lambda: populate(model, images, trained, tmp_path, origin={}, workers=0),
    ):
        with pytest.raises(DeevoError, match=r"model is a Sequential .*utils\.parametrizations"):
            refused()
    assert not list(tmp_path.iterdir())
    nn.utils.remove_weight_norm(model[1])
    forward = PopulationForward(model, two_of(model), engine="eager")
    logits = forward.logits(two_of(model).rows[0], pictures())
    assert torch.allclose(logits, model(pictures()), atol=1e-5)


def test_the_module_is_asked_for_where_a_wrapper_is_given() -> None:
    wrapper = nn.DataParallel(Mixing("none"))
    with pytest.raises(DeevoError, match=r"model is a DataParallel.*give model\.module"):
        PopulationForward(wrapper, two_of(wrapper))


@pytest.mark.parametrize("engine", ["fused", "eager"])
@pytest.mark.parametrize("size", range(4))
def test_images_without_a_pixel_are_refused(size: int, engine: str) -> None:
    model = Mixing("none").eval()
    forward = PopulationForward(model, two_of(model), engine=engine)
    shape = [12, 3, 6, 6]
    shape[size] = 0
    with pytest.raises(DeevoError, match=r"images have shape .*; expected \[N, C, H, W\], none"):
        forward.logits(two_of(model).rows[0], torch.zeros(shape))


class Typed(Mixing):
    """Gives its logits in another dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__("none")
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(self.dtype)


@pytest.mark.parametrize("engine", ["fused", "eager"])
def test_logits_of_another_dtype_are_rounded_or_refused(engine: str) -> None:
    model = Typed(torch.float64).eval()
    population = two_of(model)
    losses = PopulationForward(model, population, engine=engine)(
        population.rows[:1], pictures(), LABELS
    ).losses[0]
    with torch.no_grad():
        expected = functional.cross_entropy(model(pictures()), LABELS, reduction="none")
    assert torch.allclose(losses, expected.float(), atol=1e-5)
    for dtype in (torch.int64, torch.complex64):
        forward = PopulationForward(Typed(dtype), population, engine=engine)
        with pytest.raises(DeevoError, match=rf"the model returned {dtype} .*; expected logits"):
            forward(population.rows, pictures(), LABELS)


@pytest.mark.filterwarnings("ignore:.*is served by functional_call:UserWarning")
@pytest.mark.parametrize("engine", ["fused", "eager"])
def test_an_operator_that_a_dtype_lacks_is_named(engine: str) -> None:
    linear = nn.utils.parametrizations.orthogonal(nn.Linear(108, 3))
    model = nn.Sequential(nn.Flatten(), linear)
    forward = PopulationForward(model, two_of(model), engine=engine, precision="bfloat16")
    with pytest.raises(DeevoError, match=r"the model failed on images .*not implemented for"):
        forward.logits(two_of(model).rows[0], pictures())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_models_without_values_or_made_by_jit_are_named() -> None:
    population = two_of(nn.Sequential(nn.Flatten(), nn.Linear(108, 3)))
    with torch.device("meta"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    data = TensorDataset(pictures(), LABELS)
    for refused in (
        lambda: PopulationForward(model, population),
        lambda: DatasetFitness(model, population, data, nn.CrossEntropyLoss()),
    ):
        with pytest.raises(DeevoError, match=r"whose '1\.weight' is on the meta device"):
            refused()
    scripted = torch.jit.trace(nn.Sequential(nn.Flatten(), nn.Linear(108, 3)), pictures())
    with pytest.raises(DeevoError, match=r"model is made by torch\.jit"):
        PopulationForward(scripted, population)


@pytest.mark.parametrize("engine", ["fused", "eager"])
@pytest.mark.parametrize("policy", ["evolve", "inherit"])
def test_a_model_without_a_tensor_of_the_rows_is_refused(engine: str, policy: str) -> None:
    def network(classes: int, **options: bool) -> nn.Sequential:
        norm = nn.BatchNorm1d(108, track_running_stats=not options.pop("plain", False))
        return nn.Sequential(nn.Flatten(), norm, nn.Linear(108, classes, **options))

    states = [network(3).state_dict() for _ in "12"]
    population = Population.from_state_dicts(network(3), states, batchnorm=policy)
    for other, match in (
        (network(3, bias=False), r"'2\.bias' \[3\], but the model has none of that name"),
        (network(4), r"'2\.weight' \[3, 108\], but the model has \[4, 108\]"),
        (network(3, plain=True), r"'1\.running_mean' \[108\], but the model has none"),
    ):
        with pytest.raises(DeevoError, match=match):
            PopulationForward(other, population, engine=engine)
