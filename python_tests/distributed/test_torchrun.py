"""`torchrun -m deevo_ext evolve`: a rank is killed, torchrun restarts, and the run goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deevo_ext.cli import main
from support.networks import colour_net, members
from support.paths import child_environment
from support.pictures import write_tree
from support.rank_runs import lines_of

PROGRAM = """
import os, signal, sys, warnings
from deevo_ext.cli import main
from deevo_ext.runs.run import Evolution

warnings.simplefilter("ignore")
generation = Evolution._generation

def killed(self, number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return generation(self, number)

if __name__ == "__main__":  # not in the processes that read pictures
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1":
        Evolution._generation = killed
    main(sys.argv[1:])
"""


def test_torchrun_restarts_a_killed_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tree(tmp_path / "tree", 60, 40)
    (tmp_path / "c").mkdir()
    for i, state in enumerate(members(colour_net, 6)):
        torch.save(state, tmp_path / "c" / f"m{i}.pth")
    transform = {"resize": 24, "crop": 20, "interpolation": "bilinear"}
    transform |= {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    (tmp_path / "transform.json").write_text(json.dumps(transform))
    options = {
        "arch": "support.networks:colour_net",
        "checkpoints": tmp_path / "c" / "*.pth",
        "data": tmp_path / "tree",
        "transform": tmp_path / "transform.json",
        "cache": tmp_path / "pictures.safetensors",
        "search": "weights",
        "generations": 4,
        "images-per-batch": 32,
        "micro-batch": 16,
        "engine": "eager",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = ["evolve", *words, "--force", "--out"]
    (tmp_path / "program.py").write_text(PROGRAM)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", "2", "--max-restarts", "1", str(tmp_path / "program.py")]
    done = subprocess.run(
        [*launcher, *command, str(tmp_path / "shared")],
        check=False,
        capture_output=True,
        text=True,
        env=child_environment(OMP_NUM_THREADS="1"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("The evolved network: ") == 1  # rank 0 alone says it
    with pytest.raises(SystemExit) as end:
        main([*command, str(tmp_path / "alone")])
    assert end.value.code == 0
    capsys.readouterr()
    assert lines_of(tmp_path / "shared") == lines_of(tmp_path / "alone")
    for file in ("evolved.safetensors", "evolved.pth"):
        assert (tmp_path / "shared" / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        main(["info"])
    assert "info is started as 2 ranks (WORLD_SIZE)" in capsys.readouterr().err
