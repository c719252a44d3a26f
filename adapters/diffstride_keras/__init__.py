"""DiffStride for Keras 3, over its JAX and PyTorch backends: downsampling whose strides are learnt.

Importing it imports Keras, and with it the backend that Keras is set to: the environment variable
KERAS_BACKEND must name one of the two before.
"""

from diffstride_core import NothingToCropWarning as NothingToCropWarning
from diffstride_core import __version__ as __version__

# Before what imports Keras: it says what is missing where Keras cannot be imported.
from diffstride_keras import framework as framework
from diffstride_keras.layers import DiffStride2d as DiffStride2d
from diffstride_keras.training import UpdateSizes as UpdateSizes
from diffstride_keras.training import replan as replan
from diffstride_keras.training import stride_variables as stride_variables
