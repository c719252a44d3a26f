"""DiffStride for Keras 3 with its JAX and PyTorch backends: downsampling with learnt strides.

Importing this package imports Keras and the backend that Keras is set to. The environment variable
KERAS_BACKEND must name one of the two backends before that.
"""

from diffstride_core import NothingToCropWarning as NothingToCropWarning
from diffstride_core import __version__ as __version__

# First, since it says what is missing if Keras cannot be imported.
from diffstride_keras import framework as framework
from diffstride_keras.layers import DiffStride2d as DiffStride2d
from diffstride_keras.training import UpdateSizes as UpdateSizes
from diffstride_keras.training import replan as replan
from diffstride_keras.training import stride_variables as stride_variables
