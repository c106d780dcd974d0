"""Decoding pictures once, in a pool of processes, into a cache file.

A build that was killed goes on where it stopped: whole slots are recognised by their digests and
kept, and only what was in flight is decoded again. Of several processes that want the same cache
one builds it, while the others wait.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import threading
import warnings
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path

from deevo_ext.arguments import check_arguments
from deevo_ext.data.cache_file import Cache, Description, Slots, open_cache
from deevo_ext.data.locked import locked
from deevo_ext.data.pictures import Pictures
from deevo_ext.data.transform import Transform
from deevo_ext.errors import DeevoError
from deevo_ext.progress import progress_bar

_TASK = 32  # pictures a worker takes at a time
_AHEAD = 4  # tasks waiting for each worker
_NAMED = 50  # unusable pictures in one message
_NO_GUARD = 'a script that starts processes lacks if __name__ == "__main__":'


def default_workers() -> int:
    """Returns the number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


def build_cache(
    pictures: Pictures,
    path: str | Path,
    transform: Transform,
    *,
    workers: int | None = None,
    skip_corrupt: bool = False,
    progress: bool = True,
    renew: bool = False,
) -> Cache:
    """Returns the cache at `path`, built if it is not there; opened and checked if it is.

    pictures: from `open_pictures`, or `DatasetPictures` of a torch Dataset. transform: its resize
    and crop are applied, its normalisation is not. workers: processes that decode; default one a
    processor; 0 decodes in this one. skip_corrupt: leaves out what cannot be read instead of
    refusing it; `Cache.skipped` counts them. renew: makes a cache anew whose source has changed
    since, and says so, instead of refusing it; processes that have it open keep what they opened.

    Raises DeevoError: pictures that cannot be read and classes without any (up to 50 by name, in
    one message, after everything else is decoded and kept), no room on the disk, a cache of another
    source or transform in the file's place. A picture that is left out is a warning.
    """
    check_arguments(build_cache, locals())
    path = Path(path)
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # A worker imports the script that started it, and would wait for the file's lock.
        raise DeevoError(f"a decoding process calls build_cache itself: {_NO_GUARD}")
    if workers is not None and workers < 0:
        raise DeevoError(f"workers is {workers}; expected 0 or more")
    if not len(pictures):
        raise DeevoError(f"{pictures.name}: no pictures")
    description = _describe(pictures, transform)
    if os.path.lexists(path):
        if not renew or not _is_stale(path, description):
            return _existing(path, description)
        warnings.warn(f"{path}: its pictures have changed since; it is made anew", stacklevel=2)
    partial = path.with_name(path.name + ".partial")
    with locked(partial) as file:
        if path.exists() and not (renew and _is_stale(path, description)):  # another was faster
            if not os.fstat(file).st_size:
                partial.unlink(missing_ok=True)
            return _existing(path, description)
        _prepare(file, partial, description)
        decoder = _Decoder(pictures, transform, partial, description)
        problems = _fill(decoder, default_workers() if workers is None else workers, progress)
        lost = [_reported(pictures, index, reason) for index, reason in problems.items()]
        if (lost or pictures.problems) and not skip_corrupt:
            unusable = [*pictures.problems, *lost]
            more = len(unusable) - _NAMED
            raise DeevoError(
                f"{len(unusable)} of {pictures.name} cannot be used: "
                f"{'; '.join(unusable[:_NAMED])}{f'; and {more} more' if more > 0 else ''}. Mend "
                "or remove them, or leave them out with --skip-corrupt; what is decoded is kept"
            )
        for index in problems:
            decoder.slots.skip(index)
        decoder.slots.close()
        os.fsync(file)
        os.replace(partial, path)
    for line in (*pictures.problems, *lost):
        warnings.warn(f"left out: {line}", stacklevel=2)
    return open_cache(path)


def _reported(pictures: Pictures, index: int, reason: str) -> str:
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
    """The size of every image: the transform's, or else the first readable picture's."""
    if transform.crop is not None:
        return transform.crop
    first = ""
    for index in range(min(len(pictures), 100)):
        try:
            return transform.apply(pictures.read(index)[0]).shape[:2]
        except Exception as error:  # a damaged file raises nearly anything
            first = first or _reported(pictures, index, f"{type(error).__name__}: {error}")
    raise DeevoError(f"{pictures.name}: none of the first pictures can be read; {first}")


def _is_stale(path: Path, expected: Description) -> bool:
    """Whether a cache is of other pictures, and of this very transform."""
    if not os.path.isfile(path):
        return False
    actual = open_cache(path).description
    return actual.pixels == expected.pixels and actual.source != expected.source


def _existing(path: Path, expected: Description) -> Cache:
    cache = open_cache(path)
    actual = cache.description
    if actual.pixels != expected.pixels:
        raise DeevoError(
            f"{path}: a cache of another transform: {actual.pixels}, not {expected.pixels}; delete "
            "it or choose another file"
        )
    if (actual.source, actual.parts) != (expected.source, expected.parts):
        raise DeevoError(f"{path}: a cache of another source; delete it or choose another file")
    return cache


def _prepare(file: int, partial: Path, description: Description) -> None:
    """Gives the file its header and size, unless it has those of this very cache."""
    header = description.header()
    size = len(header) + sum(description.sizes)
    if os.pread(file, len(header), 0) != header or os.fstat(file).st_size != size:
        os.ftruncate(file, 0)
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise DeevoError(
                f"no room for {partial}: {size / 1e9:.1f} GB are needed ({error.strerror}); choose "
                "another disk, a smaller image, or fewer train images (--train-images)"
            ) from error
        os.pwrite(file, header, 0)


@dataclass
class _Decoder:
    """Decodes pictures into the slots of a file, in this process or, copied, in a worker."""

    pictures: Pictures
    transform: Transform
    path: Path
    description: Description

    @functools.cached_property
    def slots(self) -> Slots:
        """The file's slots, opened in the process that asks."""
        return Slots(self.path, self.description)

    def decode(self, task: range) -> dict[int, str]:
        """Fills the slots that are not whole; returns what cannot be read, and why."""
        problems = {}
        labels = self.pictures.labels
        for index in task:
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


def _fill(decoder: _Decoder, workers: int, progress: bool) -> dict[int, str]:
    """Fills every slot; returns the pictures that cannot be read, and why, in order."""
    count = len(decoder.pictures)
    tasks = [range(start, min(start + _TASK, count)) for start in range(0, count, _TASK)]
    problems: dict[int, str] = {}
    with progress_bar(count, unit="image", shown=progress) as bar:
        if workers == 0:
            for task in tasks:
                problems.update(decoder.decode(task))
                bar.update(len(task))
            return problems
        # Not fork: this process has threads. The server imports once for all workers. Not torch's
        # DataLoader: when this process is killed, its workers live on below such a server.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        with ProcessPoolExecutor(workers, context, _start, (decoder,)) as pool:
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
                    f"what is decoded is kept), or because {_NO_GUARD}"
                ) from error
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return dict(sorted(problems.items()))


_decoder: _Decoder | None = None


def _start(decoder: _Decoder) -> None:
    """Prepares a worker process, which ends when the process that started it does."""
    global _decoder
    warnings.simplefilter("ignore")  # Pillow's, about metadata that do not matter here
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _decoder = decoder


def _decode(task: range) -> dict[int, str]:
    assert _decoder is not None
    return _decoder.decode(task)
