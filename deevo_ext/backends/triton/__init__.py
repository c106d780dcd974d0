"""The operators as Triton kernels, for CUDA devices where the extension was built without nvcc.

On CPU tensors they run in Triton's interpreter only (TRITON_INTERPRET=1), which is how they are
tested without a GPU. Needs the package `triton`, which torch's CUDA builds bring. plan and tell,
which move a few kilobytes, have no kernels: the compiled CPU backend serves them (`adaptation`).
"""

from deevo_ext.backends.triton.adaptation import plan, tell
from deevo_ext.backends.triton.commit import commit
from deevo_ext.backends.triton.compose import compose
from deevo_ext.backends.triton.fold import fold
from deevo_ext.backends.triton.head import head, loss_and_rank
from deevo_ext.backends.triton.linear_scores import linear_scores
from deevo_ext.backends.triton.trials import trials

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
