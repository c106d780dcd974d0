"""The cache of decoded pictures: what is in it, what is refused, and what survives kill -9."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deevo_ext.cli import main
from deevo_ext.data.cache import build_cache
from deevo_ext.data.cache_file import Slots, open_cache
from deevo_ext.data.opening import open_pictures
from deevo_ext.data.pictures import DatasetPictures
from deevo_ext.data.sets import open_data
from deevo_ext.data.transform import Transform
from deevo_ext.errors import DeevoError
from support import zoo
from support.pictures import Faces, crops, write_tree

COLOUR = Transform(40, (32, 32), "bilinear", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
GREY = Transform(None, None, "bilinear", (0.3,), (0.4,))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("pictures") / "tree", 60, 30)


def _deevo(*arguments: object) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code in (0, None)


def _build(source: Path, path: Path, transform: Transform = COLOUR, **options: Any) -> Any:
    options = {"workers": 0, "progress": False, **options}
    return build_cache(open_pictures(source), path, transform, **options)


def test_a_tree_is_cached_as_torchvision_would_see_it(tree: Path, tmp_path: Path) -> None:
    zoo.torchvision()
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import functional

    out = tmp_path / "c.safetensors"
    (tmp_path / "t.json").write_text('{"resize": 40, "crop": 32, "mean": [0.5], "std": [1]}')
    text = '{"resize": 40, "crop": 32, "mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]}'
    (tmp_path / "t.json").write_text(text)
    _deevo("cache", tree, "--out", out, "--transform", tmp_path / "t.json", "--workers", 2)
    cache = open_cache(out)
    for part in ("train", "val"):
        folder = ImageFolder(str(tree / part))
        images = cache.images(part, COLOUR)
        assert images.labels.tolist() == folder.targets and cache.class_names == folder.classes
        for i, (picture, _) in enumerate(folder):
            expected = functional.center_crop(functional.resize(picture, [40]), [32, 32])
            found = images.pixels(i, i + 1)[0].permute(1, 2, 0)
            np.testing.assert_array_equal(found, np.asarray(expected))
    assert not list(tmp_path.glob("*.partial"))
    # Digests by the store are those of the pixels.
    plain = cache.images("val", COLOUR)
    held = plain.digest()
    plain.digests = None
    assert plain.digest() == held


def test_a_cache_is_opened_again_checked_and_never_replaced(tree: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "tree", tmp_path / "c.safetensors"
    shutil.copytree(tree, source)
    first = _build(source, out)
    stamp = out.stat().st_mtime_ns
    again = _build(source, out)
    assert torch.equal(first.pixels, again.pixels) and out.stat().st_mtime_ns == stamp
    other = Transform(41, (32, 32), "bilinear", COLOUR.mean, COLOUR.std)
    with pytest.raises(DeevoError, match=r"another transform.*40.*41"):
        _build(source, out, other)
    with pytest.raises(DeevoError, match=r"made by resize 40.*but resize 41"):
        again.images("train", other)
    with pytest.raises(DeevoError, match=r"no part 'test'; it has train, val"):
        again.images("test", COLOUR)
    os.utime(next((source / "val").rglob("*.jpg")))
    with pytest.raises(DeevoError, match="another source"):
        _build(source, out)
    # Another normalisation is not another transform: pixels are stored before it.
    means = Transform(40, (32, 32), "bilinear", (0.1,) * 3, (0.1,) * 3)
    assert again.images("train", means).mean == (0.1,) * 3


def test_damaged_caches_are_one_clear_error(tree: Path, tmp_path: Path) -> None:
    good = tmp_path / "good"
    _build(tree, good)
    content = good.read_bytes()
    for name, data, message in (
        ("cut", content[:-1], "not a whole cache"),
        ("long", content + b"x", "not a whole cache"),
        ("empty", b"", "not a whole cache"),
        ("text", b"hello, this is no cache", "not a whole cache"),
        # Before version 2, 16-bit grey pictures became white.
        ("version", content.replace(b'"version": "2"', b'"version": "1"'), "version 1, not 2"),
        ("format", content.replace(b"deevo-images", b"other-images"), "but not a cache"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DeevoError, match=f"{name}: .*{message}"):
            open_cache(tmp_path / name)
    with pytest.raises(DeevoError, match="no such cache"):
        open_cache(tmp_path / "absent")


def test_all_that_is_damaged_is_named_at_once_or_left_out(tree: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "tree", tmp_path / "c.safetensors"
    shutil.copytree(tree, source)
    cut, text, gone, *_ = sorted((source / "train").rglob("*.jpg"))
    cut.write_bytes(cut.read_bytes()[:400])
    text.write_text("<html>not found</html>")
    gone.unlink()
    gone.symlink_to(source / "nowhere")
    (source / "train" / "unicorn").mkdir()
    (source / "val" / "unicorn").mkdir()
    whole = len(open_pictures(source))
    for workers in (0, 1):
        with pytest.raises(DeevoError, match="5 of tree cannot be used") as refused:
            _build(source, out, workers=workers)
        for name in (cut, text, gone, source / "train/unicorn", source / "val/unicorn"):
            assert str(name) in str(refused.value)
    assert not out.exists()
    with pytest.warns(UserWarning, match=f"left out: {cut}"):
        cache = _build(source, out, skip_corrupt=True)
    assert cache.skipped == 2 and len(cache.class_names) == 5
    train = cache.images("train", COLOUR)
    assert len(train) + len(cache.images("val", COLOUR)) == whole - 2
    # What is left is what it would be without the damaged files.
    for path in (cut, text, gone):
        path.unlink()
    for part in ("train", "val"):
        (source / part / "unicorn").rmdir()
    clean = _build(source, tmp_path / "clean")
    assert clean.images("train", COLOUR).digest() == train.digest()


def _wait(condition: Any, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


def _descendants(process: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process and fields[0] != "Z":
            found += [int(folder.name), *_descendants(int(folder.name))]
    return found


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_kill_9_loses_only_what_is_in_flight(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "tree", 700, 100, side=128)
    expected = tmp_path / "expected"
    _build(source, expected, Transform(40, (32, 32), "bilinear", (0.5,) * 3, (1,) * 3))
    out, partial = tmp_path / "c.safetensors", tmp_path / "c.safetensors.partial"
    (tmp_path / "t.json").write_text(
        '{"resize": 40, "crop": 32, "mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]}'
    )
    command = [sys.executable, "-P", "-m", "deevo_ext", "cache", str(source), "--out", str(out)]
    command += ["--transform", str(tmp_path / "t.json"), "--workers", "1"]
    description = open_cache(expected).description

    def done() -> list[int]:
        if not partial.exists() or partial.stat().st_size != expected.stat().st_size:
            return []
        slots = Slots(partial, description)
        found = [i for i in range(description.shape[0]) if slots.holds(i)]
        slots.close()
        return found

    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    _wait(lambda: len(done()) >= 40)
    workers = _descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert workers
    _wait(lambda: not any(map(_alive, workers)))
    kept = done()
    assert 40 <= len(kept) < description.shape[0] and not out.exists()
    # A torn slot, as a power cut leaves it, is noticed.
    slots = Slots(partial, description)
    os.pwrite(slots.file, b"torn", slots.pixels + slots.image_bytes * kept[3])
    assert not slots.holds(kept[3])
    slots.close()
    # Kept slots are not decoded again: their pictures may be unreadable by now, if they look alike.
    pictures = open_pictures(source)
    untouched = Path(pictures.name_of(kept[7]))
    status = untouched.stat()
    untouched.write_bytes(b"\0" * status.st_size)
    os.utime(untouched, ns=(status.st_atime_ns, status.st_mtime_ns))
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    found = open_cache(out)
    assert torch.equal(found.pixels, open_cache(expected).pixels)
    assert torch.equal(found.digests, open_cache(expected).digests)
    assert torch.equal(found.labels, open_cache(expected).labels)


def test_one_process_builds_while_another_waits(tree: Path, tmp_path: Path) -> None:
    import threading

    caches: list[Any] = []
    out = tmp_path / "c.safetensors"
    threads = [threading.Thread(target=lambda: caches.append(_build(tree, out))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(caches) == 3 and all(torch.equal(caches[0].pixels, c.pixels) for c in caches)
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name]


def test_a_script_without_a_main_guard_ends_with_an_error(tree: Path, tmp_path: Path) -> None:
    """Its workers import it, and would wait for the lock that it holds."""
    script = tmp_path / "script.py"
    script.write_text(
        "from deevo_ext.data import Transform, build_cache, open_pictures\n"
        "t = Transform(None, (8, 8), 'bilinear', (0.5,) * 3, (0.5,) * 3)\n"
        f"build_cache(open_pictures({str(tree)!r}), {str(tmp_path / 'c')!r}, t, workers=1)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    assert "lacks if __name__" in done.stderr.splitlines()[-1]


def test_no_room_is_said_before_anything_is_decoded(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DeevoError, match=r"no room.*0\.0 GB are needed.*--train-images"):
        _build(tree, tmp_path / "c")
    assert not list(tmp_path.iterdir())


def _write_cifar(folder: Path, meta: str, batches: dict[str, int], key: bytes) -> list[np.ndarray]:
    """Real pictures of 32x32 in CIFAR's layout; what was written, [N, 32, 32, 3] by batch."""
    folder.mkdir()
    own = []
    names = [b"animal", b"flower", b"person", b"thing"]
    for seed, (name, count) in enumerate(batches.items()):
        pictures = crops(count, 64, seed)
        array = np.stack([np.asarray(image.resize((32, 32))) for _, image in pictures])
        own.append(array)
        labels = [names.index(label.encode()) for label, _ in pictures]
        data = array.transpose(0, 3, 1, 2).reshape(count, 3072).copy()
        (folder / name).write_bytes(pickle.dumps({b"data": data, key: labels}, protocol=2))
    label_key = b"label_names" if key == b"labels" else b"fine_label_names"
    (folder / meta).write_bytes(pickle.dumps({label_key: names}, protocol=2))
    return own


def test_cifar_is_read_without_running_its_pickles(tmp_path: Path) -> None:
    ten = {**{f"data_batch_{i}": 6 for i in range(1, 6)}, "test_batch": 9}
    transform = Transform(None, None, "bilinear", (0.5,) * 3, (0.2,) * 3)
    for name, meta, batches, key in (
        ("cifar-10-batches-py", "batches.meta", ten, b"labels"),
        ("cifar-100-python", "meta", {"train": 20, "test": 9}, b"fine_labels"),
    ):
        source = tmp_path / key.decode()
        source.mkdir()
        own = _write_cifar(source / name, meta, batches, key)
        cache = _build(source, tmp_path / f"{name}.safetensors", transform)
        assert cache.class_names == ["animal", "flower", "person", "thing"]
        train = cache.images("train", transform)
        expected = np.concatenate(own[:-1])
        np.testing.assert_array_equal(train.pixels(0, len(train)).permute(0, 2, 3, 1), expected)
        assert len(cache.images("val", transform)) == 9

    class Harm:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'harmed'}",)

    victim = tmp_path / "labels" / "cifar-10-batches-py" / "data_batch_3"
    for content, message in (
        (pickle.dumps(Harm()), "system, which is not an array"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8)}), "KeyError"),
        (pickle.dumps({b"data": np.zeros((2, 9), np.uint8), b"labels": [0, 1]}), "3072"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [4]}), r"labels 4\.\.4"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": ["0"]}), "no list of"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [0.5]}), "no list of"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": 0}), "no list of"),
        (b"junk", "not a batch"),
    ):
        victim.write_bytes(content)
        with pytest.raises(DeevoError, match=f"data_batch_3: .*{message}"):
            open_pictures(tmp_path / "labels")
    assert not (tmp_path / "harmed").exists()
    victim.unlink()
    with pytest.raises(DeevoError, match="data_batch_3: missing"):
        open_pictures(tmp_path / "labels")
    meta = victim.with_name("batches.meta")
    for names in (7, [7], {"a": 1}):
        meta.write_bytes(pickle.dumps({"label_names": names}))
        with pytest.raises(DeevoError, match=r"batches\.meta: its label_names are no list"):
            open_pictures(tmp_path / "labels")


def test_changed_pixels_are_found_when_they_are_first_read(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.safetensors"
    cache = _build(tree, out)
    images = cache.images("val", COLOUR)
    assert len(images.pixels(0, len(images))) and bool(cache.verified.any())
    stop = out.stat().st_size
    for place, what in ((stop - 1, "image 29"), (4096 + 8 * len(cache.labels) - 8, "image 29")):
        content = bytearray(out.read_bytes())
        content[place] ^= 1  # of the last image a pixel, or its label
        (tmp_path / "changed").write_bytes(content)
        changed = open_cache(tmp_path / "changed").images("val", COLOUR)
        changed.pixels(0, 29)
        for some in (changed, changed.subset([29, 0]), changed.slice(20, 30)):
            with pytest.raises(DeevoError, match=f"tree/val: {what}|image [09] is not what was"):
                some.pixels(0, len(some))


def test_default_caches_of_others_are_refused(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEVO_CACHE_DIR", str(tmp_path))
    options: dict[str, Any] = {"workers": 0, "progress": False}
    path = open_data(tree, COLOUR, **options).path
    open_data(tree, COLOUR, **options)
    path.chmod(0o666)
    with pytest.raises(DeevoError, match="a cache of another user, or one that everyone may write"):
        open_data(tree, COLOUR, **options)
    open_data(path, COLOUR, **options)  # named by its user
    path.chmod(0o644)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    if path.stat().st_uid:  # root's are trusted
        with pytest.raises(DeevoError, match="a cache of another user"):
            open_data(tree, COLOUR, **options)


def test_archives_are_to_be_unpacked_and_never_deleted(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for kind in ("zip", "tar", "gztar"):
        file = shutil.make_archive(str(tmp_path / kind), kind, tmp_path / "a")
        with pytest.raises(DeevoError, match="an archive, which is not read: unpack it") as error:
            open_data(file, COLOUR)
        assert "delete" not in str(error.value)
    (tmp_path / "x.parquet").write_bytes(b"PAR1" + bytes(64))
    with pytest.raises(DeevoError, match="not a whole cache file") as error:
        open_data(tmp_path / "x.parquet", COLOUR)
    assert "delete" not in str(error.value)


def test_what_an_older_version_decoded_is_not_gone_on_with(tree: Path, tmp_path: Path) -> None:
    out, partial = tmp_path / "c.safetensors", tmp_path / "c.safetensors.partial"
    whole = _build(tree, tmp_path / "whole.safetensors")
    partial.write_bytes(bytes((tmp_path / "whole.safetensors").stat().st_size))
    slots = Slots(partial, whole.description)
    for number, label in enumerate(whole.labels.tolist()):  # white, with digests that are right
        slots.write(number, np.full(slots.shape, 255, np.uint8), label)
    older = whole.description.header().replace(b'"version": "2"', b'"version": "1"')
    os.pwrite(slots.file, older, 0)
    slots.close()
    assert torch.equal(_build(tree, out).pixels, whole.pixels)


@pytest.mark.parametrize("name", ["c.safetensors", "c.safetensors.partial"])
def test_pipes_and_devices_in_a_caches_place_are_refused_at_once(
    tree: Path, tmp_path: Path, name: str
) -> None:
    places = [tmp_path / "pipe", tmp_path / "device"]
    for place in places:
        place.mkdir()
    os.mkfifo(places[0] / name)
    try:
        os.mknod(places[1] / name, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:  # only root may
        places.pop()
    for place in places:
        with pytest.raises(DeevoError, match=rf"{name}: (it is )?no file"):
            _build(tree, place / "c.safetensors")
        assert [path.name for path in place.iterdir()] == [name]


def test_a_link_in_the_partial_files_place_is_not_followed(tree: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "c.safetensors.partial").symlink_to(victim)
    with pytest.raises(DeevoError, match=r"cannot write .*c\.safetensors\.partial"):
        _build(tree, tmp_path / "c.safetensors")
    assert victim.read_text() == "mine"


def test_any_torch_dataset_is_cached(tmp_path: Path) -> None:
    pictures = DatasetPictures(Faces(), "first version")
    cache = build_cache(pictures, tmp_path / "c", COLOUR, workers=1, progress=False)
    images = cache.images("all", COLOUR)
    assert images.labels.tolist() == [0, 1, 0, 1, 0, 1] and cache.class_names == ["cat", "coffee"]
    for i in range(6):
        expected = COLOUR.apply(crops(12)[i][1])
        np.testing.assert_array_equal(images.pixels(i, i + 1)[0].permute(1, 2, 0), expected)
    with pytest.raises(DeevoError, match="another source"):
        changed = DatasetPictures(Faces(), "second version")
        build_cache(changed, tmp_path / "c", COLOUR, workers=0, progress=False)
    with pytest.raises(DeevoError, match=r"1 of Faces.*Faces\[4\]: RuntimeError: a bad sector"):
        damaged = DatasetPictures(Faces(4), "damaged")
        build_cache(damaged, tmp_path / "d", COLOUR, workers=0, progress=False)


def test_pictures_of_different_sizes_need_a_crop(tree: Path, tmp_path: Path) -> None:
    transform = Transform(40, None, "bilinear", COLOUR.mean, COLOUR.std)
    with pytest.raises(DeevoError, match="give a transform with a crop"):
        _build(tree, tmp_path / "c", transform)
    with pytest.raises(DeevoError, match="no pictures found; expected train/CLASS"):
        open_pictures(tmp_path)
    (tmp_path / "loose.PNG").touch()
    with pytest.raises(DeevoError, match=r"in no class folder \(1\); expected CLASS"):
        open_pictures(tmp_path)
    with pytest.raises(DeevoError, match="no such folder"):
        open_pictures(tmp_path / "nowhere")


def test_idx_files_keep_their_size(tmp_path: Path) -> None:
    from deevo_ext.data.arrays import open_idx
    from deevo_ext.data.sources import DEBIAN_FASHION_MNIST

    if not DEBIAN_FASHION_MNIST.is_dir():
        pytest.skip("dataset-fashion-mnist is not installed")
    out = tmp_path / "fashion.safetensors"
    _deevo("cache", DEBIAN_FASHION_MNIST, "--out", out, "--train-images", 500, "--workers", 0)
    pictures, cache = open_idx(DEBIAN_FASHION_MNIST), open_cache(out)
    train, val = cache.images("train", GREY), cache.images("val", GREY)
    np.testing.assert_array_equal(val.pixels(0, 10_000)[:, 0], pictures.images[60_000:])
    assert torch.equal(val.labels, torch.from_numpy(pictures.labels[60_000:]))
    assert torch.bincount(train.labels).tolist() == [50] * 10
    picture = Image.fromarray(train.pixels(3, 4)[0, 0].numpy())
    found = (pictures.images[:60_000] == np.asarray(picture)).all((1, 2))
    assert found.any()


def test_pictures_of_no_certain_range_are_named(tmp_path: Path) -> None:
    (tmp_path / "tree" / "a").mkdir(parents=True)
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "tree" / "a" / "f.tiff")
    with pytest.raises(DeevoError, match=r"none of the first pictures .*f\.tiff: .* its mode is F"):
        _build(tmp_path / "tree", tmp_path / "c.safetensors", GREY)
