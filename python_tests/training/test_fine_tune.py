"""Fine-tuning: the batches, their augmentation, the loss, and what an interruption leaves."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from deevo_ext.data import CachedImages, ImageSet
from deevo_ext.errors import DeevoError
from deevo_ext.networks.small_resnet import SmallResNet
from deevo_ext.training import fine_tune as loop
from deevo_ext.training.batches import TrainingBatches, batch_mixing
from deevo_ext.training.few_labels import logits_of
from deevo_ext.training.fine_tune import State, fine_tune
from deevo_ext.training.hyper_parameters import HyperParameters, derived_seed
from support.networks import DropNet, drop_net
from support.training import noise, same

EVERYTHING = {
    "crop": 0.3,
    "jitter": 0.3,
    "trivial": True,
    "erase": 0.5,
    "mixup": 0.2,
    "cutmix": 1.0,
}


def _hyper(**more: Any) -> HyperParameters:
    return HyperParameters(
        **{"seed": 1, "steps": 10, "batch_size": 8, "learning_rate": 0.1, **more}
    )


def _flat(value: int, count: int = 8, side: int = 24) -> CachedImages:
    store = torch.full((count, side, side, 3), value, dtype=torch.uint8)
    return CachedImages(store, torch.arange(count) % 3, (0.2, 0.4, 0.6), (0.3,) * 3, "flat")


def test_epochs_show_each_image_once() -> None:
    images = noise(43)
    batches = TrainingBatches(images, _hyper())
    whole = images.pixels(0, 43).flatten(1).float()
    orders = []
    for epoch in range(2):
        found = [batches[5 * epoch + number] for number in range(5)]
        pixels = torch.cat([x for x, _ in found]).flatten(1).float()
        chosen = torch.cdist(pixels, whole).argmin(1)
        assert torch.equal(pixels, whole[chosen]) and len(set(chosen.tolist())) == 40
        assert torch.equal(torch.cat([labels for _, labels in found]), images.labels[chosen])
        orders.append(chosen.tolist())
    assert orders[0] != orders[1]
    # From the middle, and by another reader, the same batches come.
    assert torch.equal(TrainingBatches(images, _hyper())[6][0], batches[6][0])
    few, labels = TrainingBatches(images, _hyper(batch_size=1000))[3]
    assert len(few) == 43 == len(labels)


def test_images_are_moved_and_mirrored_each_by_its_own_draw() -> None:
    ramp = torch.arange(5 * 4).float().reshape(1, 1, 5, 4).repeat(200, 1, 1, 1)
    images = ImageSet(ramp, torch.zeros(200, dtype=torch.int64), "ramp")
    moved, _ = TrainingBatches(images, _hyper(batch_size=200, shift=1, mirror=True))[0]
    padded = nn.functional.pad(ramp[:1], (1, 1, 1, 1), mode="replicate")[0]
    cases = [padded[:, row : row + 5, left : left + 4] for row in range(3) for left in range(3)]
    cases += [case.flip(2) for case in cases]
    seen = {next(i for i, case in enumerate(cases) if torch.equal(image, case)) for image in moved}
    assert len(seen) == 18


def test_a_picture_depends_on_seed_epoch_and_number_alone() -> None:
    """Not on the size of the batch, on those before it, or on the global generator."""
    images, hyper = noise(32, side=20), _hyper(shift=1, mirror=True, **EVERYTHING)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    batches = TrainingBatches(images, hyper)
    first = torch.cat([batches[step][0] for step in range(4)])
    assert torch.equal(torch.get_rng_state(), before)
    assert first.dtype == torch.uint8 and first.shape == (32, 3, 20, 20)
    torch.manual_seed(8)
    whole = TrainingBatches(images, _hyper(batch_size=16, shift=1, mirror=True, **EVERYTHING))
    assert torch.equal(torch.cat([whole[step][0] for step in range(2)]), first)
    for other in (_hyper(seed=2, **EVERYTHING), _hyper(**EVERYTHING)):
        changed = TrainingBatches(images, other)
        assert not torch.equal(torch.cat([changed[step][0] for step in range(4)]), first)
    # The same image, in each of two epochs.
    alone = TrainingBatches(noise(1, side=20), _hyper(crop=0.3))
    assert not torch.equal(alone[0][0], alone[1][0])


def test_each_augmentation_does_what_its_name_says() -> None:
    images = _flat(77, count=40)
    flat = images.pixels(0, 40)

    def changed(**more: Any) -> torch.Tensor:
        return TrainingBatches(images, _hyper(batch_size=40, **more))[0][0]

    # Constant pictures stay: nothing comes in from outside, and colours are not touched.
    assert torch.equal(changed(crop=0.3), flat)
    # Grey of one value changes by brightness alone, which rounds to whole values.
    factors = changed(jitter=0.2).flatten(1).float()
    assert torch.equal(factors.min(1).values, factors.max(1).values)
    assert 77 * 0.8 - 1 <= factors.min() < factors.max() <= 77 * 1.2 + 1
    assert not torch.equal(changed(trivial=True), flat)
    erased = changed(erase=0.5)
    gone = (erased != 77).any(1)
    assert 5 < int(gone.flatten(1).any(1).sum()) < 35
    assert torch.equal(
        erased.permute(0, 2, 3, 1)[gone].unique(dim=0)[0], torch.tensor([51, 102, 153])
    )
    grey = CachedImages(
        noise(8, side=20).all_pixels[:, :, :, :1], torch.arange(8) % 3, (0.4,), (0.3,), "grey"
    )
    assert TrainingBatches(grey, _hyper(**EVERYTHING))[0][0].shape == (8, 1, 20, 20)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_is_cross_entropy_with_mixed_targets(kind: str) -> None:
    images = noise(16)
    hyper = HyperParameters(7, 1, 16, 0.1, momentum=0.0, label_smoothing=0.1, **{kind: 0.4})
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))  # one class more than the labels name
    before = [p.detach().clone().double().requires_grad_() for p in network.parameters()]
    fine_tune(network, images, hyper)
    pixels, labels = TrainingBatches(images, hyper)[0]
    x = (pixels.float() / 255 - 0.4) / 0.3
    mixing = batch_mixing(hyper, 3)
    assert mixing is not None and batch_mixing(_hyper(), 3) is None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(derived_seed(hyper.seed, loop._STEP), 0))
        mixed, shares = mixing(x, labels)
    # Each image is mixed with one other, in the proportion of their labels.
    torch.testing.assert_close(shares.sum(1), torch.ones(16))
    own = nn.functional.one_hot(labels, 3).float()
    other = labels != labels.roll(1)
    share = (shares * own).sum(1)[other]
    assert bool(((share == share[0]) & (share > 0) & (share < 1)).all())
    if kind == "mixup":
        torch.testing.assert_close(mixed, share[0] * x + (1 - share[0]) * x.roll(1, 0))
    else:
        kept = (mixed == x).all(1)
        assert bool((kept | (mixed == x.roll(1, 0)).all(1)).all())
        torch.testing.assert_close(kept.float().mean((1, 2)), share[0].expand(16))
    target = nn.functional.pad(shares.double(), (0, 1)) * 0.9 + 0.1 / 4
    logits = mixed.double().flatten(1) @ before[0].T + before[1]
    (-(target * logits.log_softmax(1)).sum(1).mean()).backward()
    for parameter, old in zip(network.parameters(), before, strict=True):
        assert old.grad is not None
        expected = old - hyper.rate(0) * old.grad
        torch.testing.assert_close(parameter.double(), expected, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_done_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    floats = ImageSet(torch.zeros(8, 3, 8, 8), torch.arange(8) % 3, "floats")
    with pytest.raises(DeevoError, match="uint8 images, as a cache"):
        TrainingBatches(floats, _hyper(crop=0.3))
    assert TrainingBatches(floats, _hyper(erase=0.5))[0][0].dtype == torch.float32
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", None)
    for more in EVERYTHING:
        with pytest.raises(DeevoError, match=r'pip install "deevo_ext\[imagenet\]"; or leave'):
            fine_tune(drop_net(), noise(), _hyper(**{more: EVERYTHING[more]}))
    fine_tune(drop_net(), noise(), _hyper(steps=2, shift=1, mirror=True))


def test_training_learns_and_leaves_the_global_generator_alone() -> None:
    labels = torch.arange(40) % 2
    brighter = torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    brighter[:, :, :, :3] += 2 * labels[:, None, None, None]
    images = ImageSet(brighter, labels, "halves")
    torch.manual_seed(7)
    before = torch.get_rng_state()
    network, steps = drop_net(), []
    fine_tune(network, images, _hyper(steps=40, anneal=0.5), on_step=steps.append)
    assert torch.equal(before, torch.get_rng_state()) and steps == list(range(41))
    assert not network.training
    with torch.inference_mode():
        assert float((network(brighter).argmax(1) == labels).float().mean()) > 0.9


class Outputs(NamedTuple):
    """As torchvision's googlenet and inception_v3 return while they train."""

    logits: Tensor
    aux_logits: Tensor


class Wrapped(nn.Module):
    """A linear layer, and what becomes of its logits."""

    def __init__(self, output: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 8 * 8, 3)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        self.output = output

    def forward(self, x: Tensor) -> Any:
        return self.output(self.fc(x.flatten(1)))


def test_logits_are_found_in_what_networks_return() -> None:
    images = noise()
    plain = Wrapped(lambda logits: logits)
    fine_tune(plain, images, _hyper(), workers=0)
    for output in (lambda logits: {"logits": logits}, lambda logits: Outputs(logits, 2 * logits)):
        network = Wrapped(output)
        fine_tune(network, images, _hyper(), workers=0)
        assert same(network.state_dict(), plain.state_dict())
        assert torch.equal(logits_of(network, images), logits_of(plain, images))
    with pytest.raises(DeevoError, match="returned tuple; expected logits"):
        fine_tune(Wrapped(lambda logits: (logits, 2 * logits)), images, _hyper(), workers=0)


def test_narrow_strided_shortcuts_are_not_trained_in_channels_last_on_the_cpu() -> None:
    """Where oneDNN writes past its workspace; such a network used to crash the process."""
    cpu = torch.device("cpu")
    assert loop._memory_format(SmallResNet(3, 4, 8), cpu) is torch.contiguous_format
    assert loop._memory_format(SmallResNet(3, 4, 16), cpu) is torch.channels_last
    assert loop._memory_format(SmallResNet(3, 4, 8), torch.device("cuda")) is torch.channels_last
    fine_tune(SmallResNet(3, 3, 8), noise(16, side=64), _hyper(steps=3))


def test_adamw_is_torchs() -> None:
    network, twin = (nn.Sequential(nn.Flatten(), nn.Linear(192, 3)) for _ in range(2))
    twin.load_state_dict(network.state_dict())
    hyper = _hyper(steps=3, weight_decay=0.1, optimizer="adamw")
    fine_tune(network, noise(), hyper)
    optimizer = torch.optim.AdamW(twin.parameters(), weight_decay=0.1)
    for step in range(3):
        optimizer.param_groups[0]["lr"] = hyper.rate(step)
        pixels, labels = TrainingBatches(noise(), hyper)[step]
        loss = nn.functional.cross_entropy(twin((pixels.float() / 255 - 0.4) / 0.3), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for parameter, expected in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("more", [{}, EVERYTHING])
def test_a_run_goes_on_from_its_state_bit_for_bit(more: dict[str, Any], tmp_path: Path) -> None:
    hyper = HyperParameters(7, 12, 8, 0.05, 1e-3, 0.1, shift=1, mirror=True, **more)
    expected = drop_net()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    fine_tune(expected, noise(), hyper, workers=0)
    assert torch.equal(torch.get_rng_state(), before)
    state = State(tmp_path / "x.state", 0, dataclasses.asdict(hyper))

    class Killed(Exception):
        pass

    def kill(step: int) -> None:
        if step == 7:
            raise Killed

    with pytest.raises(Killed):
        fine_tune(drop_net(), noise(), hyper, state=state, on_step=kill, workers=1)
    steps: list[int] = []
    found = drop_net()
    fine_tune(found, noise(), hyper, state=state, on_step=steps.append, workers=2)
    assert steps == list(range(7, 13)) and same(expected.state_dict(), found.state_dict())
    assert not found.training and isinstance(found, DropNet)
    other = State(state.path, 0, {**state.hyper_parameters, "learning_rate": 0.5})
    with pytest.raises(DeevoError, match=r"x\.state: .* \(learning_rate is 0\.05, not 0\.5\)"):
        fine_tune(drop_net(), noise(), hyper, state=other)
    kept = torch.load(state.path)
    torch.save({name: kept[name] for name in ("step", "network", "optimizer")}, state.path)
    with pytest.raises(DeevoError, match=r"x\.state: does not say .* delete it"):
        fine_tune(drop_net(), noise(), hyper, state=state)
    (tmp_path / "x.state").write_bytes(b"torn")
    with pytest.raises(DeevoError, match=r"x\.state: not a whole state.*delete it"):
        fine_tune(drop_net(), noise(), hyper, state=state)
