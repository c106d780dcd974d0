"""Registers the operators as `torch.ops.deevo.<name>`: those of a generation, `plan`, `trials`,
`tell` and `commit`, those of an evaluation, `fold`, `head` and `loss_and_rank`, and those of
recipes, `compose` and `linear_scores`.

Each file holds one operator's schema and what it demands of its arguments.
"""

from deevo_ext.ops import commit, compose, fold, head, linear_scores, plan, tell, trials

__all__ = ["commit", "compose", "fold", "head", "linear_scores", "plan", "tell", "trials"]
