"""The functions for CuPy arrays."""

from diffstride_backends.cupy_backend import FUNCTIONAL, WITH_PULLBACK
from diffstride_backends.functional import public

diff_stride = public(FUNCTIONAL.diff_stride, __name__)
conv_diff_stride = public(FUNCTIONAL.conv_diff_stride, __name__)
output_sizes = public(FUNCTIONAL.output_sizes, __name__)
spectral_resize = public(FUNCTIONAL.spectral_resize, __name__)
spectral_pool = public(FUNCTIONAL.spectral_pool, __name__)
complexity = public(FUNCTIONAL.complexity, __name__)
authors_strides = public(FUNCTIONAL.authors_strides, __name__)

# The same functions, which return (value, pullback).
diff_stride_with_pullback = public(WITH_PULLBACK.diff_stride, __name__, with_pullback=True)
conv_diff_stride_with_pullback = public(
    WITH_PULLBACK.conv_diff_stride, __name__, with_pullback=True
)
spectral_resize_with_pullback = public(WITH_PULLBACK.spectral_resize, __name__, with_pullback=True)
spectral_pool_with_pullback = public(WITH_PULLBACK.spectral_pool, __name__, with_pullback=True)
complexity_with_pullback = public(WITH_PULLBACK.complexity, __name__, with_pullback=True)
