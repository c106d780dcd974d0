"""Networks that use one tensor twice: by a layer with two names, or by two layers with a tensor."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from deevo_ext import DatasetFitness, Population
from deevo_ext.networks.forward import PopulationForward

LABELS = torch.arange(10) % 4


class Twice(nn.Module):
    """Convolutions `a` and `b` with the same weights, each with a norm of its own."""

    def __init__(self, shared: str) -> None:
        super().__init__()
        self.a, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)
        self.b = self.a if shared == "layer" else nn.Conv2d(3, 3, 3, padding=1)
        self.b.weight, self.b.bias = self.a.weight, self.a.bias
        self.norm_a, self.norm_b = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm_a(self.a(x)))
        return self.fc(torch.relu(self.norm_b(self.b(x))).mean((2, 3)))


def case(shared: str, frozen: str) -> tuple[nn.Module, Population, Tensor, Tensor]:
    """A network, three members of it, images, and the members' losses of them."""
    torch.manual_seed(0)
    networks = [Twice(shared).eval() for _ in range(3)]
    if frozen:
        for network in networks[1:]:
            network.a.load_state_dict(networks[0].a.state_dict())
    population = Population.from_state_dicts(
        Twice(shared), [network.state_dict() for network in networks], frozen=frozen or ()
    )
    images = torch.randn(10, 3, 6, 6)
    with torch.no_grad():
        logits = [network(images) for network in networks]
    losses = [functional.cross_entropy(z, LABELS, reduction="none") for z in logits]
    return networks[0], population, images, torch.stack(losses)


shared_ways = pytest.mark.parametrize("shared", ["layer", "tensor"])


@shared_ways
@pytest.mark.parametrize("frozen", ["", "a.*", "b.*"])
@pytest.mark.parametrize("engine", ["fused", "eager"])
def test_tied_tensors_are_evaluated_evolved_or_frozen(
    engine: str, frozen: str, shared: str, recwarn: pytest.WarningsRecorder
) -> None:
    network, population, images, expected = case(shared, frozen)
    for layout in (population, population.layout):  # what the layout lacks is the model's
        forward = PopulationForward(network, layout, engine=engine, micro_batch=4)
        for _ in range(2):
            losses = forward(population.rows, images, LABELS).losses
            assert torch.allclose(losses, expected, atol=1e-5)
    assert not recwarn.list


@shared_ways
@pytest.mark.parametrize("frozen", ["", "a.*"])
def test_a_function_gets_tied_tensors_under_all_names(frozen: str, shared: str) -> None:
    network, population, images, expected = case(shared, frozen)

    def engine(state: dict[str, Tensor], images: Tensor) -> Tensor:
        own = Twice(shared).eval()
        own.load_state_dict(state)  # strict
        return own(images)

    for layout in (population, population.layout):
        forward = PopulationForward(network, layout, engine=engine, micro_batch=4)
        losses = forward(population.rows, images, LABELS).losses
        assert torch.allclose(losses, expected, atol=1e-5)


@shared_ways
@pytest.mark.parametrize("frozen", ["", "a.*"])
def test_a_dataset_is_scored_by_tied_tensors(frozen: str, shared: str) -> None:
    network, population, images, expected = case(shared, frozen)
    data, loss = TensorDataset(images, LABELS), nn.CrossEntropyLoss()
    fitness = DatasetFitness(network, population, data, loss, micro_batch=4)
    scores = fitness(population.rows, torch.arange(3), 0)
    assert scores == pytest.approx(expected.mean(1).tolist(), rel=1e-5)
