"""A run: evolution with validation, its journal, its replay and the comparison that judges it."""
