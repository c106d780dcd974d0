"""Scores of networks: what is measured, on which images, and when trials are dropped."""
