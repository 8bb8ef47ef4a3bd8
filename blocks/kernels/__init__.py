"""Triton kernels. Modules here import triton, so that only who launches a kernel may import them."""
