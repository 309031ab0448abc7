"""Attention within trees, one file a kernel: padded rows for small trees, blocks for large ones, FlexAttention on CUDA."""
