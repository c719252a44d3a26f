"""Plans and masks for the tests of the core."""

import numpy as np
from diffstride_backends import registry

from diffstride_core.conventions import CONVENTIONS
from diffstride_core.plan import AxisPlan, Bounds
from diffstride_core.planning import (
    plan_diff_stride,
)
from diffstride_core.settings import make_settings

FRAMEWORKS = ("numpy", "torch")
CLEAN = ("paper", "nominal")
SMOOTHNESS = {
    "paper": (0.5, 1.0, 2.5, 4.0, 8.0),
    "nominal": (0.05, 0.25, 0.6, 1.0),
    "tensorflow": (1.0, 4.0, 6.5),
}


numpy = registry.get("numpy").functional
numpy_with_pullback = registry.get("numpy").with_pullback
OPS = registry.get("numpy").backend


def make_plan(sizes, strides, *, output_sizes=None, axes=None, **options):
    axes = tuple(range(-len(sizes), 0)) if axes is None else axes
    return plan_diff_stride(
        make_settings(axes=axes, **options),
        axes,
        tuple(sizes),
        None if strides is None else tuple(strides),
        shared=strides is not None and len(strides) == 1,
        output_sizes=output_sizes,
    )


def axis_mask(convention, size, stride, smoothness, *, is_last=False, bounds=None, ops=OPS):
    """Return the mask of an uncropped axis on the host."""
    axis = AxisPlan(-1, size, size, is_last, Bounds() if bounds is None else bounds)
    stride = ops.from_host(np.array(stride), "float64")
    mask = CONVENTIONS[convention].mask(ops, axis, smoothness, stride, stride)
    return ops.to_host(mask.value), ops.to_host(mask.dmask)
