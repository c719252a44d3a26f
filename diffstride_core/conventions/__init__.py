r"""The conventions: the window that belongs to a stride S, a size N and a smoothness.

A convention is one object. It owns the bounds of the stride, the output size, the mask and the
mask's derivative. The engines see bins and masks, never a convention. To add a convention, subclass
`Convention` in a new file, and add an instance to `CONVENTIONS`.
"""

from diffstride_core.conventions.convention import Convention as Convention
from diffstride_core.conventions.nominal import Nominal as Nominal
from diffstride_core.conventions.paper import Paper as Paper
from diffstride_core.conventions.tensorflow import TensorFlow as TensorFlow

CONVENTIONS: dict[str, Convention] = {
    convention.name: convention for convention in (Nominal(), Paper(), TensorFlow())
}
"""All conventions, by name."""

DEFAULT_CONVENTION = "nominal"
