"""The linear model of a network with many classes: an image's likeliest ones, and a draw of others.

A network of a thousand classes takes few of them seriously on an image. Of each image the model
keeps the logits of the true class and of the L others that the present network w finds likeliest.
All others together are the rest: of them S are drawn by w's odds, and stand for all. Their logits
are shifted by what makes the cross-entropy and its first derivatives at w those of all classes; its
second derivatives are those of all in the mean of many images. One column for the rest would have
the first derivatives, too, but not the second: it promises gains that do not come.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from deevo_ext.search.linear_model import LinearModel, linear

LIKELIEST = 20
"""L: classes that an image keeps beside its own."""
DRAWN = 10
"""S: classes of the rest that stand for all of it."""
ALL = 100
"""Up to so many classes an image keeps all."""


def likeliest_of(classes: int) -> int | None:
    """Returns how many classes an image keeps beside its own, None for all."""
    return None if classes <= ALL else LIKELIEST


def bytes_of_image(directions: int, classes: int, likeliest: int | None, slope: int) -> int:
    """Returns the bytes of an image in a linear model whose slopes have `slope` bytes each."""
    if likeliest is None:
        return directions * classes * slope
    return directions * (likeliest + DRAWN + 2) * slope + 4 * classes


class LikeliestModel(LinearModel):
    """A linear model of the logits of n images' likeliest classes [d, n, L + 1], and of the rest.

    z0: float32 [n, classes], the logits of w. labels: int64 [n]. directions: d. likeliest: L, at
    most classes - 2. dtype: of the slopes.

    An image's columns are the logits of the classes that it keeps, in ascending order, then those
    of the rest less the true class's: so a loss is made of two results of `linear_scores`. The rest
    takes part in losses alone: no class of it is ranked above the true one, or predicted. At w,
    ranks below L are exact, and those from L on are L.
    """

    def __init__(
        self,
        z0: Tensor,
        labels: Tensor,
        directions: int,
        likeliest: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        true = labels.to(z0.device)[:, None]
        order = z0.scatter(1, true, -torch.inf).argsort(dim=1, descending=True, stable=True)
        self.kept = torch.cat([true, order[:, :likeliest]], dim=1).sort(dim=1).values
        super().__init__(z0.gather(1, self.kept), labels, directions, dtype)
        self.own = (self.kept == true).int().argmax(dim=1)
        self._all = z0
        self._drawn = _drawn(_odds(z0, self.kept))
        # Column 0 is the true class, less itself.
        self._rest = torch.zeros(len(z0), 1 + DRAWN, device=z0.device)
        self._rest[:, 1:] = (self._rest_logit(z0) - math.log(DRAWN))[:, None]

    @property
    def classes(self) -> int:
        """The number of classes of `logits`."""
        return self._all.shape[1]

    @property
    def present(self) -> Tensor:
        """The columns float32 [n, columns] of the network itself on own images."""
        own = self.slices.own
        return torch.cat([self.z0[own], self._rest[own, 1:]], dim=1)

    def columns(self, logits: Tensor, images: slice = slice(None)) -> Tensor:
        """Returns the columns [K, n, columns] of logits float32 [K, n, classes] near the network.

        To first order in what the logits differ by from the network's. images: whose they are.
        """
        all_, rest, labels = self._all[images], self._rest[images, 1:], self.labels[images, None]
        kept = self.kept[images]
        odds, near = _odds(all_, kept), []
        for one in logits.to(self.z0):
            moved = one - all_
            drawn = moved.gather(1, self._drawn[images])
            # S drawn ones differ from their mean by less than from that of all.
            drawn = (drawn - drawn.mean(dim=1, keepdim=True)) * (DRAWN / (DRAWN - 1)) ** 0.5
            mean = (moved * odds).sum(dim=1, keepdim=True) - moved.gather(1, labels)
            near.append(torch.cat([one.gather(1, kept), rest + drawn + mean], 1))
        return torch.stack(near)

    def at(self, logits: Tensor) -> LikeliestModel:
        """Returns the model with the same slopes from another network's logits [n, classes]."""
        logits = logits.to(self.z0)
        columns, width = self._columns_afar(logits, slice(0, len(logits))), self.z0.shape[1]
        model = copy.copy(self)
        model.z0, model._all = columns[:, :width].contiguous(), logits
        model._rest = torch.cat([self._rest[:, :1], columns[:, width:]], dim=1)
        return model

    def slope(self, direction: int) -> Tensor:
        """Returns a direction's slopes on own images, as they are kept: float32 [n, columns]."""
        both = [self.slopes[direction], self._rest_slopes[direction, :, 1:]]
        return torch.cat(both, dim=1).float()

    def logits(self, q: Tensor, images: slice | None = None) -> Tensor:
        """Returns logits float32 [P, n, classes] of scaled coordinates [P, d].

        The classes of the rest move by one amount, and keep their odds among each other. images:
        some of own images, by default all of them.
        """
        images = self.slices.own if images is None else images
        kept = linear(self.z0[images], self._slopes_of(self.slopes, images), q)
        own = self.own[images, None]
        moved = kept.gather(2, own.expand(len(q), -1, 1)) - self.z0[images].gather(1, own)
        rest = self._rest[images]
        rest_slopes = self._slopes_of(self._rest_slopes, images)
        after = linear(rest, rest_slopes, q)[..., 1:].logsumexp(2, keepdim=True)
        moved = moved + (after - rest[:, 1:].logsumexp(1, keepdim=True))
        logits = self._all[images] + moved
        return logits.scatter_(2, self.kept[images].expand(len(q), -1, -1), kept)

    def _scores(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Losses, ranks and predicted classes [P, n] of q [P, d]; none of the rest is predicted."""
        losses, ranks, places = super()._scores(q)
        own = self.slices.own
        first = torch.zeros_like(self.own[own])
        more = self._operator(self._rest[own], self._rest_slopes, first, q)[0]
        # By slices: where a row begins in memory decides the last bits of such functions.
        on_cpu = losses.device.type == "cpu"
        for images in self.slices.each() if on_cpu else [own]:
            kept_loss, rest = losses[:, self._held(images)], more[:, self._held(images)]
            # exp(loss) - 1 is the sum of what the rest has, less the true class's logit.
            kept_loss.copy_(torch.logaddexp(kept_loss, rest + torch.log(-torch.expm1(-rest))))
        broken = ~torch.isfinite(losses)
        kept = self.kept[own].int().expand(len(q), -1, -1)
        predicted = kept.gather(2, places.clamp_min(0).long()[..., None])[..., 0]
        return (
            losses.masked_fill_(broken, torch.inf),
            ranks.masked_fill_(broken, self.classes),
            predicted.masked_fill_(broken, -1),
        )

    def terms(self, images: slice) -> tuple[Tensor, Tensor]:
        """Returns some own images' logits and slopes whose softmax gives the loss, float32.

        Their shapes are [n, columns] and [d, n, columns].
        """
        z0, slopes = super().terms(images)
        own = self.own[images, None]
        rest = self._rest[images, 1:] + z0.gather(1, own)
        rest_slopes = self._slopes_of(self._rest_slopes[..., 1:], images)
        rest_slopes = rest_slopes + slopes.gather(2, own.expand(len(slopes), -1, 1))
        return torch.cat([z0, rest], dim=1), torch.cat([slopes, rest_slopes], dim=2)

    def _clear(self, directions: int) -> None:
        """Leaves out all of so many directions."""
        super()._clear(directions)
        self._rest_slopes = self.slopes.new_zeros(directions, self.slopes.shape[1], 1 + DRAWN)

    def _set(self, direction: int, slope: Tensor) -> None:
        """Keeps a direction's slopes [n, columns] of own images, or one number for all."""
        width = self.z0.shape[1]
        slope = slope.expand(self.slopes.shape[1], width + DRAWN)
        self.slopes[direction] = slope[:, :width]
        self._rest_slopes[direction, :, 1:] = slope[:, width:]

    def _columns_at(self, q: Tensor, images: slice) -> Tensor:
        """The columns [n, columns] of q [d], by the model, on some of own images."""
        kept = super()._columns_at(q, images)
        rest_slopes = self._slopes_of(self._rest_slopes, images)
        rest = linear(self._rest[images], rest_slopes, q[None])[0]
        return torch.cat([kept, rest[:, 1:]], dim=1)

    def _columns_afar(self, logits: Tensor, images: slice) -> Tensor:
        """The columns [n, columns] of images' logits that may lie far from the network's."""
        columns = self.columns(logits[None], images)[0]
        rest = columns[:, self.z0.shape[1] :]
        rest += (self._rest_logit(logits, images) - rest.logsumexp(dim=1))[:, None]
        return columns

    def _rest_logit(self, logits: Tensor, images: slice = slice(None)) -> Tensor:
        """Log sum exp of the rest, less the true class's logit, [n], of images' logits."""
        rest = logits.scatter(1, self.kept[images], -torch.inf).logsumexp(dim=1)
        return rest - logits.gather(1, self.labels[images, None])[:, 0]


def _odds(logits: Tensor, kept: Tensor) -> Tensor:
    """The odds of the rest's classes among each other [n, classes], 0 for those kept."""
    return logits.scatter(1, kept, -torch.inf).softmax(dim=1)


def _drawn(odds: Tensor) -> Tensor:
    """Draws S classes by odds [n, classes], int64 [n, S]: systematically, each image from its own.

    Where an image begins follows the golden section: the images' beginnings are evenly spread.
    """
    ends = odds.double().cumsum(dim=1)
    begins = torch.arange(len(odds), dtype=torch.float64, device=odds.device) * 0.6180339887498949
    at = (torch.arange(DRAWN, device=odds.device) + (begins % 1.0)[:, None]) / DRAWN
    found = torch.searchsorted(ends, at * ends[:, -1:], right=True)
    last = (odds > 0).int().cumsum(dim=1).argmax(dim=1, keepdim=True)
    return torch.minimum(found, last)
