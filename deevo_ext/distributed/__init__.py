"""A run's ranks: processes that hold the same members, evaluate shares, and agree on the rest."""
