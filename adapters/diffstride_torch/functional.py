"""The functions for PyTorch tensors."""

from diffstride_backends.functional import public
from diffstride_backends.torch_backend import FUNCTIONAL, check_not_traced
from diffstride_backends.torch_backend import plain_autodiff as plain_autodiff

diff_stride = public(FUNCTIONAL.diff_stride, __name__, first=check_not_traced)
conv_diff_stride = public(FUNCTIONAL.conv_diff_stride, __name__, first=check_not_traced)
output_sizes = public(FUNCTIONAL.output_sizes, __name__)
spectral_resize = public(FUNCTIONAL.spectral_resize, __name__, first=check_not_traced)
spectral_pool = public(FUNCTIONAL.spectral_pool, __name__, first=check_not_traced)
complexity = public(FUNCTIONAL.complexity, __name__, first=check_not_traced)
authors_strides = public(FUNCTIONAL.authors_strides, __name__)
