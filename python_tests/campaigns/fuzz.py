"""Files that atheris makes up, guided by the lines of this package that they reach.

    pip install atheris
    PYTHONPATH=python_tests python -m campaigns.fuzz journal -runs=100000

for a journal, a recipe, a checkpoint (.pth), a safetensors or a cache; other options are those of
libFuzzer. It ends at the first text that makes anything but a result or a DeevoError, or takes over
10 s, and leaves it in a file. The tests do without it: they change bytes by chance.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris
import torch
from PIL import Image

with atheris.instrument_imports(include=["deevo_ext"]):
    import deevo_ext as deevo
    from deevo_ext.data import Transform, build_cache, open_cache, open_pictures
    from deevo_ext.runs import journal
    from deevo_ext.runs.recording import read_journal
from campaigns.interrupted import coefficients
from support.networks import Net, members
from support.recipe_runs import PlainNet, save_checkpoints


def file_of(kind: str, folder: Path) -> tuple[Path, Callable[[], object]]:
    """A good file of a kind, and what reads it."""
    if kind in ("journal", "recipe"):
        coefficients(save_checkpoints(folder / "checkpoints", PlainNet), folder / "run")
        if kind == "journal":
            path = folder / "run" / journal.FILE_NAME
            return path, lambda: read_journal(path)
        path = folder / "run" / "recipe.yaml"
        return path, lambda: deevo.merge(path, folder / "merged.safetensors")
    if kind in ("checkpoint", "safetensors"):
        checkpoints = save_checkpoints(folder / "checkpoints", Net)
        path = checkpoints / "m0.safetensors"
        if kind == "checkpoint":
            path.unlink()
            path = checkpoints / "m0.pth"
            torch.save({"model": members(Net, 1)[0], "classes": ["a", "b", "c"]}, path)
        return path, lambda: deevo.Population.from_checkpoints(Net(), checkpoints)
    made = Transform(2, (2, 2), "bilinear", (0.5,) * 3, (0.5,) * 3)
    (folder / "tree" / "a").mkdir(parents=True)
    for k in range(2):
        Image.new("RGB", (2, 2), (100 * k, 90, 80)).save(folder / "tree" / "a" / f"{k}.png")
    path = folder / "c.safetensors"
    build_cache(open_pictures(folder / "tree"), path, made, workers=0, progress=False)

    def read() -> object:
        images = open_cache(path).images("all", made)
        return images.pixels(0, len(images))

    return path, read


def main(kind: str, options: list[str]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="deevo-fuzz-"))
    path, read = file_of(kind, folder)
    (folder / "corpus").mkdir()
    (folder / "corpus" / "good").write_bytes(path.read_bytes())

    def one(data: bytes) -> None:
        path.write_bytes(data)
        with contextlib.suppress(deevo.DeevoError):
            read()

    arguments = [sys.argv[0], str(folder / "corpus"), "-timeout=10", "-max_len=20000", *options]
    atheris.Setup(arguments, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
