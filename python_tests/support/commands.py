"""Commands as a shell would run them, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from deevo_ext.cli import main
from support.networks import colour_net, members
from support.pictures import write_tree


def write_place(folder: Path, images: int, networks: int) -> Path:
    """Writes what commands work on: pictures in tree, checkpoints in c, and t.json, a transform."""
    write_tree(folder / "tree", images, images)
    (folder / "c").mkdir()
    for i, state in enumerate(members(colour_net, networks)):
        save_file(state, folder / "c" / f"m{i}.safetensors")
    transform = {"resize": 24, "crop": 20, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    (folder / "t.json").write_text(json.dumps(transform))
    return folder


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    """A command's exit status and what it wrote to stdout and stderr."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in argv])
    out, err = capsys.readouterr()
    code = end.value.code
    return (code if isinstance(code, int) else 0), out, err
