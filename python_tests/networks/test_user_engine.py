"""A user's function in place of the engines: what it is called with, and what is asked of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deevo_ext import DeevoError, Population
from deevo_ext.networks.execution import feed
from deevo_ext.networks.forward import PopulationForward

State = dict[str, Tensor]
LABELS = torch.arange(21) % 3


class Net(nn.Module):
    """A convolution, a batch norm, and a classifier whose weight has two names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 3)
        self.register_buffer("unsaved", torch.ones(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)) * self.unsaved)


def pictures(count: int = 21) -> Tensor:
    return torch.randn((count, 3, 6, 6), generator=torch.Generator().manual_seed(0))


def population(batchnorm: str = "evolve", members: int = 3, **options: Any) -> Population:
    torch.manual_seed(0)
    states = []
    for _ in range(members):
        model = Net()
        model.bn.running_mean.normal_()
        model.bn.running_var.uniform_(0.5, 2)
        states.append(model.state_dict())
    return Population.from_state_dicts(Net(), states, batchnorm=batchnorm, **options)


def forward_of(engine: Any, of: Population, **options: Any) -> PopulationForward:
    return PopulationForward(Net(), of, engine=engine, **{"micro_batch": 4, **options})


def module_engine(state: State, images: Tensor) -> Tensor:
    """What torch gives; it writes to all that it was given afterwards."""
    model = Net().eval()
    model.load_state_dict(state)  # strict: all names of the state dict, and no others
    logits = model(images).detach().clone()
    for tensor in (images, *state.values()):
        tensor.zero_()
    return logits


def as_array(state: State, images: Tensor) -> np.ndarray:
    return module_engine(state, images).numpy()


def fresh(engine: Callable[[State, Tensor], Any]) -> Callable[[State, Tensor], Any]:
    """Calls an engine with copies, for one that spoils the state dict, which comes again."""
    return lambda state, images: engine({k: v.clone() for k, v in state.items()}, images)


@pytest.mark.parametrize("batchnorm", ["evolve", "inherit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("engine", [module_engine, as_array])
def test_a_function_gives_the_losses_of_the_module_and_may_write_to_what_it_gets(
    engine: Callable[[State, Tensor], Any], dtype: torch.dtype, batchnorm: str
) -> None:
    of = population(batchnorm, dtype=dtype)
    apart = of.statistics if of.statistics_layout.dim else None
    before, images = of.rows.clone(), pictures()
    kept = images.clone()
    expected = forward_of("eager", of)(of.rows, images, LABELS, apart)
    found = forward_of(fresh(engine), of)(of.rows, images, LABELS, apart)
    assert torch.allclose(found.losses, expected.losses, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.ranks, expected.ranks)
    assert torch.equal(of.rows, before) and torch.equal(images, kept)


def test_calls_of_a_network_come_together_with_one_dict_and_full_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[int, State]] = []

    def noted(state: State, images: Tensor) -> Tensor:
        calls.append((len(images), state))
        assert images.is_contiguous() and images.dtype == torch.float32
        return fresh(module_engine)(state, images)

    monkeypatch.setitem(feed.SLICE_BYTES, "cpu", 4000)  # several slices
    of = population()
    forward = forward_of(noted, of)
    forward(of.rows, pictures(), LABELS)
    assert [n for n, _ in calls[:4]] == [4] * 4  # the check
    found = [id(state) for _, state in calls[4:]]
    assert len(found) == 3 * 6 and len(set(found)) == 3
    assert all(len(set(found[k * 6 : k * 6 + 6])) == 1 for k in range(3))
    del calls[:]
    forward(of.rows, pictures(), LABELS)  # checked once
    assert len(calls) == 18


def broken(change: Callable[[Tensor, Tensor, State], Any]) -> Callable[[State, Tensor], Any]:
    return lambda state, images: change(fresh(module_engine)(state, images.clone()), images, state)


def failing(state: State, images: Tensor) -> Tensor:
    raise KeyError("no such input")


def of_its_own(state: State, images: Tensor) -> Tensor:
    return images.flatten(1)[:, :3]


REFUSED = {
    "failed on images .*no such input": failing,
    r"gave \[4, 3, 1\]": broken(lambda z, x, s: z[..., None]),
    r"gave \[3, 3\]": broken(lambda z, x, s: z[:-1]),
    "gave list": broken(lambda z, x, s: z.tolist()),
    "gave None|gave NoneType": broken(lambda z, x, s: None),
    r"gave \[4, 3\] .*floating": broken(lambda z, x, s: z.argsort(dim=1)),
    r"not finite for 4 of 4": broken(lambda z, x, s: z / 0 * 0),
    "not finite for 1 of 4": broken(lambda z, x, s: z.index_fill(0, torch.tensor(2), float("inf"))),
    "gave ranks of the classes": broken(lambda z, x, s: z.argsort(dim=1).float()),
    "gave probabilities .* logarithms": broken(lambda z, x, s: torch.softmax(z, dim=1)),
    "depend on chance": broken(lambda z, x, s: z + torch.rand(())),
    "other logits beside other images": broken(lambda z, x, s: (z / z.abs().max() * 127).round()),
    "same logits whatever the weights": of_its_own,
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_gives_no_logits_of_weights_and_image_is_refused_at_once(message: str) -> None:
    of = population()
    with pytest.raises(DeevoError, match=message):
        forward_of(REFUSED[message], of)(of.rows, pictures(), LABELS)


def test_another_number_of_classes_is_refused_later_on() -> None:
    def engine(state: State, images: Tensor) -> Tensor:
        classes = 2 if float(images[0, 0, 0, 0]) == -77.0 else 3
        return fresh(module_engine)(state, images)[:, :classes]

    of, images = population(), pictures()
    images[12] = -77.0
    with pytest.raises(DeevoError, match=r"gave \[4, 2\] .*expected floating logits \[4, 3\]"):
        forward_of(engine, of)(of.rows, images, LABELS)


def test_ranges_of_one_image_serve_with_one_image_at_a_time() -> None:
    engine = REFUSED["other logits beside other images"]
    of = population()
    losses, _ = forward_of(engine, of, micro_batch=1)(of.rows, pictures(), LABELS)
    assert torch.isfinite(losses).all()


def test_options_that_a_function_has_no_use_for_are_refused() -> None:
    of = population()
    with pytest.raises(DeevoError, match="precision is 'bfloat16', but the engine is a function"):
        forward_of(module_engine, of, precision="bfloat16")
    with pytest.raises(DeevoError, match=r"engine is 'onnx'.*or a function of"):
        forward_of("onnx", of)
