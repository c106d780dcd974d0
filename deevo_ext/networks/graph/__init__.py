"""From a module to its network graph: capture, patterns, fused layers."""
