"""Training on a few labels: what it learns, what it leaves alone, what it counts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from deevo_ext.data import CachedImages, ImageSet
from deevo_ext.errors import DeevoError
from deevo_ext.training.few_labels import LENGTHS, logits_of, train_on_labels
from support.networks import DropNet, drop_net
from support.training import noise, same


class Counting(nn.Module):
    """A linear layer that counts the images it sees, its copies' included.

    Batches of two, on which memory formats are tried, are not counted.
    """

    seen = 0

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 4)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        Counting.seen += len(x) if len(x) > 2 else 0
        return self.fc(x.flatten(1))


def stripes(count: int, seed: int = 0) -> ImageSet:
    """Noisy images of four classes, one line of each bright."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    images = torch.randn(count, 1, 4, 4, generator=generator) * 0.5
    images[torch.arange(count), 0, labels] += 1.0
    return ImageSet(images, labels, "stripes")


def test_it_learns_and_counts_every_image(capsys: pytest.CaptureFixture[str]) -> None:
    network, images = Counting(), stripes(100)
    before = copy.deepcopy(network.state_dict())
    Counting.seen = 0
    trained = train_on_labels(network, images, 1)
    assert trained.images == Counting.seen and trained.steps in LENGTHS
    assert same(network.state_dict(), before) and not trained.network.training
    test = stripes(400, 9)
    right = (logits_of(trained.network, test).argmax(dim=1) == test.labels).double().mean()
    assert float(right) > 0.8  # a class drawn by chance is right in 0.25
    again = train_on_labels(network, images, 1)
    assert same(trained.network.state_dict(), again.network.state_dict())
    assert (again.learning_rate, again.steps) == (trained.learning_rate, trained.steps)


def test_labels_that_have_nothing_to_do_with_the_images_teach_nothing() -> None:
    # From a network that says 1/4 for each class any training makes the loss on unseen images
    # worse, save by chance; at a rate this large it is worse at its end, too.
    network, images = Counting(), stripes(100)
    shuffled = ImageSet(images.images, torch.arange(100) // 25, "shuffled")
    trained = train_on_labels(network, shuffled, 0, rates=(3.0,))
    assert trained.steps == 0 and same(trained.network.state_dict(), network.state_dict())


def test_batch_norm_and_dropout_and_bytes() -> None:
    images = noise(40)
    assert isinstance(images, CachedImages)
    network = drop_net()
    assert isinstance(network, DropNet)
    before = copy.deepcopy(network.state_dict())
    generator = torch.get_rng_state()
    first, second = (train_on_labels(network, images, 3, rates=(1e-3,)) for _ in range(2))
    assert torch.equal(generator, torch.get_rng_state()) and same(network.state_dict(), before)
    assert same(first.network.state_dict(), second.network.state_dict())
    one = logits_of(first.network, images)
    assert one.dtype == torch.float32 and torch.equal(one, logits_of(first.network, images))


def test_a_loss_that_is_not_finite_is_said() -> None:
    with pytest.raises(DeevoError, match="not finite"):
        train_on_labels(Counting(), stripes(40), 0, rates=(1e38,))
