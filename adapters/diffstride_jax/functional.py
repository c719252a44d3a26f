"""The functions for JAX arrays, concrete or traced."""

from diffstride_backends.jax_backend import FUNCTIONAL
from diffstride_backends.jax_backend import plain_autodiff as plain_autodiff

diff_stride = FUNCTIONAL.diff_stride
conv_diff_stride = FUNCTIONAL.conv_diff_stride
output_sizes = FUNCTIONAL.output_sizes
spectral_resize = FUNCTIONAL.spectral_resize
spectral_pool = FUNCTIONAL.spectral_pool
complexity = FUNCTIONAL.complexity
authors_strides = FUNCTIONAL.authors_strides
