"""The mathematics of DiffStride, written once against the Python array API.

To read it, in this order:

- `conventions`: which window a stride stands for, and which output size;
- `window`: the mask of a window, and the derivative of its edge;
- `bases`: the cosine tables of an axis, which no stride changes;
- `operators`: a matrix for each axis, made of mask and tables;
- `resample`: arrays multiplied by them, and the gradients;
- `convolution`: the same of what a convolution makes.

Before that, `arguments`, `settings`, `planning` and `plan` decide everything that needs no array;
`plan_cache` keeps it for a layer. `ops` and `kernels` are what a framework provides.
"""

from diffstride_core._version import __version__ as __version__
from diffstride_core.planning import NothingToCropWarning as NothingToCropWarning
