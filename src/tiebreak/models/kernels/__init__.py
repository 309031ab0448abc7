"""Attention within trees, a file a kernel: padded rows for small trees, blocks for large ones, and FlexAttention."""
