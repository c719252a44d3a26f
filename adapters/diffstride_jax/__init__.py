"""DiffStride for JAX: downsampling with learnt strides.

Under `jax.jit`, the output size must be known before the strides are. Compute it outside with
`output_sizes`, and pass it as ``sizes``. A new size causes a compilation, the same size does not.
The modules in `diffstride_jax.nnx_modules` and `diffstride_jax.equinox_modules` do this themselves.
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
