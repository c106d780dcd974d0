"""The population: checkpoints read into rows, and rows turned back into networks."""
