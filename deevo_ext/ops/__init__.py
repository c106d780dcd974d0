"""Registers the four operators as `torch.ops.deevo.plan`, `trials`, `tell` and `commit`.

Each file holds one operator's schema and what it demands of its arguments.
"""

from deevo_ext.ops import commit, plan, tell, trials

__all__ = ["commit", "plan", "tell", "trials"]
