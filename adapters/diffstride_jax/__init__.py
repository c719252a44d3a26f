"""DiffStride for JAX: downsampling whose strides are learnt.

Under `jax.jit` the output's size must be known before the strides are: compute it outside with
`output_sizes` and pass it as ``sizes``. A new size is a new compilation, the same size none. The
modules in `diffstride_jax.nnx_modules` and `diffstride_jax.equinox_modules` do this by themselves.
"""

from diffstride_core import NothingToCropWarning as NothingToCropWarning
from diffstride_core import __version__ as __version__
from diffstride_jax.functional import authors_strides as authors_strides
from diffstride_jax.functional import complexity as complexity
from diffstride_jax.functional import conv_diff_stride as conv_diff_stride
from diffstride_jax.functional import diff_stride as diff_stride
from diffstride_jax.functional import output_sizes as output_sizes
from diffstride_jax.functional import plain_autodiff as plain_autodiff
from diffstride_jax.functional import spectral_pool as spectral_pool
from diffstride_jax.functional import spectral_resize as spectral_resize
