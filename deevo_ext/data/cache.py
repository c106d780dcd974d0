"""Decoding pictures once, in a pool of processes, into a cache file.

A build that was killed goes on where it stopped: whole slots are recognised by their digests and
kept, and only what was in flight is decoded again. Of several processes that want the same cache
one builds it, while the others wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import multiprocessing
import os
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path

from deevo_ext.data.cache_file import Cache, Description, Slots, open_cache
from deevo_ext.data.pictures import Pictures
from deevo_ext.data.transform import Transform
from deevo_ext.errors import DeevoError

_TASK = 32  # pictures a worker takes at a time
_AHEAD = 4  # tasks waiting for each worker


def default_workers() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def build_cache(
    pictures: Pictures,
    path: str | Path,
    transform: Transform,
    *,
    workers: int | None = None,
    skip_corrupt: bool = False,
    progress: bool = True,
) -> Cache:
    """The cache at `path`, built if it is not there; opened and checked if it is.

    pictures: from `open_pictures`, or `DatasetPictures` of a torch Dataset. transform: its resize
    and crop are applied, its normalisation is not. workers: processes that decode; default one a
    processor; 0 decodes in this one. skip_corrupt: leaves out what cannot be read instead of
    refusing it; `Cache.skipped` counts them.

    Raises DeevoError: pictures that cannot be read and classes without any (all of them by name, in
    one message, after everything else is decoded and kept), no room on the disk, a cache of another
    source or transform in the file's place. A picture that is left out is a warning.
    """
    path = Path(path)
    if workers is not None and workers < 0:
        raise DeevoError(f"workers is {workers}; expected 0 or more")
    if not len(pictures):
        raise DeevoError(f"{pictures.name}: no pictures")
    description = _describe(pictures, transform)
    if path.exists():
        return _existing(path, description)
    partial = path.with_name(path.name + ".partial")
    with _locked(partial, progress) as file:
        if path.exists():  # another process was faster
            if not os.fstat(file).st_size:
                partial.unlink(missing_ok=True)
            return _existing(path, description)
        header = _prepare(file, partial, description)
        count = default_workers() if workers is None else workers
        problems = _fill(pictures, partial, header, description, transform, count, progress)
        lost = [_said(pictures, index, reason) for index, reason in problems.items()]
        if (lost or pictures.problems) and not skip_corrupt:
            found = [*pictures.problems, *lost]
            raise DeevoError(
                f"{len(found)} of {pictures.name} cannot be used: {'; '.join(found)}. Mend or "
                "remove them, or leave them out with --skip-corrupt; what has been decoded is kept"
            )
        slots = Slots(partial, header, description.shape)
        for index in problems:
            slots.skip(index)
        slots.close()
        os.fsync(file)
        os.replace(partial, path)
    for line in (*pictures.problems, *lost):
        warnings.warn(f"left out: {line}", stacklevel=2)
    return open_cache(path)


def _said(pictures: Pictures, index: int, reason: str) -> str:
    name = pictures.name_of(index)
    # Pillow's messages often end with the file's name, too.
    return f"{name}: {reason.replace(repr(name), '').rstrip(': ')}"


def _describe(pictures: Pictures, transform: Transform) -> Description:
    height, width = _image_size(pictures, transform)
    return Description(
        pictures.name,
        pictures.digest(),
        transform.pixels(),
        dict(pictures.parts),
        list(pictures.class_names),
        (len(pictures), height, width, transform.channels),
    )


def _image_size(pictures: Pictures, transform: Transform) -> tuple[int, int]:
    """Of every image: the transform's, or else the first readable picture's."""
    if transform.crop is not None:
        return transform.crop
    for index in range(min(len(pictures), 100)):
        with contextlib.suppress(Exception):
            return transform.apply(pictures.read(index)[0]).shape[:2]
    raise DeevoError(f"{pictures.name}: none of the first pictures can be read")


def _existing(path: Path, wanted: Description) -> Cache:
    cache = open_cache(path)
    own = cache.description
    for what, found, asked in (
        ("transform", own.pixels, wanted.pixels),
        ("source", (own.source, own.parts), (wanted.source, wanted.parts)),
    ):
        if found != asked:
            detail = f": {found}, not {asked}" if what == "transform" else ""
            raise DeevoError(
                f"{path}: a cache of another {what}{detail}; delete it or choose another file"
            )
    return cache


@contextlib.contextmanager
def _locked(partial: Path, progress: bool) -> Iterator[int]:
    """The partial file, open, this process's alone."""
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise DeevoError(f"cannot write {partial}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress:
                print(f"waiting for another process, which builds {partial}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)


def _prepare(file: int, partial: Path, description: Description) -> int:
    """Gives the file its header and size, unless it is this cache's own; the header's length."""
    header = description.header()
    size = len(header) + _tensor_bytes(description)
    if os.pread(file, len(header), 0) != header or os.fstat(file).st_size != size:
        os.ftruncate(file, 0)
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            partial.unlink()
            raise DeevoError(
                f"no room for {partial}: {size / 1e9:.1f} GB are needed ({error.strerror}); choose "
                "another disk, a smaller image, or fewer train images (--train-images)"
            ) from error
        os.pwrite(file, header, 0)
    return len(header)


def _tensor_bytes(description: Description) -> int:
    count, height, width, channels = description.shape
    return count * (8 + 32 + height * width * channels)


def _fill(
    pictures: Pictures,
    partial: Path,
    header: int,
    description: Description,
    transform: Transform,
    workers: int,
    progress: bool,
) -> dict[int, str]:
    """Fills every slot; the pictures that cannot be read, and why, in order."""
    from tqdm.auto import tqdm

    arguments = (pictures, partial, header, description.shape, transform)
    tasks = [range(a, min(a + _TASK, len(pictures))) for a in range(0, len(pictures), _TASK)]
    problems: dict[int, str] = {}
    with tqdm(total=len(pictures), unit="image", disable=not progress) as bar:
        if workers == 0:
            decoder = _Decoder(*arguments)
            for task in tasks:
                problems.update(decoder.decode(task))
                bar.update(len(task))
            return problems
        # Not fork: this process has threads. The server imports once for all workers.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        with ProcessPoolExecutor(workers, context, _start, arguments) as pool:
            try:
                waiting: dict[Future[dict[int, str]], range] = {}
                rest = iter(tasks)
                while True:
                    for task in itertools.islice(rest, workers * _AHEAD - len(waiting)):
                        waiting[pool.submit(_decode, task)] = task
                    if not waiting:
                        break
                    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                        problems.update(future.result())
                        bar.update(len(waiting.pop(future)))
            except BrokenProcessPool as error:
                raise DeevoError(
                    "a decoding process died: for want of memory (try again with fewer --workers: "
                    "what is decoded is kept), or because a script that calls this lacks "
                    'if __name__ == "__main__":'
                ) from error
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return dict(sorted(problems.items()))


class _Decoder:
    def __init__(
        self,
        pictures: Pictures,
        partial: Path,
        header: int,
        shape: tuple[int, int, int, int],
        transform: Transform,
    ) -> None:
        self.pictures, self.transform = pictures, transform
        self.slots = Slots(partial, header, shape)

    def decode(self, task: range) -> dict[int, str]:
        """Fills the slots that are not whole; what cannot be read, and why."""
        problems = {}
        for index in task:
            labels = self.pictures.labels
            if self.slots.holds(index, None if labels is None else int(labels[index])):
                continue
            try:
                picture, label = self.pictures.read(index)
                pixels = self.transform.apply(picture)
                if label < 0:
                    raise ValueError(f"its label is {label}")
                if pixels.shape != self.slots.shape:
                    raise ValueError(
                        f"it is {list(pixels.shape)} where {list(self.slots.shape)} is expected; "
                        "give a transform with a crop"
                    )
            except Exception as error:  # a damaged file raises nearly anything
                problems[index] = f"{type(error).__name__}: {error}"
                continue
            self.slots.write(index, pixels, label)
        return problems


_decoder: _Decoder | None = None


def _start(
    pictures: Pictures,
    partial: Path,
    header: int,
    shape: tuple[int, int, int, int],
    transform: Transform,
) -> None:
    """Prepares a worker process, which ends when the process that started it does."""
    global _decoder
    warnings.simplefilter("ignore")  # Pillow's, about metadata that do not matter here
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _decoder = _Decoder(pictures, partial, header, shape, transform)


def _decode(task: range) -> dict[int, str]:
    assert _decoder is not None
    return _decoder.decode(task)
