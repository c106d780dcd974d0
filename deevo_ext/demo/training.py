"""The demo's population: one base network, fine-tuned with distinct hyper-parameters, on disk."""

import copy
import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..data.images import FourSets
from ..errors import DeevoError
from ..training.recipes import Recipe
from ..training.store import Store
from .network import SmallResNet
from .recipes import Plan, demo_plan
from .sgd import train

_FORMAT = 1

Progress = Callable[[str, int, int], None]
"""Called after every step with what is being trained, steps done and steps in all."""


def train_base(
    sets: FourSets, recipe: Recipe, width: int = 16, on_step: Callable[[], None] | None = None
) -> SmallResNet:
    """A new network trained on `sets.train`, in eval mode.

    Its initial weights come from `recipe.seed` too. No global generator is read or moved.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    network = SmallResNet(sets.train.images.shape[1], sets.num_classes, width, generator)
    network.to(sets.train.images.device)
    train(network, sets.train, recipe, on_step)
    return network


def fine_tune(
    base: nn.Module, sets: FourSets, recipe: Recipe, on_step: Callable[[], None] | None = None
) -> nn.Module:
    """A copy of `base`, which is not changed, trained on by `recipe`; in eval mode."""
    network = copy.deepcopy(base)
    train(network, sets.train, recipe, on_step)
    return network


def train_population(
    sets: FourSets,
    folder: str | Path,
    members: int = 12,
    seed: int = 0,
    progress: Progress | None = None,
    plan: Plan | None = None,
) -> list[Path]:
    """Write `base.safetensors` and `member_00.safetensors`, ... into `folder`.

    Each file appears whole or not at all, and `population.json` records the recipe, the images'
    digest and each file's. A run that was interrupted goes on where it stopped: a file that is
    recorded and whole is kept. More members can be asked for later. The same seed on the same
    machine and torch gives the same bits.

    Args:
        sets: the images; only `sets.train` is used.
        folder: made if need be.
        members: how many fine-tunings, 1 or more.
        seed: 0 or more; everything random derives from it.
        progress: see `Progress`; steps of files that were kept are not counted.
        plan: other recipes than `demo_plan(sets, members, seed)`, as many as `members`; `seed`
            is then only recorded.

    Returns:
        The members' paths, in order.

    Raises:
        DeevoError: `folder` holds a population of another recipe or something else's checkpoints,
            or cannot be written; the plan has another number of members.
    """
    if members < 1:
        raise DeevoError(f"members must be 1 or more, got {members}")
    chosen = plan or demo_plan(sets, members, seed)
    if len(chosen.members) != members:
        raise DeevoError(f"the plan has {len(chosen.members)} members, {members} are asked for")
    with _one_threaded_pool() as pool:
        return _train_missing(sets, Path(folder), seed, progress, chosen, pool)


@contextmanager
def _one_threaded_pool() -> Iterator[ThreadPoolExecutor]:
    """As many workers as torch has threads, each with one: networks beside each other.

    For networks this small, threads inside an operator cost more than they save, and on a busy
    machine they wait for each other at every layer. The bits then depend on no thread count.
    """
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(before, initializer=lambda: torch.set_num_threads(1)) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # an interrupt ends it soon
                raise
    finally:
        torch.set_num_threads(before)  # what the workers set is the default of later threads


def _train_missing(
    sets: FourSets,
    folder: Path,
    seed: int,
    progress: Progress | None,
    chosen: Plan,
    pool: ThreadPoolExecutor,
) -> list[Path]:
    store = Store(folder, _description(sets, chosen, seed))
    recipes = {"base": chosen.base}
    recipes |= {f"member_{index:02d}": recipe for index, recipe in enumerate(chosen.members)}
    missing = [
        name for name, recipe in recipes.items() if not store.has(name, dataclasses.asdict(recipe))
    ]
    if "base" in missing:
        # Members are fine-tunings of one base: without that file, none can be trusted.
        missing = list(recipes)
    report = _Report(progress, sum(recipes[name].steps for name in missing))
    if "base" in missing:
        report.start("base network")
        task = pool.submit(train_base, sets, recipes["base"], chosen.width, report.step)
        store.save("base", dataclasses.asdict(recipes["base"]), task.result().state_dict())
    members = [name for name in missing if name != "base"]
    if members:
        report.start(f"{len(members)} members")
        base = SmallResNet(sets.train.images.shape[1], sets.num_classes, chosen.width)
        base.load_state_dict(load_file(store.path("base")))
        base.to(sets.train.images.device)
        tasks = {
            pool.submit(fine_tune, base, sets, recipes[name], report.step): name for name in members
        }
        for done in as_completed(tasks):
            name = tasks[done]
            store.save(name, dataclasses.asdict(recipes[name]), done.result().state_dict())
    return [store.path(name) for name in recipes if name != "base"]


class _Report:
    """Counts the steps of the whole job."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done, self._what = progress, total, 0, ""

        self._lock = threading.Lock()

    def start(self, what: str) -> None:
        self._what = what

    def step(self) -> None:
        with self._lock:
            self._done += 1
            if self._progress is not None:
                self._progress(self._what, self._done, self._total)


def _description(sets: FourSets, plan: Plan, seed: int) -> dict[str, object]:
    """What must agree before a file is reused; `made_with` is for the reader."""
    return {
        "format": _FORMAT,
        "source": sets.name,
        "train_images": len(sets.train),
        "train_sha256": sets.train.digest(),
        "num_classes": sets.num_classes,
        "seed": seed,
        "width": plan.width,
        "base": dataclasses.asdict(plan.base),
        "made_with": {"torch": torch.__version__},
    }


def load_member(path: str | Path) -> SmallResNet:
    """A network of the demo from one of its files, in eval mode, on the CPU.

    Raises:
        DeevoError: not readable or not one of the demo's networks.
    """
    try:
        state = load_file(path)
        classes = len(state["fc.bias"])
        width, channels = state["conv1.weight"].shape[:2]
        network = SmallResNet(channels, classes, width)
        network.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise DeevoError(f"{path}: not a network of the demo ({error})") from error
    return network.eval()
