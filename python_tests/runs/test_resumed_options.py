"""Each option of a run folder that goes on: it works as at the beginning, is refused, or is said.

No option is ignored in silence. A new option has to find its place in these tables.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import deevo_ext as deevo
from deevo_ext.errors import DeevoError
from deevo_ext.runs.given import GROUPS
from support.evolution import images
from support.networks import Net
from support.recipe_runs import save_checkpoints

BEGUN: dict[str, dict[str, Any]] = {
    "coefficients": {"rounds": 1},
    "weights": {"generations": 4, "validate_every": 2, "images_per_batch": 60},
}
OF_ANOTHER_RUN = "holds a run of another configuration: "
REFUSED: dict[str, dict[str, tuple[Any, str]]] = {
    "either": {
        "dtype": (torch.bfloat16, OF_ANOTHER_RUN),
        "frozen": ("fc.bias", OF_ANOTHER_RUN),
        "checkpoint_key": ("model", "model"),
        "prefix": ("net.", "net."),
        "key_map": ({"fc.weight": "fc.bias"}, "fc"),
        "ignore": ("fc.bias", "fc.bias"),
        "metric": ("top1", OF_ANOTHER_RUN),
        "metric_name": ("mine", "metric_name|name is for a metric that is a function"),
        "precision": ("float32", OF_ANOTHER_RUN),
        "engine": ("auto", OF_ANOTHER_RUN),
        "micro_batch": (16, OF_ANOTHER_RUN),
        "search": ("", OF_ANOTHER_RUN),  # the other one, see `changed`
        "seed": (1, OF_ANOTHER_RUN),
        "preset": ("paper", OF_ANOTHER_RUN),
    },
    "coefficients": {
        "batchnorm": ("evolve", OF_ANOTHER_RUN),
        "keep": (0.5, "keep is 0.5, but there are no old_images"),
        "images_per_round": (50, OF_ANOTHER_RUN),
        "memory": (1, "memory is 1 bytes, but the rounds of the run that goes on hold the slopes"),
        "blocks": ("tensor", OF_ANOTHER_RUN),
    },
    "weights": {
        "batchnorm": ("inherit", OF_ANOTHER_RUN),
        "images_per_batch": (50, OF_ANOTHER_RUN),
        "generations_per_batch": (2, OF_ANOTHER_RUN),
        "sampling": ("importance", OF_ANOTHER_RUN),
        "augment": ("mirror", OF_ANOTHER_RUN),
        "label_smoothing": (0.1, OF_ANOTHER_RUN),
        "racing": (0.1, OF_ANOTHER_RUN),
        "racing_first": (0.5, "racing_first is 0.5, which nothing uses without racing"),
        "inject_soups": (False, OF_ANOTHER_RUN),
        "validate_every": (1, OF_ANOTHER_RUN),
        "generations": (3, "generations is 3, but .* is of a run of 4; expected at least that"),
    },
}
SAME_RESULT: dict[str, dict[str, Any]] = {
    "either": {
        "population_device": "cpu",
        "device": "cpu",
        "force_precision": True,
        "chunk": 3,
        "basin": "ignore",
        "overlap": "ignore",
        "progress": True,
    },
    "coefficients": {"passes": 1, "seconds": 1e-9, "memory": 2**40},
    "weights": {"patience": 5, "seconds": 1e-9, "generations": None},
}
"""Options that decide no bit, or that end a run which is at its end already."""
LONGER: dict[str, dict[str, Any]] = {
    "coefficients": {"rounds": 2},
    "weights": {"generations": 6},
}


def table(of: dict[str, dict[str, Any]], search: str) -> dict[str, Any]:
    return {**of.get("either", {}), **of[search]}


def evolve(place: Path, folder: Path, search: str, **options: Any) -> deevo.Result:
    """A run on noise, in a folder, or what is left of it."""
    given = {"search": search, "engine": "eager", "progress": False, **BEGUN[search], **options}
    return deevo.evolve(
        Net(), place / "members", images(150, 1), images(90, 2), run_dir=folder, **given
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints, and of a finished run of each search."""
    folder = tmp_path_factory.mktemp("place")
    save_checkpoints(folder / "members", count=6)
    for search in BEGUN:
        evolve(folder, folder / search, search)
    return folder


def begun(place: Path, search: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place / search, tmp_path / "run"))


@pytest.mark.parametrize("search", BEGUN)
def test_every_option_has_its_place(search: str) -> None:
    known = {**table(REFUSED, search), **table(SAME_RESULT, search), **table(LONGER, search)}
    fields = [field for group in GROUPS for field in dataclasses.fields(group)]
    own = {field.name for field in fields if field.metadata["search"] in (None, search)}
    assert own - known.keys() == {"run_dir"} and known.keys() <= own


def cases(of: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    return [(search, name) for search in BEGUN for name in table(of, search)]


@pytest.mark.parametrize(("search", "name"), cases(REFUSED))
def test_what_a_begun_run_has_otherwise_is_refused(
    place: Path, tmp_path: Path, search: str, name: str
) -> None:
    folder = begun(place, search, tmp_path)
    before = (folder / "journal.jsonl").read_bytes()
    value, message = table(REFUSED, search)[name]
    options = {} if name == "search" else {name: value}
    if name == "search":
        search = next(other for other in BEGUN if other != search)
    with pytest.raises(DeevoError, match=message):
        evolve(place, folder, search, **options)
    assert (folder / "journal.jsonl").read_bytes() == before


@pytest.mark.parametrize(("search", "name"), cases(SAME_RESULT))
def test_what_decides_no_bit_gives_the_same_result(
    place: Path, tmp_path: Path, search: str, name: str
) -> None:
    folder = begun(place, search, tmp_path)
    before = (folder / "journal.jsonl").read_bytes()
    evolve(place, folder, search, **{name: table(SAME_RESULT, search)[name]})
    assert (folder / "journal.jsonl").read_bytes() == before


@pytest.mark.parametrize(("search", "name"), cases(LONGER))
def test_more_to_do_is_done(place: Path, tmp_path: Path, search: str, name: str) -> None:
    folder, count = begun(place, search, tmp_path), table(LONGER, search)[name]
    assert len(evolve(place, folder, search, **{name: count}).history) == count


def test_generations_lengthen_a_run_whose_number_a_time_decided(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    time = {"generations": None, "seconds": 1e-3}
    evolve(place, folder, "weights", **time)
    decided = deevo.replay(folder).generations
    assert len(decided) == 1  # in a time that none fits into
    capsys.readouterr()
    evolve(place, folder, "weights", generations=None, seconds=3600.0, progress=True)
    said = capsys.readouterr().err
    assert f"{folder} keeps its 1 generations: seconds decides their number where a run" in said
    longer = evolve(place, folder, "weights", generations=3, seconds=1e-3)
    assert len(longer.history) == 3
    again = evolve(place, folder, "weights", **time)  # the same call as ever
    assert len(again.history) == 3
    with pytest.raises(DeevoError, match=r"generations is 3 and seconds is 0\.5, but a search of"):
        evolve(place, tmp_path / "new", "weights", generations=3, seconds=0.5)
    assert not (tmp_path / "new").exists()
