"""The specification: every operator in plain Python, NumPy and torch, written to be read.

The other backends must give the same bits: see docs/contract.md.
"""

from deevo_ext.backends.reference.commit import commit
from deevo_ext.backends.reference.compose import compose
from deevo_ext.backends.reference.fold import fold
from deevo_ext.backends.reference.head import head, loss_and_rank
from deevo_ext.backends.reference.linear_scores import linear_scores
from deevo_ext.backends.reference.plan import plan
from deevo_ext.backends.reference.tell import tell
from deevo_ext.backends.reference.trials import trials

__all__ = [
    "commit",
    "compose",
    "fold",
    "head",
    "linear_scores",
    "loss_and_rank",
    "plan",
    "tell",
    "trials",
]
