"""DiffStride for CuPy: the functions and the layer of diffstride_numpy, on the GPU.

Strides are numbers or NumPy arrays, which need no transfer, or CuPy arrays. The values of CuPy
arrays are copied to the host once per call, unless the output's ``sizes`` are given. Nothing else
waits for the GPU. The package can be imported without a GPU; its functions and its layer then raise
RuntimeError.
"""

from diffstride_core import NothingToCropWarning as NothingToCropWarning
from diffstride_core import __version__ as __version__
from diffstride_cupy.functional import authors_strides as authors_strides
from diffstride_cupy.functional import complexity as complexity
from diffstride_cupy.functional import complexity_with_pullback as complexity_with_pullback
from diffstride_cupy.functional import conv_diff_stride as conv_diff_stride
from diffstride_cupy.functional import (
    conv_diff_stride_with_pullback as conv_diff_stride_with_pullback,
)
from diffstride_cupy.functional import diff_stride as diff_stride
from diffstride_cupy.functional import diff_stride_with_pullback as diff_stride_with_pullback
from diffstride_cupy.functional import output_sizes as output_sizes
from diffstride_cupy.functional import spectral_pool as spectral_pool
from diffstride_cupy.functional import spectral_pool_with_pullback as spectral_pool_with_pullback
from diffstride_cupy.functional import spectral_resize as spectral_resize
from diffstride_cupy.functional import (
    spectral_resize_with_pullback as spectral_resize_with_pullback,
)
from diffstride_cupy.modules import DiffStride as DiffStride
