"""A linear model that ranks share: each holds its slices, and all get the bits of one process."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from support.rank_models import do_shared, killed_in_a_fit, model_on_ranks
from support.rank_runs import lines_of
from support.ranks import SILENT, finish, on_ranks, start
from support.recipe_runs import PlainNet, save_checkpoints


def _flat(value: Any) -> list[Any]:
    """Tensors as their bits, all else as it is."""
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), *value.shape, value.contiguous().numpy().tobytes()]
    if isinstance(value, dict):
        return [one for key in value for one in (key, *_flat(value[key]))]
    if isinstance(value, (list, tuple)):
        return [one for some in value for one in _flat(some)]
    return [value]


@pytest.mark.parametrize(
    ("images", "likeliest", "many"),
    [(200, None, False), (200, None, True), (200, 6, False), (3, 6, True)],
)
def test_ranks_hold_their_slices_and_say_what_one_process_says(
    images: int, likeliest: int | None, many: bool
) -> None:
    (alone,) = on_ranks(1, model_on_ranks, images, likeliest, many)
    expected = _flat(alone["said"])
    assert alone["held"][1] == images and not alone["held"][2]
    for count in (2, 3) if images > 3 else (4,):  # of which two hold nothing then
        found = on_ranks(count, model_on_ranks, images, likeliest, many)
        for one in found:
            assert _flat(one["said"]) == expected
        numbers, held, traffic = zip(*(one["held"] for one in found), strict=True)
        assert sum(held) == images and max(held) < images
        assert [n * images for n in numbers] == [n * alone["held"][0] for n in held]
        assert min(traffic) > 0


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("members")
    return save_checkpoints(folder / "norms"), save_checkpoints(folder / "plain", PlainNet)


def test_runs_whose_models_are_shared_go_on_with_other_ranks_and_end_alike(
    checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    """Many images, few images; with and without what lies before blocks computed once."""
    names, whole, parts = ("few", "rounds", "groups"), tmp_path / "whole", tmp_path / "parts"
    (alone,) = on_ranks(1, do_shared, whole, *checkpoints, *names)
    said = finish(*start(2, killed_in_a_fit, parts, *checkpoints, "groups", timeout=SILENT))
    assert said.pop(1) == -signal.SIGKILL and said[0].startswith("RankError: ")
    assert len(lines_of(parts / "groups")) < len(lines_of(whole / "groups"))
    for count, some in ((3, names[1:]), (4, names[:1])):
        for found in on_ranks(count, do_shared, parts, *checkpoints, *some):
            for name in some:
                assert found[name]["record"] == alone[name]["record"]
                assert found[name]["passes"] >= alone[name]["passes"]
    for name in names:
        assert lines_of(parts / name) == lines_of(whole / name), name
