"""The linear model of a network with many classes: an image's likeliest ones, and the rest as one.

A network of a thousand classes takes few of them seriously on an image. Of each image the model
keeps the logits of the true class and of the L others that the present network w finds likeliest;
all others together are the rest, whose logit is log sum exp of theirs and whose slopes are the mean
of theirs, weighted by w's odds. So the cross-entropy at w is that of all classes, and so are its
first derivatives.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from deevo_ext.search.linear_model import LinearModel

LIKELIEST = 20
"""L: classes that an image keeps beside its own."""
ALL = 100
"""Up to so many classes an image keeps all."""


def likeliest_of(classes: int) -> int | None:
    """Returns how many classes an image keeps beside its own, None for all."""
    return None if classes <= ALL else LIKELIEST


def bytes_of_image(directions: int, classes: int, likeliest: int | None, slope: int) -> int:
    """Returns the bytes of an image in a linear model whose slopes have `slope` bytes each."""
    if likeliest is None:
        return directions * classes * slope
    return directions * ((likeliest + 1) * slope + 4) + 4 * classes


class LikeliestModel(LinearModel):
    """A linear model of the logits of n images' likeliest classes [d, n, L + 1], and of the rest.

    z0: float32 [n, classes], the logits of w. labels: int64 [n]. directions: d. likeliest: L, at
    most classes - 2. dtype: of the kept classes' slopes; those of the rest are float32.

    An image's columns are the logits of the classes that it keeps, in ascending order, then the
    logit of the rest less the true class's: so a loss is one of `linear_scores` on the kept
    classes and one more product. The rest takes part in losses alone: no class of it is ranked
    above the true one. At w, ranks below L are exact, and those from L on are at least L.
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
        self._rest = self._columns_afar(z0)[:, -1]

    @property
    def classes(self) -> int:
        """The number of classes of `logits`."""
        return self._all.shape[1]

    @property
    def present(self) -> Tensor:
        """The columns float32 [n, columns] of the network itself."""
        return torch.cat([self.z0, self._rest[:, None]], dim=1)

    def columns(self, logits: Tensor) -> Tensor:
        """Returns the columns [K, n, columns] of logits float32 [K, n, classes] near the network.

        To first order in what the logits differ by from the network's.
        """
        odds = self._others(self._all).softmax(dim=1)
        columns = logits.new_empty(len(logits), len(self.z0), self.z0.shape[1] + 1)
        for one, into in zip(logits.to(self.z0), columns, strict=True):
            moved = one - self._all
            into[:, :-1] = one.gather(1, self.kept)
            into[:, -1] = self._rest + (moved * odds).sum(dim=1)
            into[:, -1] -= moved.gather(1, self.labels[:, None])[:, 0]
        return columns

    def slope(self, direction: int) -> Tensor:
        """Returns a direction's slopes as they are kept, scaled: float32 [n, columns]."""
        rest = self._rest_slopes[direction, :, None]
        return torch.cat([self.slopes[direction].float(), rest], dim=1)

    def logits(self, q: Tensor, images: slice = slice(None)) -> Tensor:
        """Returns logits float32 [P, n, classes] of scaled coordinates [P, d], on some images.

        The classes of the rest move by one amount, and keep their odds among each other.
        """
        kept, z0, own = self._kept(q, images), self._all[images], self.own[images, None]
        own_moved = kept.gather(2, own.expand(len(q), -1, 1)) - self.z0[images].gather(1, own)
        moved = (q.to(self._rest_slopes) @ self._rest_slopes[:, images])[..., None]
        logits = z0 + (moved + own_moved)
        return logits.scatter_(2, self.kept[images].expand(len(q), -1, -1), kept)

    def _scores(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Losses, ranks and predicted classes [P, n] of q [P, d]; none of the rest is predicted."""
        losses, ranks, places = super()._scores(q)
        rest = self._rest + q.to(self._rest_slopes) @ self._rest_slopes
        losses += softplus(rest - losses)
        broken = ~torch.isfinite(losses)
        kept = self.kept.int().expand(len(q), -1, -1)
        predicted = kept.gather(2, places.clamp_min(0).long()[..., None])[..., 0]
        return (
            losses.masked_fill_(broken, torch.inf),
            ranks.masked_fill_(broken, self.classes),
            predicted.masked_fill_(broken, -1),
        )

    def _clear(self, directions: int) -> None:
        """Leaves out all of so many directions."""
        super()._clear(directions)
        self._rest_slopes = torch.zeros(directions, len(self.z0), device=self.z0.device)

    def _set(self, direction: int, slope: Tensor) -> None:
        """Keeps a direction's slopes [n, columns], or one number for all."""
        slope = slope.expand(len(self.z0), self.z0.shape[1] + 1)
        self.slopes[direction], self._rest_slopes[direction] = slope[:, :-1], slope[:, -1]

    def _columns_at(self, q: Tensor, images: slice) -> Tensor:
        """The columns [n, columns] of q [d], by the model."""
        slopes = self._rest_slopes[:, images]
        rest = self._rest[images] + q.to(slopes) @ slopes
        return torch.cat([self._kept(q[None], images)[0], rest[:, None]], dim=1)

    def _columns_afar(self, logits: Tensor) -> Tensor:
        """The columns [n, columns] of logits [n, classes] that may lie far from the network's."""
        rest = self._others(logits).logsumexp(dim=1)
        rest -= logits.gather(1, self.labels[:, None])[:, 0]
        return torch.cat([logits.gather(1, self.kept), rest[:, None]], dim=1)

    def _terms(self, images: slice) -> tuple[Tensor, Tensor]:
        """Logits [n, columns] and slopes [d, n, columns], float32, whose softmax gives the loss."""
        z0, slopes = self.z0[images], self.slopes[:, images].float()
        own = self.own[images, None]
        rest = self._rest[images, None] + z0.gather(1, own)
        rest_slopes = self._rest_slopes[:, images, None]
        rest_slopes = rest_slopes + slopes.gather(2, own.expand(len(slopes), -1, 1))
        return torch.cat([z0, rest], dim=1), torch.cat([slopes, rest_slopes], dim=2)

    def _others(self, logits: Tensor) -> Tensor:
        """Logits [n, classes] with -inf for the classes that are kept."""
        return logits.scatter(1, self.kept, -torch.inf)
