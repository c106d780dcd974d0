"""Pictures by what lies at a path: folder trees, tables of labels, CIFAR, IDX files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from deevo_ext.arguments import check_arguments
from deevo_ext.data.arrays import open_arrays
from deevo_ext.data.classes import ClassOrder, ordered
from deevo_ext.data.listed import open_listed, open_metadata
from deevo_ext.data.pictures import PARTS, FolderPictures, Pictures
from deevo_ext.data.tree import Trees, class_folders, is_picture
from deevo_ext.distributed.ranks import warn
from deevo_ext.errors import DeevoError


def open_pictures(
    source: str | Path,
    class_order: ClassOrder = "text",
    labels: str | os.PathLike[str] | None = None,
) -> Pictures:
    """Returns the pictures at a path, recognised by what lies there.

    An ImageFolder tree with train/, val/ and test/ (or some of them; see PARTS), a folder of class
    folders, folders with Hugging Face's metadata.csv or metadata.jsonl (`listed`), CIFAR-10's or
    CIFAR-100's Python version, or the IDX files of an MNIST-like set. class_order: of class
    folders; the other kinds number their classes themselves. labels: a CSV or JSON lines file with
    names and labels of pictures in the folder, which need no folders of their classes then.

    Raises DeevoError: none of these, damaged CIFAR or IDX files, a class order without a folder's
    name, or a table that does not fit the files.
    """
    check_arguments(open_pictures, locals())
    if not isinstance(source, (str, os.PathLike)) or not os.path.isdir(os.path.expanduser(source)):
        raise DeevoError(f"{source}: no such folder")
    root = Path(os.path.expanduser(source)).resolve()
    if labels is not None:
        return open_listed(root, Path(labels).expanduser(), class_order)
    return open_arrays(root) or open_metadata(root, class_order) or _open_folders(root, class_order)


def _open_folders(root: Path, class_order: ClassOrder) -> FolderPictures:
    tree = {
        part: next(folder for name in names if (folder := root / name).is_dir())
        for part, names in PARTS.items()
        if any((root / name).is_dir() for name in names)
    }
    if "train" not in tree:
        tree = {"all": root}
    elif "test" in tree and "val" not in tree:
        tree["val"] = tree.pop("test")
    classes = {part: class_folders(folder) for part, folder in tree.items()}
    if "test" in tree and not set(classes["test"]) & set(classes["train"]):
        warn(
            f"{tree['test']}: left out, as it has no class folders of {tree['train']}", stacklevel=3
        )
        del tree["test"], classes["test"]
    found = set().union(*classes.values())
    class_names = ordered(found, class_order, str(root)) if found else []
    files: list[str] = []
    labels: list[int] = []
    parts: dict[str, tuple[int, int]] = {}
    trees = Trees(
        [root, *(folder for folder in tree.values() if folder != root)],
        {(part, name): tree[part] / name for part, names in classes.items() for name in names},
    )
    problems = trees.problems
    if trees.others:
        counted = ", ".join(f"{count:,} {suffix}" for suffix, count in trees.others.most_common(5))
        warn(
            f"{root}: files in class folders that are not read, by their names: {counted}",
            stacklevel=3,
        )
    for part, folder in tree.items():
        start = len(files)
        for label, name in enumerate(class_names):
            if name not in classes[part]:
                if name in found:
                    problems.append(
                        f"{folder / name}: no such class folder, though there is in another"
                    )
                continue
            pictures = trees.files[part, name]
            if not pictures:
                problems.append(f"{folder / name}: a class folder without pictures")
            files.extend(os.path.relpath(path, root) for path in pictures)
            labels.extend([label] * len(pictures))
        parts[part] = (start, len(files))
    if not files:
        loose = sum(is_picture(name) for name in os.listdir(root))
        if loose:
            raise DeevoError(
                f"{root}: pictures in it are in no class folder ({loose:,}); expected CLASS/*.jpg, "
                "or a table of labels (--labels FILE, labels=)"
            )
        raise DeevoError(
            f"{root}: no pictures found; expected train/CLASS/*.jpg and val/CLASS/*.jpg, "
            "CLASS/*.jpg, CIFAR's Python version (data_batch_1, ...), or IDX files "
            "(train-images-idx3-ubyte, ...)"
        )
    for part, (start, stop) in parts.items():
        if start == stop:
            raise DeevoError(
                f"{tree[part]}: no pictures in class folders; expected CLASS/*.jpg in it, with the "
                f"classes of {next(iter(tree.values()))}"
            )
    return FolderPictures(
        _shown(root.name), root, parts, class_names, np.array(labels, np.int64), files, problems
    )


def _shown(name: str) -> str:
    """A file's name as text: bytes that are no UTF-8 become question marks."""
    return os.fsencode(name).decode(errors="replace")
