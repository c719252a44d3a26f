"""Show that the tests notice when a single detail of the operator is wrong.

Usage: ``python conformance_tests/mutations.py [--only NAME] [--list] [--jobs N] [--report FILE]``

The working tree is copied to a temporary folder. There one detail after another is changed, the
tests are run until the first fails, and the change is taken back. A mutation that no test notices
has survived: the tests have a gap.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[1]
TESTS_FOLDER = "conformance_tests/tests"

# Folders and files; those of PyTorch's that take longest are left out.
CORE = "core"
GOLDEN = "backends/test_golden.py"
TORCH = "torch/test_derivatives.py"
TORCH_CONVOLUTION = "torch/test_conv_function.py"
MODULES = "torch/test_module_plans.py"
NUMPY = "numpy"
PROPERTIES = "backends/test_properties.py"
DETAILS = "core/test_details.py"
CONFORMANCE = "backends/test_conformance.py"
JAX = "jax/test_functions.py"
TESTS = (
    CORE, GOLDEN, TORCH, TORCH_CONVOLUTION, MODULES, NUMPY, PROPERTIES, CONFORMANCE, JAX,
    "torch/test_arrays.py", "torch/test_conv_function_arrays.py", "torch/test_conv_modules.py",
    "torch/test_conv_placement.py", "torch/test_module_parameters.py",
    "torch/test_precision_and_layouts.py", "torch/test_projection.py", "torch/test_transforms.py",
)  # fmt: skip

BASES = "diffstride_core/bases.py"
BLOCKS = "diffstride_core/blocks.py"
COMPLEXITY = "diffstride_core/complexity.py"
CONVENTIONS = "diffstride_core/conventions"
CONVOLUTION = "diffstride_core/convolution"
FUSED = "diffstride_core/convolution/fused.py"
PLAN = "diffstride_core/plan.py"
PLAN_CACHE = "diffstride_core/plan_cache.py"
PLANNING = "diffstride_core/planning.py"
OPERATORS = "diffstride_core/operators.py"
RESAMPLE = "diffstride_core/resample.py"
SPECTRUM = "diffstride_core/spectrum.py"
WINDOW = "diffstride_core/window.py"
ARGUMENTS = "diffstride_core/arguments.py"
HOST = "diffstride_core/host.py"
OPS = "diffstride_core/ops.py"
PROTOCOL = "backends/diffstride_backends/protocol.py"
PREPARE = "backends/diffstride_backends/prepare.py"
JAX_BACKEND = "backends/diffstride_backends/jax_backend.py"
TORCH_BACKEND = "backends/diffstride_backends/torch_backend.py"
TORCH_PRIVATE = "backends/diffstride_backends/torch_private.py"


@dataclass(frozen=True, slots=True)
class Mutation:
    """One wrong detail.

    Attributes
    ----------
    detail : str
        What the numerical contract calls it.
    name : str
        Unique.
    file : str
        From the root of the repository.
    old, new : str
        The text that is replaced, which must occur exactly once, and what replaces it.
    why : str
        The rule that is broken then.
    first : str
        The test file that most likely notices; the others follow.
    """

    detail: str
    name: str
    file: str
    old: str
    new: str
    why: str
    first: str


# fmt: off
_TABLE = (
    ("tie rule", WINDOW, CORE, (
        ("tie-at-one-from-the-left",
         "v <= 1 + tie", "v <= 1 - tie",
         "a bin on v = 1 has the ramp's derivative"),
        ("tie-at-zero-from-the-left",
         "(v > tie)", "(v > -tie)",
         "a bin on v = 0 has no derivative"),
        ("tie-left-to-rounding",
         "(v > tie) & (v <= 1 + tie)", "(v > 0) & (v <= 1)",
         "rounding must not decide ties"),
    )),
    ("tie rule", WINDOW, DETAILS, (
        ("tie-lower-end-included",
         "(v > tie)", "(v >= tie)",
         "the shifted ramp is open at its lower end"),
        ("tie-upper-end-left-out",
         "(v <= 1 + tie)", "(v < 1 + tie)",
         "the shifted ramp is closed at its upper end"),
        ("tie-tolerance-wide",
         "tie = 1e-4", "tie = 1e-3",
         "bins further than 1e-4 from a corner are no ties"),
        ("tie-tolerance-narrow",
         "tie = 1e-4", "tie = 1e-7",
         "bins within 1e-4 of a corner are ties"),
    )),
    ("mask", WINDOW, CORE, (
        ("slope-outside-the-ramp",
         "dmask=xp.where(in_ramp, dv, xp.zeros_like(v))", "dmask=dv + xp.zeros_like(v)",
         "bins that are passed or cut whole have no derivative"),
        ("autodiff-outside-the-ramp",
         "clamp(ops, v, 0.0, 1.0), v, in_ramp)", "clamp(ops, v, 0.0, 1.0), v)",
         "automatic differentiation sees the same slope"),
    )),
    ("straight-through bound", WINDOW, TORCH, (
        ("gradient-stops-at-the-bounds",
         "return with_derivative_of(ops, bounded, stride)", "return bounded",
         "automatic differentiation sees the same slope outside the bounds"),
    )),
    ("straight-through bound", WINDOW, CORE, (
        ("lower-bound-wins",
         "    raised = xp.where(array < lower, xp.full_like(array, lower), array)\n"
         "    return xp.where(raised > upper, xp.full_like(array, upper), raised)",
         "    cut = xp.where(array > upper, xp.full_like(array, upper), array)\n"
         "    return xp.where(cut < lower, xp.full_like(array, lower), cut)",
         "where the bounds cross, the upper one wins"),
        ("floor-not-applied",
         "max(bounds.floor, bounds.lower)", "bounds.lower",
         "the mask uses no stride below the floor"),
    )),
    ("straight-through bound", PLAN, CORE, (
        ("lower-bound-wins-on-the-host",
         "min(max(stride, self.floor, self.lower), self.upper)",
         "max(min(stride, self.upper), self.floor, self.lower)",
         "where the bounds cross, the upper one decides the size too"),
    )),
    ("straight-through bound", CONVENTIONS, CORE, (
        ("slope-at-the-parameter",
         "smoothness * used**2", "smoothness * stride**2",
         "the derivative is that at the bounded value"),
        ("user-limit-above-half-the-size",
         "min(upper, size / 2)", "upper",
         "no limit of the user's lifts the bound N/2"),
    )),
    ("straight-through bound", CONVENTIONS, CONFORMANCE, (
        ("upper-bound-below-one",
         "upper=max(1.0, size / 2 if upper is None else min(upper, size / 2)),",
         "upper=size / 2 if upper is None else min(upper, size / 2),",
         "no stride is below 1, be the axis one sample long"),
    )),
    ("offset", CONVENTIONS, CORE, (
        ("offset-on-every-axis",
         "+ float(axis.is_last) - k", "+ 1.0 - k",
         "o = 1 holds on the last axis alone"),
        ("offset-nowhere",
         "+ float(axis.is_last) - k", "- k",
         "o = 1 on the last axis"),
        ("offset-in-the-size",
         "q = self.cutoff(size, smoothness, stride)\n",
         "q = self.cutoff(size, smoothness, stride) + float(is_last)\n",
         "the size follows Eq. 3 on every axis"),
    )),
    ("offset", PLANNING, CORE, (
        ("offset-by-position",
         "[i == len(axes) - 1 for i in range(len(axes))]", "[axis == max(axes) for axis in axes]",
         "the last axis is the last one given, not the array's last"),
    )),
    ("unpaired bin", BASES, CORE, (
        ("unpaired-bin-counts-twice",
         "(frequencies == 0) | (2 * frequencies == size)", "frequencies == 0",
         "the bin lo/2 of an even size has no mirror image"),
        ("constant-counts-twice",
         "(frequencies == 0) | (2 * frequencies == size)", "2 * frequencies == size",
         "the constant has no mirror image"),
    )),
    ("unpaired bin", BASES, DETAILS, (
        ("sine-by-rounding",
         "np.where(2 * turns % size == 0, 0.0, np.sin(angle))", "np.sin(angle)",
         "no sine of the Nyquist frequency passes, not even by rounding"),
    )),
    ("unpaired bin", SPECTRUM, CORE, (
        ("fft-not-halved",
         "mask[-1:] / 2", "mask[-1:]",
         "in a longer output the bin lo/2 is shared by +lo/2 and -lo/2"),
        ("fft-halved-where-odd",
         "lo % 2 == 0 and lo < size", "lo < size",
         "the highest bin of an odd size has a mirror image"),
        ("fft-real-where-odd",
         "lo % 2 or lo == x.shape", "lo == x.shape",
         "the highest bin of an odd size keeps its sine"),
        ("fft-slope-without-counts",
         "_along(xp, counts / math", "_along(xp, 2 * xp.ones_like(counts) / math",
         "the unpaired bin counts once in the stride's gradient too"),
        ("fft-cosine-of-one-sign",
         "cosine = (at_half + mirrored) / 2", "cosine = at_half",
         "the column at lo/2 of a cropped spectrum is no cosine yet"),
        ("fft-mirrored-along-no-axis",
         "ops.concat([zero, xp.flip(others, axis=axis.axis)], axis=axis.axis)", "mirrored",
         "the mirror image of a frequency has the other sign along every axis"),
        ("fft-row-of-one-sign",
         "(positive + negative) / 2", "positive",
         "the row at lo/2 of a cropped spectrum is no cosine yet"),
    )),
    ("unpaired bin", SPECTRUM, DETAILS, (
        ("fft-sine-at-nyquist",
         "mirrored = xp.conj(at_half)",
         "mirrored = at_half",
         "a sine at M/2 is not left to the transform's library"),
    )),
    ("norm", PLANNING, CORE, (
        ("forward-scaled",
         '"forward": 1.0', '"forward": 1 / shrinkage',
         "a constant stays that constant"),
        ("ortho-inverted",
         "math.sqrt(shrinkage)", "1 / math.sqrt(shrinkage)",
         "the factor is a power of N/M"),
        ("backward-inverted",
         '"backward": shrinkage', '"backward": 1 / shrinkage',
         "the factor is a power of N/M"),
    )),
    ("norm", OPERATORS, CORE, (
        ("scale-on-every-axis",
         "masks[first] = masks[first].scaled(plan.scale)",
         "masks = [mask.scaled(plan.scale) for mask in masks]",
         "the scale is that of all axes together, once"),
    )),
    ("norm", SPECTRUM, CORE, (
        ("fft-without-the-ratio",
         "masks[i] * (size / axis.size)", "masks[i]",
         "the inverse transform's 1/M must become 1/N"),
    )),
    ("size guard", CONVENTIONS, CORE, (
        ("size-without-guard",
         "math.ceil(q - 1e-5 - 1e-7 * q)", "math.ceil(q)",
         "rounding must not decide sizes"),
        ("size-guard-without-1e-7-q",
         "math.ceil(q - 1e-5 - 1e-7 * q)", "math.ceil(q - 1e-5)",
         "float32 strides give the sizes of float64 ones on long axes too"),
        ("size-floor",
         "math.ceil(q - 1e-5 - 1e-7 * q)", "math.floor(q - 1e-5 - 1e-7 * q)",
         "no bin is alive at the output's Nyquist frequency or above"),
        ("size-odd",
         "2 * math.ceil(q - 1e-5 - 1e-7 * q)", "math.ceil(2 * (q - 1e-5 - 1e-7 * q))",
         "a size below N is even"),
    )),
    ("size guard", CONVENTIONS, DETAILS, (
        ("size-guard-without-1e-5",
         "math.ceil(q - 1e-5 - 1e-7 * q)", "math.ceil(q - 1e-7 * q)",
         "sizes are stable near every tie"),
        ("size-guard-too-wide",
         "math.ceil(q - 1e-5 - 1e-7 * q)", "math.ceil(q - 2e-5 - 1e-7 * q)",
         "no bin is alive at the output's Nyquist frequency or above"),
    )),
    ("floor", CONVENTIONS, CORE, (
        ("paper-no-floor",
         "return size / (size - smoothness) if size > smoothness else 1.0", "return 1.0",
         "at the least stride the edge bin lies in the middle of the ramp"),
        ("nominal-floor",
         "# noqa: D102\n        return 1.0\n", "# noqa: D102\n        return 1 + smoothness / 2\n",
         "a stride of 1 is used as it is"),
        ("tensorflow-floor-in-float64",
         "float(np.float32(size) / np.float32(size - smoothness))", "size / (size - smoothness)",
         "the authors' floor is a float32 number"),
        ("tensorflow-floor-with-size-equal-to-the-ramp",
         "if size <= smoothness:", "if size < smoothness:",
         "N = R has no floor instead of an infinite one"),
    )),
    ("nominal size", CONVENTIONS, CORE, (
        ("nominal-size-rounded-to-the-nearest",
         "t + 0.75 + 1e-5 + 1e-7 * t", "t + 0.5 + 1e-5 + 1e-7 * t",
         "at integer strides up to 4 the size is ceil(N/S)"),
        ("nominal-size-ceil",
         "math.floor(t + 0.75 + 1e-5 + 1e-7 * t)", "math.ceil(t - 1e-5 - 1e-7 * t)",
         "a stride a little below 2 or 3 adds no sample"),
        ("nominal-size-without-guard",
         "t + 0.75 + 1e-5 + 1e-7 * t", "t + 0.75",
         "rounding must not decide sizes"),
        ("nominal-size-guard-without-1e-7-t",
         "t + 0.75 + 1e-5 + 1e-7 * t", "t + 0.75 + 1e-5",
         "float32 strides give the sizes of float64 ones on long axes too"),
        ("nominal-size-zero",
         "max(1, min(size, math.floor(t", "max(0, min(size, math.floor(t",
         "a sample is left, whatever the stride"),
    )),
    ("nominal size", CONVENTIONS, DETAILS, (
        ("nominal-size-guard-without-1e-5",
         "t + 0.75 + 1e-5 + 1e-7 * t", "t + 0.75 + 1e-7 * t",
         "sizes are stable near every tie"),
        ("nominal-size-guard-too-wide",
         "t + 0.75 + 1e-5 + 1e-7 * t", "t + 0.75 + 2e-5 + 1e-7 * t",
         "no sample is added but at a tie"),
    )),
    ("nominal ramp", CONVENTIONS, CORE, (
        ("nominal-branch-without-margin",
         "smoothness * q >= 1 - 1e-6", "smoothness * q >= 1.0",
         "rounding must not decide which ramp holds"),
        ("nominal-branch-margin-too-wide",
         "smoothness * q >= 1 - 1e-6", "smoothness * q >= 1 - 1e-5",
         "the branch changes at 1 - 1e-6"),
        ("nominal-ramp-always-wide",
         "smoothness * q >= 1 - 1e-6", "smoothness * q >= 0.0",
         "the ramp is at least one frequency wide"),
        ("nominal-ramp-always-narrow",
         "smoothness * q >= 1 - 1e-6", "smoothness * q >= math.inf",
         "the ramp is the fraction of the band where that is wider than one frequency"),
        ("nominal-narrow-ramp-half-a-bin-too-low",
         "q + 0.5 - k)", "q - k)",
         "the window reaches 0 half a bin beyond the band"),
        ("nominal-wide-ramp-half-a-bin-too-low",
         "dv_wide = (1 - 2 * k)", "dv_wide = (0 - 2 * k)",
         "the window reaches 0 half a bin beyond the band"),
        ("nominal-ramp-outside-the-band",
         "1 / smoothness + dv_wide * used", "1 + 1 / smoothness + dv_wide * used",
         "the stride counts to the outer edge of the ramp"),
        ("nominal-slopes-exchanged",
         "where(is_wide, dv_wide, -axis.size / (2 * used**2))",
         "where(is_wide, -axis.size / (2 * used**2), dv_wide)",
         "each ramp has its own derivative"),
        ("nominal-slope-at-the-parameter",
         "-axis.size / (2 * used**2)", "-axis.size / (2 * stride**2)",
         "the derivative is that at the bounded value"),
        ("nominal-constant-on-the-ramp",
         "        v = where(k == 0, 2.0, v)\n", "",
         "frequency 0 always passes"),
        ("nominal-constant-with-a-slope",
         "where(k == 0, 2.0, v)", "where(k == 0, 1.0, v)",
         "frequency 0 has no derivative"),
    )),
    ("default convention", CONVENTIONS, CORE, (
        ("default-of-the-paper",
         'DEFAULT_CONVENTION = "nominal"', 'DEFAULT_CONVENTION = "paper"',
         "the nominal convention is the default"),
        ("nominal-smoothness-twice-as-wide",
         "default_smoothness = 0.25", "default_smoothness = 0.5",
         "the default ramp is a quarter of the band"),
    )),
    ("default convention", CONVENTIONS, DETAILS, (
        ("nominal-smoothness-above-one",
         "<= smoothness <= 1:", "<= smoothness <= 2:",
         "a ramp is no wider than its band"),
    )),
    ("phase reduction", BASES, DETAILS, (
        ("phases-not-reduced",
         "(frequencies[:, None] * np.arange(size)) % size",
         "frequencies[:, None] * np.arange(size)",
         "the phases' rounding error does not grow with the size"),
    )),
    ("cotangent scale", WINDOW, CONFORMANCE, (
        ("slope-not-scaled",
         "self.dmask * factor", "self.dmask",
         "the norm scales the stride's gradient too"),
    )),
    ("cotangent scale", SPECTRUM, CORE, (
        ("fft-adjoint-scaled",
         "masks[i] * (size / axis.size)", "masks[i] * (axis.output_size / axis.size)",
         "the adjoint has 1/N, as the resize has"),
    )),
    ("cotangent scale", RESAMPLE, GOLDEN, (
        ("terms-of-dstrides-replaced",
         "gradient if total is None else total + gradient", "gradient",
         "the terms' slopes are added"),
    )),
    ("order of axes", PLAN, CORE, (
        ("costliest-order",
         "1 / axes[i].size - 1 / axes[i].output_size", "1 / axes[i].output_size - 1 / axes[i].size",
         "the axis that shrinks most comes first"),
        ("equals-from-the-front",
         "output_size, -axes[i].axis)", "output_size, axes[i].axis)",
         "among equals the axis nearest to the end comes first"),
    )),
    ("engine", PLAN, CORE, (
        ("long-axes-apart",
         "step = together if axes[i].use_fft else (i,)", "step = (i,)",
         "one step transforms all long axes"),
    )),
    ("engine", PLANNING, CORE, (
        ("rough-sizes-transformed",
         "size >= FFT_FROM_ROUGH_SIZE or is_smooth(size)", "True",
         "sizes that transform slowly are multiplied for longer"),
    )),
    ("engine", RESAMPLE, CORE, (
        ("batch-of-one-in-one-block",
         "if arrays[0].shape[0] == 1:", "if False:",
         "a single image is resized in blocks of its channels"),
    )),
    ("order of axes", RESAMPLE, CORE, (
        ("gradients-in-the-order-of-application",
         "dstrides[i] = gradient", "dstrides[number] = gradient",
         "a gradient belongs to its axis, wherever that was applied"),
    )),
    ("shared stride", WINDOW, CONFORMANCE, (
        ("shared-gradient-of-one-axis",
         "per_axis = xp.sum(per_axis)", "per_axis = per_axis[0]",
         "a shared stride's gradient is the sum over its axes"),
    )),
    ("shared stride", PLANNING, CORE, (
        ("shared-bounds-of-one-axis",
         "(reduce(Bounds.intersect, bounds),) * len(axes)", "(bounds[0],) * len(axes)",
         "a shared stride has the bounds of all its axes"),
    )),
    ("shared stride", PLAN, CORE, (
        ("shared-bounds-widest",
         "min(self.upper, other.upper)", "max(self.upper, other.upper)",
         "a shared stride has the smallest upper bound"),
    )),
    ("complexity", COMPLEXITY, NUMPY, (
        ("complexity-without-the-tail",
         "tail = products[layer] + tail", "tail = products[layer]",
         "a stride shrinks every later layer too"),
        ("complexity-tail-from-the-front",
         "for layer in reversed(range(len(strides))):", "for layer in range(len(strides)):",
         "a stride shrinks later layers, not earlier ones"),
        ("complexity-sign",
         "-g * tail / stride", "g * tail / stride",
         "a larger stride costs less"),
        ("complexity-layers-apart",
         "share if not shares else shares[-1] * share", "share",
         "the products run over all layers before"),
        ("complexity-unbounded",
         "straight_through(ops, stride, bound)", "stride",
         "J is that of the strides in use"),
    )),
    ("spectral resize", PLANNING, CORE, (
        ("resize-nyquist-1",
         "FlatWindow(nyquist=2.0)", "FlatWindow()",
         "scipy restores a cosine at the output's Nyquist frequency"),
    )),
    ("spectral resize", WINDOW, CORE, (
        ("resize-nyquist-2-at-the-same-size",
         "axis.output_size < axis.size and axis.output_size % 2 == 0",
         "axis.output_size <= axis.size and axis.output_size % 2 == 0",
         "at the same size nothing changes"),
        ("resize-nyquist-2-where-odd",
         "axis.output_size < axis.size and axis.output_size % 2 == 0",
         "axis.output_size < axis.size",
         "an odd output has no bin at its Nyquist frequency"),
    )),
    ("spectral pooling", CONVENTIONS, CONFORMANCE, (
        ("pool-nyquist-2",
         "return FlatWindow()", "return FlatWindow(nyquist=2.0)",
         "pooling has the operator's weight 1"),
    )),
    ("spectral pooling", CONVENTIONS, DETAILS, (
        ("pool-without-guard",
         "math.floor(size / stride + 1e-5)", "math.floor(size / stride)",
         "rounding must not decide sizes"),
        ("pool-to-one",
         "min(size, max(2, math.floor(", "min(size, max(1, math.floor(",
         "pooling leaves at least two samples"),
        ("pool-enlarges",
         "return min(size, max(2, math.floor(size / stride + 1e-5)))",
         "return max(2, math.floor(size / stride + 1e-5))",
         "pooling leaves a single sample alone"),
    )),
    ("spectral pooling", CONVENTIONS, GOLDEN, (
        ("tensorflow-pool-odd-height",
         "floor if is_last else floor - floor % 2", "floor",
         "the authors make the height even"),
    )),
    ("tensorflow", CONVENTIONS, GOLDEN, (
        ("tensorflow-stride-in-float64",
         "xp.astype(clamp(ops, stride, -most, most), xp.float32)", "stride",
         "the authors' strides are float32"),
        ("tensorflow-ratio-by-the-reciprocal",
         "xp.full_like(stride, size) / stride", "size / stride",
         "the quotient is rounded once, in every framework"),
        ("tensorflow-size-in-float64",
         "used = np.asarray(stride, dtype=np.float32)", "used = np.asarray(stride)",
         "float32 rounding decides the authors' sizes"),
        ("tensorflow-threshold-without-offset",
         "/ 2 + float(is_last)", "/ 2",
         "the width's pass band is one frequency wider"),
        ("tensorflow-odd-rows-centred",
         "ops.frequencies(positive, like) + axis.size % 2", "ops.frequencies(positive, like)",
         "the authors' mask of an odd height starts at k + 1"),
        ("tensorflow-first-rows-kept",
         "np.arange(size - negative, size)", "np.arange(positive, output_size)",
         "half of the rows kept are the last ones"),
        ("tensorflow-odd-row-in-front",
         "    positive = output_size // 2\n    negative",
         "    positive = (output_size + 1) // 2\n    negative",
         "an odd height keeps one row more from the back"),
        ("tensorflow-columns-positive",
         "return -k, -k, bin_counts", "return k, k, bin_counts",
         "the second term is subtracted"),
        ("tensorflow-no-gradient-at-one",
         "(raw <= 1)", "(raw < 1)",
         "the authors' clip passes the gradient at 1"),
        ("tensorflow-gradient-below-two-samples",
         "            & (ratio >= 2)\n", "",
         "the authors' clip of size/S at 2 stops the gradient"),
        ("tensorflow-gradient-above-the-limit",
         "            & (raised <= bounds.upper)\n", "",
         "the authors' clip at the upper limit stops the gradient"),
        ("tensorflow-gradient-below-the-limit",
         "            & (raised >= bounds.lower)\n", "",
         "the authors' clip at the lower limit stops the gradient"),
    )),
    ("tensorflow", CONVENTIONS, DETAILS, (
        ("tensorflow-ramp-by-the-reciprocal",
         "xp.astype(smoothness + threshold - position, stride.dtype)",
         "smoothness + threshold - position",
         "a compiler cannot replace the float32 quotient"),
        ("tensorflow-size-guarded",
         "math.ceil(self.cutoff(size, smoothness, stride))",
         "math.ceil(self.cutoff(size, smoothness, stride) - 1e-5)",
         "the authors' sizes have no guard"),
    )),
    ("tensorflow", CONVENTIONS, CONFORMANCE, (
        ("tensorflow-no-gradient-at-zero",
         "(raw >= 0)", "(raw > 0)",
         "the authors' clip passes the gradient at 0"),
    )),
    ("dtype", WINDOW, DETAILS, (
        ("mask-of-a-rounded-stride",
         "precise = ops.xp.astype(strides, ops.precise_dtype(strides), copy=False)",
         "precise = strides",
         "mask and derivative are computed in float64"),
    )),
    ("dtype", OPS, NUMPY, (
        ("half-computed-in-half-by-numpy",
         "array.dtype if array.dtype == self.xp.float64 else self.xp.float32", "array.dtype",
         "half precision is resized in float32"),
    )),
    ("dtype", TORCH_BACKEND, TORCH, (
        ("half-computed-in-half-by-torch",
         "torch.float32 if array.dtype.itemsize == 2 else array.dtype", "array.dtype",
         "half precision is resized in float32"),
    )),
    ("dtype", JAX_BACKEND, DETAILS, (
        ("half-computed-in-half-by-jax",
         "jnp.float32 if array.dtype.itemsize == 2 else array.dtype", "array.dtype",
         "half precision is resized in float32"),
    )),
    ("dtype", RESAMPLE, NUMPY, (
        ("half-pulled-back-in-half",
         "dtype = ops.compute_dtype(x)\n        is_wide = dtype == x.dtype\n        wide_x, wide_g",
         "dtype = x.dtype\n        is_wide = dtype == x.dtype\n        wide_x, wide_g",
         "the backward pass is computed in float32 too"),
    )),
    ("dtype", SPECTRUM, DETAILS, (
        ("fft-slope-accumulated-in-float32",
         "keepdims=True, dtype=masks[0].dtype)", "keepdims=True)",
         "long sums of the stride's gradient are made in double precision"),
    )),
    ("dtype", RESAMPLE, DETAILS, (
        ("slope-accumulated-in-float32",
         "xp.sum(parts, dtype=ops.precise_dtype(x))", "xp.sum(parts)",
         "long sums of the stride's gradient are made in double precision"),
    )),
    ("ramp", OPERATORS, CONFORMANCE, (
        ("ramp-from-the-next-bin",
         "first, bins - count) + steps", "first + 1, bins - count) + steps",
         "the slope takes in the ramp's first bin"),
        ("ramp-past-the-last-bin",
         "xp.where(first < bins - count, first, bins - count)", "first",
         "the bins taken end at the last one"),
        ("ramp-without-sines",
         "xp.concat([chosen, bins + chosen])", "xp.concat([chosen, chosen])",
         "the slope has a cosine and a sine per bin"),
    )),
    ("ramp", CONVENTIONS, CONFORMANCE, (
        ("paper-ramp-too-narrow",
         "math.ceil(smoothness) + 1", "math.ceil(smoothness) - 1",
         "as many bins are taken as the ramp can be wide"),
        ("nominal-ramp-too-narrow",
         "math.ceil(max(widest, 1.0)) + 1", "1",
         "as many bins are taken as the ramp can be wide"),
        ("nominal-ramp-of-the-greatest-stride",
         "size / (2 * bounds.apply(0.0))", "size / (2 * bounds.apply(math.inf))",
         "the ramp is widest at the least stride"),
    )),
    ("blocks", BLOCKS, TORCH, (
        ("blocks-that-do-not-add-up",
         "tuple(map(operator.iadd, sums, summands)) if sums else summands", "summands",
         "a stride's gradient is the sum over all parts of a batch"),
        ("blocks-written-to-the-first",
         "result[block] = part", "result[:step] = part",
         "each part of a batch is written to its own place"),
    )),
    ("memory layout", PLAN, TORCH, (
        ("axes-not-permuted",
         "axis=order.index(rank + axis.axis) - rank", "axis=axis.axis",
         "channels last resizes height and width"),
    )),
    ("kept operators", HOST, CORE, (
        ("kept-for-any-dtype",
         "np.empty(0, dtype=dtype)", "np.empty(0)",
         "operators have the dtype of what they are applied to"),
    )),
    ("convolution", CONVOLUTION, TORCH_CONVOLUTION, (
        ("taps-from-their-own-middle",
         "dilation * (tap - size // 2)", "dilation * tap - size // 2",
         "the middle tap reads at the output's place, whatever the dilation"),
    )),
    ("convolution", FUSED, TORCH_CONVOLUTION, (
        ("taps-shifted-the-other-way",
         "[gap, matrix[:, :kept]] if offset > 0 else", "[gap, matrix[:, :kept]] if offset < 0 else",
         "a convolution is a correlation"),
        ("taps-turned-the-other-way",
         "(size - offset) % size", "offset % size",
         "a circular convolution is a correlation too"),
        ("zeros-in-place-of-the-other-end",
         "if conv.circular:", "if False:",
         "a circular map goes on with its other end"),
        ("other-end-in-place-of-zeros",
         "if conv.circular:", "if True:",
         "beyond the border are zeros"),
        ("taps-of-leading-axes-exchanged",
         "(*leading, 0, last, 2, 1)", "(*reversed(leading), 0, last, 2, 1)",
         "a tap's kernel meets its own shift along every axis"),
        ("taps-of-the-last-axis-reversed",
         "xp.stack(made, axis=1)", "xp.stack(made[::-1], axis=1)",
         "a tap's kernel meets its own shift along the last axis"),
        ("groups-exchanged",
         "xp.reshape(wide, split)", "xp.flip(xp.reshape(wide, split), axis=0)",
         "each group has its own kernel"),
        ("gradients-of-taps-reversed",
         "xp.stack(taps, axis=3)", "xp.stack(taps[::-1], axis=3)",
         "the gradient of a tap goes to its own place"),
        ("slope-of-the-first-tap",
         "ramp = synthesis, analysis[tap, ...]", "ramp = synthesis, analysis[0, ...]",
         "the operator's derivative is shifted as the operator is"),
        ("bias-not-resized",
         "layout.per_group(bias) * _of_constant(xp, row_sums)[..., None]", "layout.per_group(bias)",
         "a bias is resized as any constant"),
        ("gradient-of-the-bias-not-resized",
         "summed_g * _of_constant(xp, row_sums)[..., None]", "summed_g",
         "the gradient of a bias is that of a constant"),
        ("gradient-of-the-weight-of-one-term",
         "dkernels[tap] = _plus(dkernels[tap], of_term)", "dkernels[tap] = of_term",
         "the gradient of a weight is the sum over the operator's terms"),
    )),
    ("convolution", FUSED, CONFORMANCE, (
        ("constant-without-slope",
         "dstrides + _stride_gradients_of_", "dstrides + 0 * _stride_gradients_of_",
         "the stride's gradient takes in what becomes of the bias"),
    )),
    ("convolution", TORCH_BACKEND, TORCH_CONVOLUTION, (
        ("torch-circular-ends-exchanged",
         "for amount in reversed(padding)", "for amount in padding",
         "PyTorch's padding counts axes from the end"),
    )),
    ("dtype", COMPLEXITY, CONFORMANCE, (
        ("complexity-in-float64",
         "ops.xp.result_type(*strides)", "total.dtype",
         "J has the dtype of the strides"),
    )),
    ("needs", RESAMPLE, TORCH, (
        ("everything-computed",
         "xp, needs_x = ops.xp, needs[0]", "xp, needs_x = ops.xp, True",
         "gradients that nobody needs cost nothing"),
        ("one-adjoint-too-many",
         "_Back(needs_x or number > 0", "_Back(True",
         "the last adjoint makes dx alone"),
    )),
    ("needs", PROTOCOL, TORCH, (
        ("strides-needed-where-x-is",
         "if needs[operation.strides]:", "if needs[0]:",
         "each input is asked for by itself"),
    )),
    ("needs", COMPLEXITY, DETAILS, (
        ("complexity-of-frozen-strides",
         "if needs[layer]:", "if True:",
         "gradients that nobody needs are None"),
    )),
    ("plan cache", PLAN_CACHE, CORE, (
        ("sizes-never-checked",
         "normalized_axes(axes, shape)  # checks the sizes", "pass",
         "an input that is empty along an axis is refused"),
        ("rank-never-checked",
         "or len(shape) < -min(axes):", "or False:",
         "an input with too few dimensions is refused"),
        ("axes-never-normalised",
         "if not self._are_normalized or", "if False or",
         "axes counted from the front are counted from the end in a plan"),
        ("refresh-ignored",
         "return self._token is not None and token == self._token",
         "return self._token is not None",
         "plans follow the strides"),
        ("token-none-counts",
         "return self._token is not None and token == self._token",
         "return token == self._token",
         "the token None never means unchanged"),
        ("plans-not-remade",
         "if strides is None or strides != self._strides:", "if strides is None:",
         "the plans of all sizes seen follow the strides"),
        ("equality-ignores-sizes",
         "seen = [*self._plans, *other._plans]", "seen = []",
         "caches with other sizes are not equal"),
        ("plans-pile-up",
         "while len(self._plans) > _MOST_SIZES:", "while False:",
         "a cache keeps a bounded number of plans"),
        ("plans-dropped-in-any-order",
         "min(self._plans, key=lambda sizes: self._plans[sizes].seen)", "next(iter(self._plans))",
         "what bounds a stride is kept longest"),
        ("bounds-of-all-sizes-ever-seen",
         "entry.seen = False", "entry.seen = entry.seen",
         "only sizes seen since the last projection bound strides"),
        ("bounds-forgotten-by-a-projection",
         "return self._bounds\n",
         "return PlanCache(self._settings, self._entries)._bounds\n",
         "where no size is seen, the bounds stay"),
        ("bounds-forgotten-by-a-refreshed-cache",
         "other._plans, other._bounds = self._plans, self._bounds", "other._plans = self._plans",
         "a cache for other strides has the same bounds"),
    )),
    ("plan cache", PLAN_CACHE, DETAILS, (
        ("equality-asks-one-side",
         "seen = [*self._plans, *other._plans]", "seen = [*self._plans]",
         "a size counts that either cache has seen"),
    )),
    ("torch", TORCH_BACKEND, TORCH, (
        ("torch-stride-gradient-dropped",
         "return None, None, None, *gradients",
         "return None, None, None, gradients[0], *(None for _ in gradients[1:])",
         "strides are learnt"),
        ("torch-gradient-scaled",
         "ctx.operation, ctx.plan, g,", "ctx.operation, ctx.plan, 2 * g,",
         "the cotangent is handed on as it is"),
        ("torch-needs-shifted",
         "ctx.needs_input_grad[3:]", "ctx.needs_input_grad[2:]",
         "the arrays follow three other arguments"),
        ("torch-no-second-derivative",
         "    @staticmethod\n    def backward(",
         "    @staticmethod\n    @torch.autograd.function.once_differentiable\n    def backward(",
         "the backward pass can be differentiated"),
        ("torch-stop-gradient-passes",
         "return array.detach()\n", "return array\n",
         "what is constant to automatic differentiation has no derivative"),
        ("torch-always-attached",
         "if plain_autodiff.enabled or transform", "if transform",
         "plain_autodiff lets the framework differentiate"),
        ("torch-attached-in-forward-mode",
         "if plain_autodiff.enabled or transform == \"forward mode\" or",
         "if plain_autodiff.enabled or",
         "forward mode differentiates the forward pass"),
    )),
    ("torch", TORCH_BACKEND, "torch/test_precision_and_layouts.py", (
        ("torch-autocast-in-the-forward-pass",
         "with without_autocast(x.device):", "with nullcontext():",
         "autocast does not reach the operator"),
        ("torch-autocast-in-the-backward-pass",
         "with without_autocast(g.device), ", "with nullcontext(), ",
         "autocast does not reach the operator"),
    )),
    ("torch", TORCH_PRIVATE, TORCH, (
        ("torch-forward-mode-not-followed",
         "        or getattr(forward_ad, \"_current_level\", 0) >= 0\n", "",
         "the operator of a forward pass in forward mode is not the one kept for others"),
    )),
    ("jax", JAX_BACKEND, JAX, (
        ("jax-stride-gradient-dropped",
         "return pull_back(backend, operation, plan, g, tuple(others), needs)",
         "dx, *rest = pull_back(backend, operation, plan, g, tuple(others), needs)\n"
         "            return dx, *(None if own is None else 0 * own for own in rest)",
         "strides are learnt"),
        ("jax-gradient-scaled",
         "plan, g, tuple(others), needs)", "plan, 2 * g, tuple(others), needs)",
         "the cotangent is handed on as it is"),
    )),
    ("jax", JAX_BACKEND, DETAILS, (
        ("jax-stop-gradient-passes",
         "return jax.lax.stop_gradient(array)", "return array",
         "what is constant to automatic differentiation has no derivative"),
        ("jax-mask-in-float32",
         "return jnp.result_type(float)", "return jnp.float32",
         "mask and derivative are computed in float64 where it is on"),
    )),
    ("numbers and arrays", ARGUMENTS, NUMPY, (
        ("numbers-in-float32",
         "array.astype(np.float64)", "array.astype(np.float32)",
         "Python's numbers are double precision"),
    )),
    ("numbers and arrays", TORCH_BACKEND, DETAILS, (
        ("numbers-in-float32-by-torch",
         "torch.tensor(strides.values, dtype=dtype, device=device)",
         "torch.tensor(strides.values, dtype=torch.float32, device=device)",
         "Python's numbers are double precision"),
    )),
    ("numbers and arrays", PREPARE, TORCH, (
        ("strides-read-where-sizes-are-given",
         "    if sizes is None:\n        is_on_host", "    if True:\n        is_on_host",
         "strides that decide nothing are not read"),
    )),
)
# fmt: on


def _holder(place: str, text: str) -> str:
    """Return the file of a folder that holds a text; a file as it is."""
    if place.endswith(".py"):
        return place
    files = sorted((ROOT / place).glob("*.py"))
    held = [str(file.relative_to(ROOT)) for file in files if text in file.read_text("utf-8")]
    return held[0] if held else place


MUTATIONS = tuple(
    Mutation(detail, name, _holder(file, old), old, new, why, first)
    for detail, file, first, rows in _TABLE
    for name, old, new, why in rows
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the tests said to a mutation.

    Attributes
    ----------
    verdict : {"killed", "timed out", "SURVIVED"}
    killer : str
        The test that noticed, without its parameters.
    seconds : float
    """

    verdict: str
    killer: str
    seconds: float


def read_source(root: Path, mutation: Mutation) -> str:
    """Return the unmutated text, in which the old text must occur exactly once."""
    source = (root / mutation.file).read_text()
    count = source.count(mutation.old)
    if count != 1:
        raise SystemExit(
            f"{mutation.name}: {mutation.file} has moved on, the text to replace occurs {count} "
            f"times in it:\n{mutation.old}"
        )
    return source


def _module(path: Path) -> str:
    """Return the dotted name of the module in a file, given relative to the project's root."""
    parts = path.with_suffix("").parts
    first = next(i for i, part in enumerate(parts) if part.startswith("diffstride_"))
    return ".".join(parts[first:])


class Copy:
    """A copy of the working tree, in which the tests run.

    Parameters
    ----------
    folder : Path
        Empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[str] | None = None
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        project = tomllib.loads((folder / "pyproject.toml").read_text())
        packages = project["tool"]["hatch"]["build"]["dev-mode-dirs"]
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(folder / name) for name in packages),
            # Bytecode is told apart by size and whole seconds, which a mutation can leave as they
            # were.
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        }

    def check_imports(self, files: set[str]) -> None:
        """Raise SystemExit unless Python imports the files from here, not from an installation."""
        ordered = sorted(files)
        modules = [_module(Path(name)) for name in ordered]
        code = "import importlib, sys\nfor name in sys.argv[1:]:\n"
        code += "    print(importlib.import_module(name).__file__)"
        status, output = self.run([sys.executable, "-c", code, *modules], timeout=600)
        expected = [str(self.folder / name) for name in ordered]
        if status != 0 or output.split("\n")[:-1] != expected:
            raise SystemExit(f"the copy is not what is imported:\n{output}")

    def run(self, command: Sequence[str], timeout: float) -> tuple[int | None, str]:
        """Run a command here; return its exit status, None past the timeout, and its output."""
        process = self._process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout)
        except BaseException as error:
            self.stop()
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                return None, ""
            raise
        return process.returncode, output

    def stop(self) -> None:
        """End what runs here, with the processes that it started."""
        if self._process is not None and self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def test(self, files: Sequence[str], timeout: float) -> tuple[int | None, str]:
        """Run test files in their order until a test fails."""
        options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
        paths = [f"{TESTS_FOLDER}/{name}" for name in files]
        return self.run([sys.executable, "-m", "pytest", *options, *paths], timeout)

    def judge(self, mutation: Mutation, tests: Sequence[str], timeout: float) -> Outcome:
        """Apply a mutation, run the tests until one fails, and take the mutation back."""
        path, source = self.folder / mutation.file, read_source(self.folder, mutation)
        mutated = source.replace(mutation.old, mutation.new)
        compile(mutated, mutation.file, "exec")
        path.write_text(mutated)
        start = time.monotonic()
        try:
            # By itself first: collecting all tests takes longer than most mutations live.
            first = [mutation.first]
            others = [name for name in tests if name != mutation.first]
            for files in filter(None, (first, others)):
                status, output = self.test(files, timeout)
                if status is None:
                    return Outcome("timed out", "", time.monotonic() - start)
                if status:
                    killer = failed_test(mutation, output)
                    return Outcome("killed", killer, time.monotonic() - start)
        finally:
            path.write_text(source)
        return Outcome("SURVIVED", "", time.monotonic() - start)


def failed_test(mutation: Mutation, output: str) -> str:
    """Return the test that failed, without its folder and parameters."""
    found = re.search(rf"^(?:FAILED|ERROR) {TESTS_FOLDER}/([\w/]+\.py::\w+)", output, re.MULTILINE)
    if found is None:
        raise SystemExit(f"{mutation.name}: no test failed, the run did:\n{output[-4000:]}")
    return found[1]


def report(outcomes: dict[Mutation, Outcome]) -> str:
    """Return the table of all mutations as Markdown."""
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{name} {version(name)}" for name in ("numpy", "scipy", "torch", "jax", "pytest")]
    killed = sum(outcome.verdict == "killed" for outcome in outcomes.values())
    lines = [
        # Not in the site's menu: the page on conformance links it.
        *("---", "orphan: true", "---", ""),
        "# Mutations",
        "",
        "Each line is one detail of the operator made wrong on purpose, and the first test that",
        "noticed. Written by",
        "",
        "    python conformance_tests/mutations.py --report docs/mutations.md",
        "",
        f"with {', '.join(versions)}. **{killed} of {len(outcomes)} killed.**",
        "",
        "The seconds are those until the first failure, start-up included.",
        "",
        "| detail | mutation | rule that it breaks | file | killed by | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for mutation, outcome in outcomes.items():
        killer = f"`{outcome.killer}`" if outcome.killer else f"**{outcome.verdict}**"
        cells = (
            mutation.detail,
            f"`{mutation.name}`",
            mutation.why,
            f"`{mutation.file}`",
            killer,
            f"{outcome.seconds:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Judge the mutations one by one; return 1 unless the tests killed them all."""
    # As an exception: the tests that are running end with it, and the copy is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="judge this one; may be repeated"
    )
    parser.add_argument("--tests", nargs="+", default=TESTS, metavar="FILE", help="run these alone")
    parser.add_argument("--list", action="store_true", help="print the mutations and stop")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a table of all of them")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="judge so many at a time")
    arguments = parser.parse_args()
    chosen = [m for m in MUTATIONS if arguments.only is None or m.name in arguments.only]
    unknown = set(arguments.only or ()) - {mutation.name for mutation in chosen}
    if unknown:
        parser.error(f"unknown mutations: {', '.join(sorted(unknown))}")
    if arguments.report and (arguments.only or tuple(arguments.tests) != TESTS):
        parser.error("a report is made of all mutations and all tests")
    for mutation in chosen:
        read_source(ROOT, mutation)
    if arguments.list:
        for mutation in chosen:
            print(f"{mutation.detail:24s} {mutation.name:46s} {mutation.file}")
        return 0

    outcomes: dict[Mutation, Outcome] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mutations-")))
        copies = [Copy(folder.resolve() / str(job)) for job in range(max(1, arguments.jobs))]
        for copy in copies:
            stack.callback(copy.stop)
        copies[0].check_imports({mutation.file for mutation in chosen})
        start = time.monotonic()
        status, output = copies[0].test(arguments.tests, timeout=3600)
        unmutated = time.monotonic() - start
        if status != 0:
            raise SystemExit(f"the tests fail without any mutation:\n{output[-4000:]}")
        print(f"without mutation: green in {unmutated:.0f} s", flush=True)
        free = SimpleQueue[Copy]()
        for copy in copies:
            free.put(copy)

        def judge(mutation: Mutation) -> Outcome:
            copy = free.get()
            try:
                return copy.judge(mutation, arguments.tests, timeout=60 + 3 * unmutated)
            finally:
                free.put(copy)

        pool = ThreadPoolExecutor(len(copies))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        for mutation, outcome in zip(chosen, pool.map(judge, chosen), strict=True):
            outcomes[mutation] = outcome
            print(
                f"{outcome.verdict:9s} {outcome.seconds:6.1f} s  {mutation.name:46s} "
                f"{outcome.killer}",
                flush=True,
            )
    verdicts = [outcome.verdict for outcome in outcomes.values()]
    print(", ".join(f"{verdicts.count(v)} {v}" for v in ("killed", "timed out", "SURVIVED")))
    if arguments.report:
        arguments.report.write_text(report(outcomes))
    return int("SURVIVED" in verdicts)


if __name__ == "__main__":
    sys.exit(main())
