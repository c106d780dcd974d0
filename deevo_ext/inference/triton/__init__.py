"""Convolutions and pools of K networks at once, channels last, as Triton kernels of our own.

The operator `fold` makes the weights that `convolution.conv2d` reads; the activations of K networks
[K, N, H, W, C] are K N images to `pooling.pool2d`. Without a GPU both run in Triton's interpreter
(TRITON_INTERPRET=1), in float32 and float16 only.
"""
