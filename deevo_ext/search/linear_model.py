"""The linear model of a population's logits: what candidates would score, without a forward pass.

Near the present network w the logits of a step C are z0 + sum over directions k of C[k] J[k], with
the slopes J from probes: J[k] = (logits of w + eps * direction k, minus z0) / eps. A candidate then
costs one matrix product (`torch.ops.deevo.linear_scores`), whatever the metric.

Steps are written in scaled coordinates q = C * scale, in which every direction moves the logits by
1 in the root mean square; the model keeps slopes of that size. So a ridge |q|^2 weighs every
direction by what it does to the logits. Corrections by networks that were evaluated are Broyden's
(Math. Comp. 19, 1965).

Several ranks hold slopes of some images each, where these are many (`distributed.slices`), and what
is known of the present network of all. All call the same methods, and get the same of each.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from deevo_ext.distributed.slices import Slices
from deevo_ext.search.cross_entropy import CrossEntropy
from deevo_ext.search.newton import least

# Bytes of float32 slopes that the fit works on at a time: on the CPU they stay in a core's cache,
# on a GPU they are enough to keep it busy.
_CACHED_BYTES, _CACHED_BYTES_OF_GPUS = 8 << 20, 256 << 20


class LinearModel:
    """z0 [n, classes] and slopes [d, n, classes] of the logits of n labelled images.

    z0: float32. labels: int64 [n]. directions: d, left out until they are put. dtype: what slopes
    are kept in, float32, bfloat16 or float16; all else is computed in float32. scale: float64 [d],
    the root mean square of each direction's slopes, 0 where it is left out. An image's columns are
    what is kept of its logits: here all of them, in `search.likeliest` fewer. slices: the images of
    which this rank has slopes: below, own images.
    """

    def __init__(
        self, z0: Tensor, labels: Tensor, directions: int, dtype: torch.dtype = torch.float32
    ) -> None:
        self.z0, self.labels = z0.contiguous(), labels.to(z0.device)
        self.own = self.labels  # the column of each image's class
        self.slices = Slices.of(len(z0), directions * self.z0.numel(), z0.device)
        self._dtype = dtype
        self._clear(directions)

    @property
    def classes(self) -> int:
        """The number of classes of `logits`."""
        return self.z0.shape[1]

    @property
    def present(self) -> Tensor:
        """The columns float32 [n, columns] of the network itself on own images."""
        return self.z0[self.slices.own]

    def columns(self, logits: Tensor, images: slice = slice(None)) -> Tensor:
        """Returns the columns [K, n, columns] of logits float32 [K, n, classes] near the network.

        To first order in what the logits differ by from the network's. images: whose they are.
        """
        return logits.to(self.z0)

    def slope(self, direction: int) -> Tensor:
        """Returns a direction's slopes on own images, as they are kept: float32 [n, columns]."""
        return self.slopes[direction].float()

    def put(self, slopes: Mapping[int, Tensor], least: float = 0.0) -> bool:
        """Gives directions their slopes on own images; says whether some are finite.

        slopes: float32 [n, columns]. A direction is left out where the root mean square on all
        images is not finite, 0, or less than `least`. A device is waited for once.
        """
        sizes = self.sizes_of(list(slopes.values()))
        for (direction, slope), size in zip(slopes.items(), sizes, strict=True):
            if 0.0 < size < torch.inf and size >= least:
                self.scale[direction] = size
                self._set(direction, slope / size)
            else:
                self.leave_out(direction)
        return any(map(math.isfinite, sizes))

    def sizes_of(self, columns: Sequence[Tensor]) -> list[float]:
        """Returns the root mean square on all images of each [n, columns] of own images."""
        squares = torch.stack([one.square().sum(dim=1, dtype=torch.float64) for one in columns])
        sums, _ = self.slices.added(squares, torch.zeros(0))
        return (sums / (len(self.labels) * columns[0].shape[1])).sqrt().tolist()

    @property
    def directions(self) -> int:
        """d, the number of directions, those included that are left out."""
        return len(self.slopes)

    def leave_out(self, direction: int) -> None:
        """Leaves a direction out: no step goes along it."""
        self.scale[direction] = 0.0
        self._set(direction, self.z0.new_zeros(()))

    def together(self, groups: Tensor) -> LinearModel:
        """Returns the model of steps that are equal within groups of directions.

        groups: int64 [d], each direction's of those of the model that is returned.
        """
        model = copy.copy(self)
        model._clear(int(groups.max()) + 1)
        for group in range(model.directions):
            total = torch.zeros_like(self.present)
            for k in (groups == group).nonzero().flatten().tolist():
                total += float(self.scale[k]) * self.slope(k)
            model.put({group: total})
        return model

    def at(self, logits: Tensor) -> LinearModel:
        """Returns the model with the same slopes from another network's logits [n, classes]."""
        model = copy.copy(self)
        model.z0 = logits.to(self.z0).contiguous()
        return model

    def step_of(self, q: Tensor) -> Tensor:
        """Returns the step C float64 [..., d] of scaled coordinates [..., d]."""
        used = self.scale > 0
        return torch.where(used, q.double().cpu() / self.scale.where(used, 1.0), 0.0)

    def coordinates_of(self, step: Tensor) -> Tensor:
        """Returns the scaled coordinates float64 [..., d] of a step [..., d]."""
        return step.double().cpu() * self.scale

    def logits(self, q: Tensor, images: slice | None = None) -> Tensor:
        """Returns logits float32 [P, n, classes] of scaled coordinates [P, d].

        images: some of own images, by default all of them.
        """
        images = self.slices.own if images is None else images
        return linear(self.z0[images], self._slopes_of(self.slopes, images), q)

    def losses_and_ranks(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Returns losses float32 [P, n] and ranks int32 [P, n] of q [P, d] on own images."""
        losses, ranks, _ = self._scores(q)
        return losses, ranks

    def losses_and_predictions(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Returns losses float32 [P, n] and predicted classes int32 [P, n], likewise."""
        losses, _, predicted = self._scores(q)
        return losses, predicted

    def _scores(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Losses, ranks and predicted classes [P, n] of q [P, d] on own images."""
        own = self.slices.own
        return self._operator(self.z0[own], self.slopes, self.own[own], q)

    @staticmethod
    def _operator(
        z0: Tensor, slopes: Tensor, labels: Tensor, q: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        count, images = len(q), len(z0)
        losses = torch.empty(count, images, device=z0.device)
        ranks = torch.empty(count, images, dtype=torch.int32, device=z0.device)
        predicted, probability = torch.empty_like(ranks), torch.empty_like(losses)
        torch.ops.deevo.linear_scores(
            z0,
            slopes,
            q.to(z0).contiguous(),
            labels,
            0.0,
            losses,
            ranks,
            predicted,
            probability,
        )
        return losses, ranks, predicted

    def correct(self, q: Tensor, logits: Tensor) -> None:
        """Makes the model give logits [n, classes] of own images for q [d], by the least change.

        Broyden's rank-one update: slopes += q / |q|^2 times what the model missed. Directions that
        are left out stay so, and logits that are not finite change nothing.
        """
        q = q.double().cpu() * (self.scale > 0)
        missed = torch.empty_like(self.present)
        for images in self.cached():
            held = self._held(images)
            afar = self._columns_afar(logits[held].to(self.z0), images)
            missed[held] = afar - self._columns_at(q, images)
        finite = self.slices.everywhere(bool(torch.isfinite(missed).all()))
        if float(q @ q) == 0.0 or not finite:
            return
        for k, share in enumerate((q / (q @ q)).tolist()):
            if share != 0.0:
                self._set(k, self.slope(k) + share * missed)

    def fit(
        self, ridge: float, start: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Returns the q float64 [d] of least mean cross-entropy plus ridge |q|^2.

        start: where the iterations begin, by default 0. weights: of the images, float32 [n], in
        place of equal ones.
        """
        n = len(self.z0)
        share = torch.full((n,), 1.0 / n) if weights is None else weights / weights.sum()
        share = share.to(self.z0)
        q = torch.zeros(self.directions, dtype=torch.float64) if start is None else start.clone()
        loss = CrossEntropy(self, share, ridge)
        return least(loss.value, loss.newton_step, q)

    def terms(self, images: slice) -> tuple[Tensor, Tensor]:
        """Returns some own images' logits and slopes whose softmax gives the loss, float32.

        Their shapes are [n, columns] and [d, n, columns].
        """
        return self.z0[images], self._slopes_of(self.slopes, images)

    def cached(self, images: slice | None = None) -> Iterator[slice]:
        """Yields own images, or some, slice by slice: float32 slopes that stay in a cache.

        A slice of the ranks' is cut by itself, so that its results' bits are the same on any rank.
        """
        held = _CACHED_BYTES if self.z0.device.type == "cpu" else _CACHED_BYTES_OF_GPUS
        size = max(1, held // (4 * max(1, self.directions) * self.z0.shape[1]))
        for part in self.slices.each() if images is None else [images]:
            for start in range(part.start, part.stop, size):
                yield slice(start, min(start + size, part.stop))

    def _clear(self, directions: int) -> None:
        """Leaves out all of so many directions."""
        n, columns = self.z0[self.slices.own].shape
        device = self.z0.device
        self.slopes = torch.zeros(directions, n, columns, dtype=self._dtype, device=device)
        self.scale = torch.zeros(directions, dtype=torch.float64)

    def _set(self, direction: int, slope: Tensor) -> None:
        """Keeps a direction's slopes [n, columns] of own images, or one number for all."""
        self.slopes[direction] = slope

    def _columns_at(self, q: Tensor, images: slice) -> Tensor:
        """The columns [n, columns] of q [d], by the model, on some of own images."""
        return linear(self.z0[images], self._slopes_of(self.slopes, images), q[None])[0]

    def _columns_afar(self, logits: Tensor, images: slice) -> Tensor:
        """The columns [n, columns] of images' logits that may lie far from the network's."""
        return logits

    def _slopes_of(self, slopes: Tensor, images: slice) -> Tensor:
        """Slopes of some of own images, float32; their bits are not to depend on where they lie.

        A product's last bits may depend on how its arguments lie in memory.
        """
        some = slopes[:, self._held(images)].float()
        return some if self.slices.whole else some.contiguous()

    def _held(self, images: slice) -> slice:
        """Where some of own images lie among all of them."""
        first = self.slices.own.start
        return slice(images.start - first, images.stop - first)


def linear(z0: Tensor, slopes: Tensor, q: Tensor) -> Tensor:
    """Returns z0 [n, columns] + q slopes, float32 [P, n, columns], of q [P, d]."""
    flat = slopes.flatten(1)
    return z0 + (q.to(flat) @ flat).view(len(q), *z0.shape)
