"""The functions for NumPy arrays."""

from diffstride_backends.numpy_backend import FUNCTIONAL, WITH_PULLBACK

diff_stride = FUNCTIONAL.diff_stride
conv_diff_stride = FUNCTIONAL.conv_diff_stride
output_sizes = FUNCTIONAL.output_sizes
spectral_resize = FUNCTIONAL.spectral_resize
spectral_pool = FUNCTIONAL.spectral_pool
complexity = FUNCTIONAL.complexity
authors_strides = FUNCTIONAL.authors_strides

# The same functions, which return (value, pullback): pullback(g) is the tuple of the gradients of
# the array arguments for the cotangent g, for diff_stride (dx, dstrides).
diff_stride_with_pullback = WITH_PULLBACK.diff_stride
conv_diff_stride_with_pullback = WITH_PULLBACK.conv_diff_stride
spectral_resize_with_pullback = WITH_PULLBACK.spectral_resize
spectral_pool_with_pullback = WITH_PULLBACK.spectral_pool
complexity_with_pullback = WITH_PULLBACK.complexity
