"""Buffers: what is kept from the first member, what evolves, and what is said where they differ."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, HistogramObserver, MinMaxObserver
from torch.nn.utils import parametrizations, spectral_norm

from deevo_ext import Population
from deevo_ext.population.inventory import Inventory


class Buffered(nn.Module):
    """Buffers of all kinds beside a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)
        self.register_buffer("order", torch.arange(4))
        self.register_buffer("mask", torch.ones(4, dtype=torch.bool))
        self.register_buffer("waves", torch.ones(4, dtype=torch.complex64))
        self.register_buffer("table", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc(x[:, self.order]))


def states(model: nn.Module, change: dict[str, Tensor] | None = None) -> list[dict[str, Tensor]]:
    """Three members whose float parameters differ; `change` is the last one's."""
    made = []
    for i in range(3):
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for name, parameter in model.named_parameters():
            state[name] = parameter.detach() * (1 + 0.1 * i)
        made.append(state)
    made[-1].update(change or {})
    return made


CHANGES = {
    "order": torch.tensor([3, 2, 1, 0]),
    "mask": torch.tensor([True, False, True, True]),
    "waves": torch.full((4,), 1j, dtype=torch.complex64),
}


@pytest.mark.parametrize("name", CHANGES)
def test_fixed_tensors_that_differ_are_said(name: str) -> None:
    model = Buffered()
    made = states(model, {name: CHANGES[name]})
    with pytest.warns(UserWarning, match=f"fixed tensors differ .* kept from member0: '{name}' in"):
        population = Population.from_state_dicts(model, made, frozen="waves")
    assert torch.equal(population.state_dict(2)[name], model.state_dict()[name])


def test_batch_counts_may_differ_and_equal_buffers_say_nothing() -> None:
    model = Buffered()
    made = states(model, {"norm.num_batches_tracked": torch.tensor(77)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Population.from_state_dicts(model, made, frozen="waves")


def test_float_buffers_that_differ_evolve_and_are_said() -> None:
    model = Buffered()
    made = states(model, {"table": torch.full((4,), 2.0)})
    with pytest.warns(UserWarning, match="buffers differ .* evolve like weights .*'table' in mem"):
        population = Population.from_state_dicts(model, made, frozen="waves")
    assert torch.equal(population.state_dict(2)["table"], torch.full((4,), 2.0))


def observed(kind: type) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), kind(), nn.Linear(4, 3))
    model(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))
    return model


KEPT = {
    "parametrized": (
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 3))),
        ["0.parametrizations.weight.0._u", "0.parametrizations.weight.0._v"],
    ),
    "hooked": (
        lambda: nn.Sequential(spectral_norm(nn.Linear(4, 3))),
        ["0.weight_u", "0.weight_v"],
    ),
    "range": (lambda: observed(MinMaxObserver), ["1.eps", "1.min_val", "1.max_val"]),
    "histogram": (lambda: observed(HistogramObserver), ["1.histogram", "1.min_val", "1.max_val"]),
    "fake": (lambda: observed(FakeQuantize), ["1.scale", "1.activation_post_process.min_val"]),
}


@pytest.mark.parametrize("kind", KEPT)
def test_what_no_average_has_the_meaning_of_is_kept(kind: str) -> None:
    """u and v of every row stay those of one member, and so unit vectors; ranges likewise."""
    make, names = KEPT[kind]
    model = make().eval()
    made = states(model)
    for state in made[1:]:
        for name in names:
            state[name] = state[name].roll(1) + (0.5 if "_u" not in name else 0)
    with pytest.warns(UserWarning, match="fixed tensors differ"):
        population = Population.from_state_dicts(model, made)
    assert set(names) <= population.fixed.keys()
    assert not set(names) & {name for e in population.layout.entries for name in e.names}
    for member in (0, 1, 2):
        for name in names:
            assert torch.equal(population.state_dict(member)[name], model.state_dict()[name])


@pytest.mark.parametrize("kind", KEPT)
def test_a_state_dict_alone_tells_the_same(kind: str) -> None:
    make, names = KEPT[kind]
    model = make().eval()
    told, alone = (
        {t.name for t in inventory.tensors if t.role == "fixed"}
        for inventory in (
            Inventory.of(model),
            Inventory.of_state_dict(model.state_dict(), (), "evolve"),
        )
    )
    assert set(names) <= told == alone
