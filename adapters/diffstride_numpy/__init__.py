"""DiffStride for NumPy: for teaching, debugging and checking other implementations."""

from diffstride_core import NothingToCropWarning as NothingToCropWarning
from diffstride_core import __version__ as __version__
from diffstride_numpy.explain import AxisExplanation as AxisExplanation
from diffstride_numpy.explain import Explanation as Explanation
from diffstride_numpy.explain import explain as explain
from diffstride_numpy.functional import authors_strides as authors_strides
from diffstride_numpy.functional import complexity as complexity
from diffstride_numpy.functional import complexity_with_pullback as complexity_with_pullback
from diffstride_numpy.functional import conv_diff_stride as conv_diff_stride
from diffstride_numpy.functional import (
    conv_diff_stride_with_pullback as conv_diff_stride_with_pullback,
)
from diffstride_numpy.functional import diff_stride as diff_stride
from diffstride_numpy.functional import diff_stride_with_pullback as diff_stride_with_pullback
from diffstride_numpy.functional import output_sizes as output_sizes
from diffstride_numpy.functional import spectral_pool as spectral_pool
from diffstride_numpy.functional import spectral_pool_with_pullback as spectral_pool_with_pullback
from diffstride_numpy.functional import spectral_resize as spectral_resize
from diffstride_numpy.functional import (
    spectral_resize_with_pullback as spectral_resize_with_pullback,
)
from diffstride_numpy.modules import DiffStride as DiffStride
