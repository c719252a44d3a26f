"""The cases to compute and compare: every operation, over sizes, ranks, strides and options."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, TypeAlias

import numpy as np

Operation: TypeAlias = Literal[
    "diff_stride", "conv_diff_stride", "spectral_resize", "spectral_pool", "complexity"
]

METHODS: dict[str, tuple[str, ...]] = {
    "diff_stride": ("matmul", "fft"),
    "conv_diff_stride": ("fused", "separate"),
}
"""Methods of an operation that cases ask for. With ``"auto"``, a case does not ask for one."""


@dataclass(frozen=True)
class Case:
    """One evaluation and its pullback.

    Attributes
    ----------
    name : str
        Unique name, which describes the case.
    operation : str
        Name of the function in the adapters and in the oracle.
    shape : tuple of int
        Shape of the input x; unused for ``"complexity"``.
    strides : tuple
        Numbers, or for ``"complexity"`` a tuple of numbers per layer. Empty for
        ``"spectral_resize"``.
    options : dict
        Keyword arguments. They are the same for the adapters and the oracle, except for ``method``,
        which the oracle does not have.
    weight_shape : tuple of int
        Shape of the weight of ``"conv_diff_stride"``.
    has_bias : bool
        Whether the convolution has a bias.
    """

    name: str
    operation: Operation
    shape: tuple[int, ...] = ()
    strides: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    weight_shape: tuple[int, ...] = ()
    has_bias: bool = False

    @property
    def axes(self) -> tuple[int, ...]:
        """Axes that are resized."""
        if not self.weight_shape:
            return tuple(self.options.get("axes", (-2, -1)))
        rank, end = len(self.weight_shape) - 2, -int(self.options.get("channels_last", False))
        return tuple(range(end - rank, end))

    @property
    def method(self) -> str:
        """Method of the operation, or ``"auto"`` if the case does not ask for one."""
        return str(self.options.get("method", "auto"))

    def random(self) -> np.random.Generator:
        """Return the generator of the case's random arrays, which is the same in every process."""
        return np.random.default_rng(list(self.name.encode()))


SIZES = (*range(1, 18), 27, 31, 32, 33, 48, 63, 64, 65, 100, 127, 128, 129, 255, 256, 257)
STRIDES = (1.0, 1.3, 2.0, 2.7, 3.0, 7.5, 1000.0, 0.4)
"""Strides that often give ties (1, 2, 3), fractions, one above the upper bound, one below 1."""

SMOOTHNESS = {"paper": (0.5, 1.0, 2.5, 4.0, 8.0, 16.0), "nominal": (0.05, 0.25, 0.6, 1.0)}


@cache
def all_cases() -> tuple[Case, ...]:
    """Return every case."""
    cases = [
        *_axis_sizes(),
        *_ties(),
        *_combinations(),
        *_tensorflow(),
        *_layouts(),
        *_resizes(),
        *_pools(),
        *_complexities(),
        *_kernels(),
        *_convolutions(),
        *_multiples(),
    ]
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    return tuple(cases)


def _diff_stride(
    kind: str, shape: tuple[int, ...], strides: tuple[float, ...], **options: Any
) -> Case:
    described = [f"{key}={value}" for key, value in options.items()]
    text = "-".join([kind, "x".join(map(str, shape)), ",".join(map(str, strides)), *described])
    return Case(text.replace(" ", ""), "diff_stride", shape, strides, options)


def _axis_sizes() -> Iterator[Case]:
    """Yield cases of one axis of every size, at strides that vary with it, by both engines."""
    for convention, method in itertools.product(("paper", "nominal"), ("matmul", "fft")):
        for i, size in enumerate(SIZES):
            for stride in (STRIDES[i % len(STRIDES)], 2.0):
                options = {"axes": (-1,), "convention": convention, "method": method}
                if stride == 2.0 and i % len(STRIDES) == STRIDES.index(2.0):
                    continue
                yield _diff_stride("size", (2, size), (stride,), **options)


def _ties() -> Iterator[Case]:
    """Yield cases of one axis in which rounding would decide, and at both bounds (nominal).

    Some of the strides are ties only up to their rounding to float32 or float64.
    """
    kinds: dict[str, tuple[tuple[int, float, dict[str, Any]], ...]] = {
        # v = 1: N/S = (2k - 1)/(1 - rho) on a wide ramp, N/S = 2k + 1 on a narrow one.
        "corner": (
            (24, 2.0, {}),
            (24, 1.2, {}),
            (36, 3.0, {}),
            (20, 1.0, {}),
            (25, 2.0, {"smoothness": 0.6}),
            (60, 1.0, {"smoothness": 0.05}),
            (14, 2.0, {}),
            (9, 3.0, {}),
            (25, 5.0, {}),
            (7, 1.0, {}),
            (3, 1.0, {}),
        ),
        # v = 0: N/S = 2k - 1. The size that the stride asks for has no bin k.
        "edge": (
            (22, 2.0, {"cropping": False}),
            (33, 3.0, {"sizes": (12,)}),
            (33, 3.0, {"smoothness": 1.0, "cropping": False}),
            (21, 1.4, {"cropping": False}),
            (21, 4.2, {"smoothness": 0.05, "sizes": (25,)}),
            (33, 2.2, {}),
        ),
        # rho q = 1: the derivative of the wide ramp counts.
        "branch": (
            (8, 1.0, {}),
            (16, 2.0, {}),
            (32, 4.0, {}),
            (33, 4.125, {}),
            (10, 3.0, {"smoothness": 0.6}),
            (7, 2.1, {"smoothness": 0.6}),
            (44, 1.1, {"smoothness": 0.05}),
            (12, 6.0, {"smoothness": 1.0}),
        ),
        # N/S + 3/4 is an integer: the larger size is taken, which may be odd or even.
        "size": (
            (17, 4.0, {}),
            (13, 4.0, {}),
            (33, 4.0, {}),
            (10, 1.6, {}),
            (34, 1.6, {}),
            (15, 2.4, {}),
            (1, 4.0, {"limits": None}),
        ),
        # An odd size without the only bin of a narrow ramp: no gradient.
        "gap": (
            (14, 1.96, {}),
            (8, 2.5, {}),
            (8, 2.5, {"cropping": False}),
        ),
        # S = 1 and S = N/2.
        "bound": (
            (1, 1.0, {}),
            (2, 1.0, {}),
            (3, 1.5, {}),
            (31, 1.0, {}),
            (32, 1.0, {}),
            (31, 15.5, {}),
            (32, 16.0, {}),
            (32, 16.0, {"smoothness": 1.0}),
            (32, 16.0, {"sizes": (5,)}),
            (32, 16.0, {"cropping": False}),
        ),
        # Beyond N/2: from q = 1/2 on, only frequency 0 is left.
        "unbounded": (
            (12, 12.0, {"limits": None, "cropping": False}),
            (12, 11.0, {"limits": None, "cropping": False}),
            (12, 40.0, {"limits": None, "cropping": False}),
            (15, 15.0, {"limits": None}),
        ),
    }
    for kind, entries in kinds.items():
        for (size, stride, others), method in itertools.product(entries, ("matmul", "fft")):
            options = {"axes": (-1,), "convention": "nominal", "method": method, **others}
            yield _diff_stride(f"tie_{kind}", (2, size), (stride,), **options)


def _combinations() -> Iterator[Case]:
    """Yield cases of two and three axes, with options from a random generator of a fixed seed."""
    rng = np.random.default_rng(20220203)

    def pick(values: Any) -> Any:
        return values[rng.integers(len(values))]

    for number in range(240):
        rank = 3 if number % 4 == 0 else 2
        sizes = tuple(int(pick(SIZES[:22] if rank == 3 else SIZES[:28])) for _ in range(rank))
        batch = pick(((), (2,), (2, 3), (1, 2, 1), (0,), (3, 0)))
        shared = bool(rng.random() < 0.25)
        convention = pick(("paper", "nominal"))
        options: dict[str, Any] = {
            "axes": tuple(range(-rank, 0)),
            "convention": convention,
            "method": pick(("matmul", "fft")),
            "smoothness": pick(SMOOTHNESS[convention]),
            "norm": pick((None, "forward", "ortho", "backward")),
            "limits": pick(
                ((None, None), (None, None), None, (1.5, None), (None, 2.5), (1.2, 3.0))
            ),
        }
        if number % 10 == 0:
            options["cropping"] = False
        if number % 10 == 5:
            options["sizes"] = tuple(int(rng.integers(1, size + 4)) for size in sizes)
        strides = tuple(
            float(pick((*STRIDES, round(float(rng.uniform(1, 5)), 3))))
            for _ in range(1 if shared else rank)
        )
        yield _diff_stride(f"mix{number}", (*batch, *sizes), strides, **options)


def _tensorflow() -> Iterator[Case]:
    """Yield cases of even and odd heights and widths in the convention of the authors' code."""
    shapes = ((2, 32, 32), (2, 31, 28), (17, 40), (2, 26, 33), (2, 9, 15), (1, 8, 8), (2, 5, 2))
    for i, (shape, strides) in enumerate(
        itertools.product(shapes, ((2.0, 2.0), (1.3, 2.7), (3.0, 1.5), (1.0, 5.0), (2.2,)))
    ):
        options: dict[str, Any] = {"convention": "tensorflow"}
        if i % 3 == 1:
            options["smoothness"] = (1.0, 2.0, 6.5)[i % 9 // 3]
        if i % 5 == 2:
            options["cropping"] = False
        if i % 7 == 3:
            options["limits"] = (1.5, 2.5)
        if i % 7 == 5:
            options["limits"] = None
        if i % 4 == 2:
            options["norm"] = ("forward", "ortho")[i % 8 // 4]
        yield _diff_stride("tensorflow", shape, strides, **options)


def _layouts() -> Iterator[Case]:
    """Yield cases with axes at any place and in any order, channels first and channels last."""
    layouts: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
        ((2, 12, 15, 3), (1, 2)),
        ((2, 12, 15, 3), (2, 1)),
        ((2, 12, 15, 3), (-3, -2)),
        ((12, 3, 15), (0, -1)),
        ((12, 3, 15), (2, 0)),
        ((9, 14), (1, 0)),
        ((9, 10, 2, 11), (3, 0, 1)),
        ((16, 2, 3), (0,)),
    )
    for shape, axes in layouts:
        for convention, method in itertools.product(("paper", "nominal"), ("matmul", "fft")):
            strides = (1.7, 2.4, 1.2)[: len(axes)]
            yield _diff_stride(
                "layout", shape, strides, axes=axes, convention=convention, method=method,
                smoothness=1.5 if convention == "paper" else 0.5,
            )  # fmt: skip
    for shape, axes in (((2, 12, 15, 3), (1, 2)), ((12, 3, 15), (2, 0))):
        yield _diff_stride("layout", shape, (1.7, 2.4), axes=axes, convention="tensorflow")


def _resizes() -> Iterator[Case]:
    for size, norm in itertools.product((1, 2, 3, 8, 9, 16, 33), ("forward", "ortho", "backward")):
        for target in (1, 2, 5, 8, 9, 20):
            yield Case(
                f"resize-{size}-{target}-{norm}",
                "spectral_resize",
                (2, size),
                options={"sizes": (target,), "axes": (-1,), "norm": norm},
            )
    for shape, sizes, axes in (
        ((2, 12, 15), (7, 20), (-2, -1)),
        ((2, 12, 15), (6, 10), (-1, 1)),
        ((7, 2, 8, 6), (4, 3, 9), (0, 2, 3)),
        ((0, 12, 15), (7, 20), (-2, -1)),
        ((2, 600), (211,), (-1,)),
        ((600, 2), (900,), (0,)),
    ):
        name = f"resize-{shape}-{sizes}-{axes}".replace(" ", "")
        yield Case(name, "spectral_resize", shape, options={"sizes": sizes, "axes": axes})


def _pools() -> Iterator[Case]:
    for convention, shape, strides in itertools.product(
        ("paper", "nominal", "tensorflow"),
        ((2, 12, 15), (2, 9, 8), (33, 32), (2, 5, 5)),
        ((2.0, 2.0), (1.0, 1.5), (3.0, 2.4), (2.0,)),
    ):
        name = f"pool-{convention}-{shape}-{strides}".replace(" ", "")
        yield Case(name, "spectral_pool", shape, strides, {"convention": convention})


def _complexities() -> Iterator[Case]:
    for i, layers in enumerate(
        (
            ((2.0, 2.0),),
            ((2.0,), (1.5,), (3.0,)),
            ((1.0, 1.0), (2.0, 3.0), (1.2, 1.7), (5.0, 1.1)),
            ((2.0, 1.5, 1.2), (3.0,)),
            ((0.5, 2.0), (2.0, 2.0)),
        )
    ):
        yield Case(f"complexity-{i}", "complexity", strides=layers)


def _conv_diff_stride(
    kind: str,
    shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    strides: tuple[float, ...],
    *,
    has_bias: bool = False,
    **options: Any,
) -> Case:
    described = [f"{key}={value}" for key, value in options.items()]
    sizes = ["x".join(map(str, sizes)) for sizes in (shape, weight_shape)]
    text = "-".join([kind, *sizes, ",".join(map(str, strides)), *["bias"] * has_bias, *described])
    return Case(
        text.replace(" ", ""), "conv_diff_stride", shape, strides, options, weight_shape, has_bias
    )


def _kernels() -> Iterator[Case]:
    """Yield cases of all forms of kernels before a resize, with both borders and methods."""
    for kernel in (
        (1,), (3,), (5,), (7,),
        (1, 1), (3, 3), (5, 5), (3, 1), (1, 5),
        (3, 3, 3), (1, 3, 5), (3, 1, 1),
    ):  # fmt: skip
        for padding_mode, method in itertools.product(("zeros", "circular"), ("fused", "separate")):
            yield _conv_diff_stride(
                "kernel",
                (2, 3, *(13, 16, 9)[: len(kernel)]),
                (4, 3, *kernel),
                (1.7, 2.4, 1.2)[: len(kernel)],
                convention="nominal",
                padding_mode=padding_mode,
                method=method,
            )
    # At this stride, the mask of an odd height has a slope at frequency 0, where the bias is.
    for method in ("fused", "separate"):
        yield _conv_diff_stride(
            "kernel", (2, 3, 9, 12), (4, 3, 3, 3), (4.5, 2.4),
            has_bias=True, convention="tensorflow", method=method,
        )  # fmt: skip
    for shape, kernel in (((2, 8, 65, 48), (3, 3)), ((3, 8, 700), (5,))):
        for strides, method in itertools.product(((2.0,), (5.5,)), ("fused", "separate")):
            yield _conv_diff_stride(
                "kernel", shape, (6, 8, *kernel), strides, has_bias=True, method=method
            )
    # Nearly the longest sums that the fused evaluation accepts, over few channels.
    for shape, kernel, stride in (((2, 4, 2048), 3, 1.6), ((2, 4, 1300), 5, 1.8)):
        yield _conv_diff_stride("long", shape, (3, 4, kernel), (stride,), method="fused")


def _convolutions() -> Iterator[Case]:
    """Yield cases of convolutions before a resize, with random options as in `_combinations`.

    Some kernels are larger than the feature maps.
    """
    rng = np.random.default_rng(20150611)

    def pick(values: Any) -> Any:
        return values[rng.integers(len(values))]

    for number in range(150):
        rank = (3, 1, 2, 2)[number % 4]
        most = {1: 26, 2: 20, 3: 12}[rank]
        sizes = tuple(int(pick(SIZES[:most])) for _ in range(rank))
        batch = pick(((0,), (3, 0)) if number % 15 == 7 else ((), (2,), (5,), (2, 3), (1, 2, 1)))
        # Some are depthwise: every channel is a group.
        groups, inputs, outputs = pick(
            ((1, 3, 4), (1, 1, 2), (1, 6, 1), (2, 2, 3), (2, 1, 2), (3, 1, 1), (3, 2, 1), (4, 1, 3))
        )
        kernel = tuple(pick((1, 3, 3, 5)) for _ in range(rank))
        conventions = ("paper", "nominal", "tensorflow") if rank == 2 else ("paper", "nominal")
        convention = pick(conventions if sizes[-1] > 1 else conventions[:2])
        options: dict[str, Any] = {
            "convention": convention,
            "method": pick(("fused", "fused", "separate", "auto")),
            "norm": pick((None, "forward", "ortho", "backward")),
        }
        if groups > 1:
            options["groups"] = groups
        if number % 3 == 0:
            options["dilation"] = pick((2, 3, {1: (5,), 2: (1, 3), 3: (2, 1, 2)}[rank]))
        reaches = np.multiply(np.array(kernel) // 2, options.get("dilation", 1))
        if number % 5 < 2 and np.all(reaches <= sizes):
            options["padding_mode"] = "circular"
        if number % 7 < 3:
            options["channels_last"] = True
        if number % 6 == 1:
            options["smoothness"] = {"paper": 1.5, "nominal": 0.6, "tensorflow": 2.0}[convention]
        if number % 8 == 2:
            options["limits"] = pick((None, (1.5, None), (1.2, 2.5)))
        if number % 10 == 3:
            options["cropping"] = False
        elif number % 5 == 4 and convention != "tensorflow":
            options["sizes"] = tuple(int(rng.integers(1, size + 4)) for size in sizes)
        strides = tuple(
            float(pick((*STRIDES, round(float(rng.uniform(1, 5)), 3))))
            for _ in range(1 if rng.random() < 0.25 else rank)
        )
        shape = (groups * inputs, *sizes)
        if "channels_last" in options:
            shape = (*sizes, groups * inputs)
        yield _conv_diff_stride(
            f"conv{number}",
            (*batch, *shape),
            (groups * outputs, inputs, *kernel),
            strides,
            has_bias=bool(rng.random() < 0.5),
            **options,
        )


def _multiples() -> Iterator[Case]:
    """Yield cases of sizes raised to a multiple: to an even, an odd and the input's own size."""
    for convention, method in itertools.product(("paper", "nominal"), ("matmul", "fft")):
        for (size, stride), multiple in itertools.product(
            ((33, 2.0), (32, 2.7), (21, 1.0), (24, 7.5)), (2, 3, 8)
        ):
            options: dict[str, Any] = {
                "axes": (-1,),
                "convention": convention,
                "method": method,
                "multiple_of": multiple,
            }
            yield _diff_stride("multiple", (2, size), (stride,), **options)
        options = {"convention": convention, "method": method, "multiple_of": 4}
        yield _diff_stride("multiple", (2, 3, 19, 30), (1.7, 2.6), **options)
    for convention, method in itertools.product(("paper", "nominal"), ("fused", "separate")):
        options = {"convention": convention, "method": method, "multiple_of": 4}
        yield _conv_diff_stride(
            "conv_multiple", (2, 3, 14, 17), (4, 3, 3, 3), (2.2, 1.6), has_bias=True, **options
        )
