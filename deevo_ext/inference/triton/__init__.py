"""K networks at once on Triton kernels of our own: convolutions and pools, channels last.

`convolution.conv2d` and the functions of `pooling` take activations [K, N, H, W, C]; `fold` makes
the weights that they read. Without a GPU they run in Triton's interpreter (TRITON_INTERPRET=1),
in float32 and float16 only.
"""
