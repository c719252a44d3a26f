"""The functions for PyTorch tensors."""

from diffstride_backends.functional import public
from diffstride_backends.torch_backend import FUNCTIONAL
from diffstride_backends.torch_backend import plain_autodiff as plain_autodiff

diff_stride = public(FUNCTIONAL.diff_stride, __name__)
conv_diff_stride = public(FUNCTIONAL.conv_diff_stride, __name__)
output_sizes = public(FUNCTIONAL.output_sizes, __name__)
spectral_resize = public(FUNCTIONAL.spectral_resize, __name__)
spectral_pool = public(FUNCTIONAL.spectral_pool, __name__)
complexity = public(FUNCTIONAL.complexity, __name__)
authors_strides = public(FUNCTIONAL.authors_strides, __name__)
