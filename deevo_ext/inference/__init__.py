"""The Triton kernels of networks."""
