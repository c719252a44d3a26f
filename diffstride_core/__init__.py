"""The mathematics of DiffStride, written once against the Python array API.

Read the modules in this order:

- `conventions`: the window and the output size that belong to a stride;
- `window`: the mask of a window, and the derivative of its edge;
- `bases`: the cosine tables of an axis, which do not depend on the stride;
- `operators`: one matrix per axis, made from mask and tables;
- `resample`: the products of arrays and these matrices, and the gradients;
- `convolution`: the same for the output of a convolution.

Before any of these run, `arguments`, `settings`, `planning` and `plan` decide everything that needs
no array. `plan_cache` keeps the plans of a layer. `ops` and `kernels` define what a framework
provides.
"""

from diffstride_core._version import __version__ as __version__
from diffstride_core.planning import NothingToCropWarning as NothingToCropWarning
