"""What the process imports from which ranks are forked."""

import torch.distributed.distributed_c10d  # noqa: F401

import deevo_ext  # noqa: F401
import support.recipe_runs  # noqa: F401
