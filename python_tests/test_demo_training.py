"""The demo's network, its recipes, and the population that it trains."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deevo_ext.data import FourSets, ImageSet
from deevo_ext.demo.network import SmallResNet
from deevo_ext.demo.recipes import Plan, demo_plan
from deevo_ext.demo.sgd import score, train
from deevo_ext.demo.training import fine_tune, load_member, train_base, train_population
from deevo_ext.errors import DeevoError
from deevo_ext.training.augment import augment
from deevo_ext.training.recipes import Recipe, derived_seed
from deevo_ext.training.store import RECORD


def _images(count: int, seed: int, name: str) -> ImageSet:
    """Two classes, told apart by the brighter half."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randn(count, 1, 6, 6, generator=generator)
    images[:, :, :, :3] += 2 * labels[:, None, None, None]
    return ImageSet(images, labels, name)


@pytest.fixture
def sets() -> FourSets:
    names = ("train", "fitness", "validation", "test")
    train_set, fitness, validation, test = (_images(40, i, name) for i, name in enumerate(names))
    return FourSets(train_set, fitness, validation, test, num_classes=2, name="halves")


def _plan(members: int = 3, steps: int = 4) -> Plan:
    base = Recipe(seed=5, steps=steps, batch_size=8, learning_rate=0.05, shift=1)
    tuned = [
        Recipe(seed=6 + i, steps=steps, batch_size=8, learning_rate=0.02 * (i + 1), mirror=i > 1)
        for i in range(members)
    ]
    return Plan(width=4, base=base, members=tuple(tuned))


def test_network_has_torchvisions_names_and_the_documented_size() -> None:
    network = SmallResNet(1, 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == 77_754
    names = set(network.state_dict())
    for stem in ("conv1", "layer1.0.conv1", "layer2.0.conv2", "layer3.0.downsample.0", "fc"):
        assert f"{stem}.weight" in names
    for stem in ("bn1", "layer1.0.bn2", "layer3.0.downsample.1"):
        assert f"{stem}.running_var" in names
    assert "layer1.0.downsample.0.weight" not in names
    for shape in ((2, 1, 14, 14), (2, 1, 8, 8), (2, 1, 5, 7)):
        assert network(torch.zeros(shape)).shape == (2, 10)
    assert SmallResNet(3, 7, width=8)(torch.zeros(2, 3, 8, 8)).shape == (2, 7)
    with pytest.raises(DeevoError, match="positive"):
        SmallResNet(1, 10, width=0)


def test_network_is_drawn_from_its_own_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second, other = (
        SmallResNet(1, 10, 4, torch.Generator().manual_seed(seed)).conv1.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_rate_rises_stays_and_falls() -> None:
    flat = Recipe(seed=0, steps=100, batch_size=8, learning_rate=0.1)
    rates = [flat.rate(step) for step in range(100)]
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1]) and set(rates[5:]) == {0.1}
    falling = Recipe(seed=0, steps=100, batch_size=8, learning_rate=0.1, anneal=0.5)
    rates = [falling.rate(step) for step in range(100)]
    assert rates[49] == 0.1 and rates[75] == pytest.approx(0.05) and 0 < rates[99] < 0.003
    for field, value in {"steps": 0, "learning_rate": 0.0, "label_smoothing": 1.0}.items():
        good: dict = {"seed": 0, "steps": 1, "batch_size": 8, "learning_rate": 0.1}
        with pytest.raises(DeevoError, match=field):
            Recipe(**{**good, field: value})


def test_augment_moves_and_mirrors_each_image() -> None:
    images = torch.arange(2 * 2 * 5 * 4).float().reshape(2, 2, 5, 4).repeat(50, 1, 1, 1)
    draw = torch.Generator().manual_seed(0)
    assert torch.equal(augment(images, 0, False, draw), images)
    moved = augment(images, 1, True, draw)
    seen = set()
    for image, found in zip(images, moved, strict=True):
        padded = torch.nn.functional.pad(image[None], (1, 1, 1, 1), mode="replicate")[0]
        for case in range(18):
            row, column, mirrored = case // 6, case // 2 % 3, case % 2
            expected = padded[:, row : row + 5, column : column + 4]
            if torch.equal(found, expected.flip(2) if mirrored else expected):
                seen.add(case)
                break
        else:
            pytest.fail("an image is neither moved nor mirrored from its own")
    assert len(seen) > 12


def test_score_is_the_mean_over_all_images(sets: FourSets) -> None:
    network = SmallResNet(1, 2, 4, torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        probability = network(sets.test.images).double().softmax(1)
    right = probability[torch.arange(40), sets.test.labels]
    for batch in (7, 40, 1000):
        found = score(network, sets.test, batch)
        assert math.isclose(found.loss, float(-right.log().mean()), rel_tol=1e-5)
        assert found.top1 == float((right > 0.5).double().mean())


def test_training_learns_and_leaves_the_global_generator_alone(sets: FourSets) -> None:
    recipe = Recipe(seed=1, steps=40, batch_size=16, learning_rate=0.1, anneal=0.5)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    steps = []
    base = train_base(sets, recipe, 4, lambda: steps.append(1))
    kept = {key: value.clone() for key, value in base.state_dict().items()}
    tuned = fine_tune(base, sets, Recipe(seed=2, steps=5, batch_size=16, learning_rate=0.05))
    assert torch.equal(before, torch.get_rng_state()) and len(steps) == 40
    assert score(base, sets.test).top1 > 0.9 and not base.training and not tuned.training
    assert all(torch.equal(value, kept[key]) for key, value in base.state_dict().items())
    assert not torch.equal(tuned.state_dict()["fc.weight"], kept["fc.weight"])


def test_a_batch_larger_than_the_set_is_the_set(sets: FourSets) -> None:
    network = SmallResNet(1, 2, 4)
    train(network, sets.train, Recipe(seed=1, steps=2, batch_size=1000, learning_rate=0.1))
    assert torch.isfinite(network.fc.weight).all()


def test_population_repeats_bit_for_bit(sets: FourSets, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    first = train_population(
        sets, tmp_path / "a", 3, 5, lambda *what: seen.append(what), plan=_plan()
    )
    torch.manual_seed(123)
    threads = torch.get_num_threads()
    # Nothing depends on torch's thread count, and it is left alone.
    torch.set_num_threads(3 - threads if threads < 3 else 1)
    try:
        second = train_population(sets, tmp_path / "b", 3, 5, plan=_plan())
    finally:
        torch.set_num_threads(threads)
    assert [path.name for path in first] == [f"member_{i:02d}.safetensors" for i in range(3)]
    for path, twin in zip(first, second, strict=True):
        assert path.read_bytes() == twin.read_bytes()
    assert len({path.read_bytes() for path in first}) == 3
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["base.safetensors", *(path.name for path in first), RECORD]
    assert torch.get_num_threads() == threads
    assert seen[0] == ("base network", 1, 16) and seen[-1] == ("3 members", 16, 16)
    network = load_member(first[0])
    assert score(network, sets.test).loss < 10
    assert network.state_dict().keys() == load_file(first[0]).keys()


def test_population_resumes(sets: FourSets, tmp_path: Path) -> None:
    whole = train_population(sets, tmp_path / "whole", 3, 5, plan=_plan())

    def interrupt(what: str, done: int, total: int) -> None:
        if done == 10:  # within the second member
            raise KeyboardInterrupt

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one member after the other
    try:
        with pytest.raises(KeyboardInterrupt):
            train_population(sets, tmp_path / "torn", 3, 5, interrupt, plan=_plan())
    finally:
        torch.set_num_threads(threads)
    kept = tmp_path / "torn" / "member_00.safetensors"
    assert kept.exists() and not (tmp_path / "torn" / "member_01.safetensors").exists()
    stamp = kept.stat().st_mtime_ns
    seen: list[int] = []
    torn = train_population(
        sets, tmp_path / "torn", 3, 5, lambda _, done, total: seen.append(total), plan=_plan()
    )
    assert kept.stat().st_mtime_ns == stamp and seen == [8] * 8
    assert [p.read_bytes() for p in torn] == [p.read_bytes() for p in whole]
    # A damaged file is trained again, a finished population not at all.
    torn[1].write_bytes(torn[1].read_bytes()[:-1])
    train_population(sets, tmp_path / "torn", 3, 5, plan=_plan())
    assert torn[1].read_bytes() == whole[1].read_bytes()
    assert kept.stat().st_mtime_ns == stamp
    # More members later.
    more = train_population(sets, tmp_path / "torn", 4, 5, plan=_plan(4))
    assert len(more) == 4 and kept.stat().st_mtime_ns == stamp
    # Without the base no member can be trusted.
    (tmp_path / "torn" / "base.safetensors").unlink()
    train_population(sets, tmp_path / "torn", 3, 5, plan=_plan())
    assert kept.stat().st_mtime_ns != stamp and kept.read_bytes() == whole[0].read_bytes()


def test_population_refuses_a_folder_of_another(sets: FourSets, tmp_path: Path) -> None:
    train_population(sets, tmp_path, 1, 5, plan=_plan(1, steps=1))
    with pytest.raises(DeevoError, match="seed is 5, not 6"):
        train_population(sets, tmp_path, 1, 6, plan=_plan(1, steps=1))
    with pytest.raises(DeevoError, match="another recipe"):
        train_population(sets, tmp_path, 1, 5, plan=_plan(1, steps=2))
    record = tmp_path / RECORD
    content = record.read_text()
    for damaged in ("{", "[]", "{}", json.dumps({"files": {"base": {}}})):
        record.write_text(damaged)
        with pytest.raises(DeevoError, match=RECORD):
            train_population(sets, tmp_path, 1, 5, plan=_plan(1, steps=1))
    record.unlink()
    with pytest.raises(DeevoError, match="choose another folder"):
        train_population(sets, tmp_path, 1, 5, plan=_plan(1, steps=1))
    record.write_text(content)
    train_population(sets, tmp_path, 1, 5, plan=_plan(1, steps=1))
    with pytest.raises(DeevoError, match="members"):
        train_population(sets, tmp_path, 0, 5)
    (tmp_path / "file").touch()
    with pytest.raises(DeevoError, match="file"):
        train_population(sets, tmp_path / "file", 1, 5, plan=_plan(1))
    with pytest.raises(DeevoError, match="not a network"):
        load_member(record)


def test_demo_plan_has_distinct_hyper_parameters(sets: FourSets) -> None:
    plan = demo_plan(sets, 30, 3)
    told_apart = {
        (m.learning_rate, m.weight_decay, m.label_smoothing, m.shift, m.mirror)
        for m in plan.members
    }
    assert len(told_apart) == 30 and len({m.seed for m in plan.members} | {plan.base.seed}) == 31
    # Asking for fewer gives the same first ones, so that a population can grow.
    assert demo_plan(sets, 12, 3).members == plan.members[:12]
    assert demo_plan(sets, 12, 4).members[0].seed != plan.members[0].seed
    assert not any(recipe.mirror for recipe in (plan.base, *plan.members))
    assert 0 <= derived_seed(2**63 - 1, 5) < 2**63
