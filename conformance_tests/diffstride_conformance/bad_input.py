"""Wrong calls, which every adapter must refuse with the same error, in the same words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from diffstride_backends.registry import Framework

from diffstride_conformance.frameworks import as_implementation
from diffstride_conformance.implementation import Implementation


@dataclass(frozen=True)
class FrameworkArray:
    """Placeholder for an array of the framework that is called.

    Attributes
    ----------
    values : array_like
    dtype : str
    """

    values: npt.ArrayLike
    dtype: str = "float64"


@dataclass(frozen=True)
class BadCall:
    """One call that must be refused.

    Attributes
    ----------
    name : str
        Unique name.
    operation : str
        Name of the function in the adapters.
    arguments : tuple
        Positional arguments, with a `FrameworkArray` in place of each array of the framework.
    options : dict
        Keyword arguments.
    error : type
        Exact type of the exception, not a base class.
    mentions : tuple of str
        Texts that the message must contain: the argument, its value, and what is allowed.
    """

    name: str
    operation: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    error: type[Exception]
    mentions: tuple[str, ...]

    @property
    def dtypes(self) -> set[str]:
        """Dtypes of the framework's arrays among the arguments."""
        arguments = [*self.arguments, *self.options.values()]
        return {array.dtype for argument in arguments for array in _arrays(argument)}

    def build(self, subject: Implementation | Framework) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return new positional and keyword arguments for a framework."""
        implementation = as_implementation(subject)
        arguments = tuple(_made(argument, implementation) for argument in self.arguments)
        options = {key: _made(value, implementation) for key, value in self.options.items()}
        return arguments, options


def _arrays(value: Any) -> Iterator[FrameworkArray]:
    if isinstance(value, FrameworkArray):
        yield value
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _arrays(entry)


def _made(value: Any, implementation: Implementation) -> Any:
    if isinstance(value, FrameworkArray):
        return implementation.from_host(np.array(value.values), value.dtype)
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, list | tuple):
        return type(value)(_made(entry, implementation) for entry in value)
    return value


SHAPE = (2, 12, 10)
X = FrameworkArray(np.sin(np.arange(math.prod(SHAPE))).reshape(SHAPE))
"""A valid input for `diff_stride`, `spectral_resize` and `spectral_pool`, with a stride of 2."""

IMAGES = FrameworkArray(np.sin(np.arange(960)).reshape(2, 4, 12, 10))
WEIGHT = FrameworkArray(np.cos(np.arange(216)).reshape(6, 4, 3, 3))
BIAS = FrameworkArray(np.arange(6.0))
"""`IMAGES`, `WEIGHT` and `BIAS` are valid together for `conv_diff_stride`, with a stride of 2."""


@dataclass
class _Group:
    """The wrong calls of one function that are about one argument."""

    operation: str
    argument: str
    calls: list[BadCall] = field(default_factory=list)

    def add(
        self,
        what: str,
        *arguments: Any,
        error: type[Exception] = ValueError,
        mentions: tuple[str, ...],
        **options: Any,
    ) -> None:
        name = f"{self.operation}-{self.argument}-{what}".replace(" ", "-")
        self.calls.append(BadCall(name, self.operation, arguments, options, error, mentions))


@cache
def all_bad_calls() -> tuple[BadCall, ...]:
    """Return every wrong call."""
    calls = [
        *_inputs(),
        *_strides(),
        *_limits(),
        *_smoothness(),
        *_axes(),
        *_sizes(),
        *_choices(),
        *_tensorflow(),
        *_resizes(),
        *_pools(),
        *_complexities(),
        *_shapes(),
        *_convolved_arrays(),
        *_convolutions(),
    ]
    names = [call.name for call in calls]
    assert len(set(names)) == len(names)
    return tuple(calls)


def _inputs() -> Iterator[BadCall]:
    for operation in ("diff_stride", "spectral_resize", "spectral_pool"):
        group = _Group(operation, "x")
        for dtype in ("int64", "bool", "complex64"):
            group.add(
                dtype,
                FrameworkArray(np.ones(SHAPE), dtype),
                2,
                error=TypeError,
                mentions=("x must be real floating point", f"got dtype {dtype}"),
            )
        for what, x in (("list", [[1.0, 2.0], [3.0, 4.0]]), ("None", None), ("float", 1.0)):
            kind = type(x).__name__
            mentions = ("x must be a", f"got {kind}")
            group.add(what, x, 2, error=TypeError, mentions=mentions)
        yield from group.calls


def _strides() -> Iterator[BadCall]:
    group = _Group("diff_stride", "strides")
    for value in (math.nan, math.inf, -math.inf):
        mentions = ("strides must be finite", repr(value))
        group.add(f"{value}", X, value, mentions=mentions)
        group.add(f"{value} in a list", X, [2.0, value], mentions=mentions)
        group.add(f"{value} with sizes", X, value, mentions=mentions, sizes=(6, 6))
        for dtype in ("float32", "float64"):
            host = np.array([value, 2.0], dtype=dtype)
            group.add(f"{value} in a host array {dtype}", X, host, mentions=mentions)
            array = FrameworkArray([2.0, value], dtype)
            group.add(f"{value} in an array {dtype}", X, array, mentions=mentions)
        shared = FrameworkArray(value)
        group.add(f"{value} in a shared array", X, shared, mentions=mentions)
        group.add(f"{value} uncropped", X, value, mentions=mentions, cropping=False)

    for dtype in ("float16", "int64", "int32", "bool", "complex64"):
        mentions = ("strides must be float32 or float64", f"got dtype {dtype}")
        array = FrameworkArray([2.0, 2.0], dtype)
        group.add(f"array {dtype}", X, array, error=TypeError, mentions=mentions)
        host = np.array([2.0, 2.0]).astype(dtype)
        group.add(f"host array {dtype}", X, host, error=TypeError, mentions=mentions)
    for what, strides in (
        ("string", "2.0"),
        ("list of strings", ["2", "2"]),
        ("bytes", b"2"),
        ("bool", True),
        ("list with a bool", [2.0, True]),
        ("complex", 2 + 0j),
        ("list with a complex", [2.0, 2 + 0j]),
        ("None", None),
        ("list with None", [2.0, None]),
        ("dict", {"height": 2.0}),
        ("ragged list", [[2.0], [2.0, 2.0]]),
        ("overflow", 10**400),
        ("list with an overflow", [2.0, 10**400]),
        ("list with an array of a bool", [2.0, np.array(True)]),
        ("set", {2.0, 3.0}),
        ("dict values", {0: 2.0}.values()),
        ("bytearray", bytearray(b"22")),
    ):
        mentions = ("strides must be real numbers or an array", f"got {strides!r}")
        group.add(what, X, strides, error=TypeError, mentions=mentions)
    masked = np.ma.array([2.0, 3.0], mask=[False, True])
    mentions = ("strides must be an array without a mask",)
    group.add("masked array", X, masked, error=TypeError, mentions=mentions)

    mentions = ("strides must have at most 1 dimension", "got 2")
    for what, two_dimensional in (
        ("nested list", [[2.0, 2.0]]),
        ("2-D host array", np.full((1, 2), 2.0)),
        ("2-D array", FrameworkArray(np.full((2, 1), 2.0))),
    ):
        group.add(what, X, two_dimensional, mentions=mentions)
    for count, axes in ((3, (-2, -1)), (2, (-1,)), (2, (-3, -2, -1))):
        allowed = f"{len(axes)} or 1 for {len(axes)} axes"
        mentions = ("strides must have one entry per axis", allowed, f"got {count}")
        what = f"{count} for {len(axes)} axes"
        group.add(what, X, [2.0] * count, mentions=mentions, axes=axes)
        array = FrameworkArray([2.0] * count)
        group.add(f"{what} in an array", X, array, mentions=mentions, axes=axes)
        group.add(f"{what} with sizes", X, array, mentions=mentions, axes=axes, sizes=(5,))
    mentions = ("strides must have at least one entry", "got none")
    for what, none in (("none", []), ("none in an array", FrameworkArray([]))):
        group.add(what, X, none, mentions=mentions)
    yield from group.calls


def _limits() -> Iterator[BadCall]:
    for operation, first in (("diff_stride", X), ("output_sizes", SHAPE)):
        group = _Group(operation, "limits")
        for what, limits, allowed in (
            ("wrong way round", (3.0, 2.0), "lower <= upper"),
            ("lower NaN", (math.nan, 2.0), "not be NaN"),
            ("upper NaN", (None, math.nan), "not be NaN"),
            ("lower infinite", (math.inf, None), "finite lower limit"),
        ):
            mentions = ("limits must", allowed, f"got {limits!r}")
            group.add(what, first, 2.0, mentions=mentions, limits=limits)
        for what, limits in (
            ("three", (1.0, 2.0, 3.0)),
            ("one", (1.0,)),
            ("number", 2.0),
            ("string", "12"),
            ("bytes", b"12"),
            ("set", {1.0, 2.0}),
            ("dict", {1.0: 2.0}),
            ("True", True),
        ):
            mentions = ("limits must be None or a pair (lower, upper)", f"got {limits!r}")
            group.add(what, first, 2.0, error=TypeError, mentions=mentions, limits=limits)
        for what, limit in (("of strings", "1"), ("of bools", True), ("of complex", 1j)):
            mentions = ("limits must be a real number", f"got {limit!r}")
            group.add(what, first, 2.0, error=TypeError, mentions=mentions, limits=(limit, 3.0))
        yield from group.calls


def _smoothness() -> Iterator[BadCall]:
    group = _Group("diff_stride", "smoothness")
    for convention, allowed, values in (
        ("paper", "finite number above 0", (0, 0.0, -1.5, 1e39, 1e-39, math.nan, math.inf)),
        ("tensorflow", "finite number above 0", (0.0, -4, 1e39, 1e-39, math.nan, math.inf)),
        ("nominal", "above 0 and at most 1", (0.0, -0.25, 1.001, 4, 1e-39, math.nan, math.inf)),
    ):
        for value in values:
            group.add(
                f"{value!r} {convention}",
                X,
                2.0,
                mentions=("smoothness must be", allowed, repr(convention), f"got {float(value)!r}"),
                smoothness=value,
                convention=convention,
            )
    for what, wrong in (
        ("string", "4"),
        ("bool", True),
        ("numpy bool", np.True_),
        ("complex", 4j),
        ("list", [4.0]),
        ("host array", np.array([4.0, 4.0])),
        ("host array of one", np.array([4.0])),
        ("host array of a bool", np.array(True)),
        ("overflow", 10**400),
    ):
        mentions = ("smoothness must be a real number", f"got {wrong!r}")
        group.add(what, X, 2.0, error=TypeError, mentions=mentions, smoothness=wrong)
    yield from group.calls


def _axes() -> Iterator[BadCall]:
    for operation, second in (
        ("diff_stride", 2.0),
        ("spectral_resize", 6),
        ("spectral_pool", 2.0),
        ("output_sizes", 2.0),
    ):
        group = _Group(operation, "axes")
        first = SHAPE if operation == "output_sizes" else X
        for axes in ((-1, -1), (1, 1), (-1, 2), (0, -3)):
            mentions = ("axes must not name an axis twice", f"got {axes}")
            group.add(f"repeated {axes}", first, second, mentions=mentions, axes=axes)
        for axes in (3, (-4, -1), (0, 17)):
            given = axes if isinstance(axes, tuple) else (axes,)
            mentions = ("axes must lie between -3 and 2", str(SHAPE), f"got {given}")
            group.add(f"out of range {axes}", first, second, mentions=mentions, axes=axes)
        for wrong in (1.0, (0, 1.5), "01", b"01", True, (True, False), None, [None], [[0, 1]]):
            mentions = ("axes must be an int or a sequence of ints", f"got {wrong!r}")
            group.add(f"{wrong!r}", first, second, error=TypeError, mentions=mentions, axes=wrong)
        unordered = {-2, -1}, {-2: 2.0, -1: 4.0}, {-2: 2.0}.keys(), {0: -2}.values()
        for wrong in (*unordered, bytearray(b"\x00"), np.array([True, False])):
            mentions = ("axes must be an int or a sequence of ints", f"got {wrong!r}")
            what = type(wrong).__name__
            group.add(what, first, second, error=TypeError, mentions=mentions, axes=wrong)
        for none in ((), []):
            mentions = ("axes must have at least one entry", f"got {none!r}")
            group.add(f"none {none}", first, second, mentions=mentions, axes=none)

        for shape, empty in (((2, 0, 10), -2), ((2, 12, 0), -1)):
            emptied: Any = shape if operation == "output_sizes" else FrameworkArray(np.ones(shape))
            mentions = ("x must not be empty", str(shape), f"along axis {empty}")
            group.add(f"empty {shape}", emptied, second, mentions=mentions)
        one_dimensional: Any = (10,) if operation == "output_sizes" else FrameworkArray(np.ones(10))
        mentions = ("axes must lie between -1 and 0", "(10,)", "got (-2, -1)")
        group.add("more than dimensions", one_dimensional, second, mentions=mentions)
        yield from group.calls


_WRONG_SIZES: tuple[tuple[str, Any, type[Exception], str], ...] = (
    ("too few", (6,), ValueError, "one entry per axis, 2"),
    ("single int", 6, ValueError, "one entry per axis, 2"),
    ("too many", (6, 6, 6), ValueError, "one entry per axis, 2"),
    ("none", (), ValueError, "at least one entry"),
    ("zero", (6, 0), ValueError, "at least 1"),
    ("negative", (-6, 6), ValueError, "at least 1"),
    ("float", 6.0, TypeError, "an int or a sequence of ints"),
    ("floats", (6.0, 6.0), TypeError, "an int or a sequence of ints"),
    ("string", "66", TypeError, "an int or a sequence of ints"),
    ("strings", ("6", "6"), TypeError, "an int or a sequence of ints"),
    ("bools", (True, True), TypeError, "an int or a sequence of ints"),
    ("set", {6, 5}, TypeError, "an int or a sequence of ints"),
    ("dict", {6: 1, 5: 1}, TypeError, "an int or a sequence of ints"),
    ("bytes", b"66", TypeError, "an int or a sequence of ints"),
    ("huge", (6, 10**400), ValueError, "at most 2147483647"),
    ("NaN", math.nan, TypeError, "an int or a sequence of ints"),
)


def _sizes() -> Iterator[BadCall]:
    group = _Group("diff_stride", "sizes")
    for what, sizes, error, allowed in _WRONG_SIZES:
        given = (sizes,) if isinstance(sizes, int) else sizes
        mentions = ("sizes must", allowed, f"got {given!r}")
        group.add(what, X, 2.0, error=error, mentions=mentions, sizes=sizes)
    yield from group.calls


def _choices() -> Iterator[BadCall]:
    for operation, second, names in (
        ("diff_stride", 2.0, ("norm", "convention", "method")),
        ("spectral_resize", (6, 5), ("norm",)),
        ("spectral_pool", 2.0, ("norm", "convention")),
    ):
        for name in names:
            group = _Group(operation, name)
            allowed = {
                "norm": "'forward', 'ortho', 'backward'",
                "convention": "'nominal', 'paper', 'tensorflow'",
                "method": "'auto', 'matmul', 'fft'",
            }[name]
            wrong: tuple[tuple[Any, type[Exception]], ...] = (
                ("other", ValueError),
                ("", ValueError),
                (allowed[1:4].upper(), ValueError),
                (1, TypeError),
                (True, TypeError),
                (("ortho",), TypeError),
            )
            if name != "norm":  # for norm, None is the convention's default
                wrong += ((None, TypeError),)
            for value, error in wrong:
                mentions = (f"{name} must be one of {allowed}", f"got {value!r}")
                options = {name: value}
                group.add(repr(value), X, second, error=error, mentions=mentions, **options)
            yield from group.calls

    for operation, first in (("diff_stride", X), ("output_sizes", SHAPE)):
        group = _Group(operation, "cropping")
        for value in (1, 0, None, "yes", np.ones(2)):
            what = type(value).__name__ + (str(value) if isinstance(value, int) else "")
            mentions = ("cropping must be True or False", f"got {value!r}")
            group.add(what, first, 2.0, error=TypeError, mentions=mentions, cropping=value)
        yield from group.calls

        group = _Group(operation, "multiple_of")
        for value, error, allowed in (
            (0, ValueError, "be at least 1"),
            (-8, ValueError, "be at least 1"),
            (2.0, TypeError, "be an int"),
            (True, TypeError, "be an int"),
            (None, TypeError, "be an int"),
            ((2, 2), TypeError, "be an int"),
        ):
            mentions = (f"multiple_of must {allowed}", f"got {value!r}")
            group.add(repr(value), first, 2.0, error=error, mentions=mentions, multiple_of=value)
        for others in ({"cropping": False}, {"convention": "tensorflow"}):
            mentions = ("multiple_of must be 1", "got 4")
            group.add(f"4 {others}", first, 2.0, mentions=mentions, multiple_of=4, **others)
        yield from group.calls


def _tensorflow() -> Iterator[BadCall]:
    group = _Group("diff_stride", "tensorflow")
    group.add(
        "fft",
        X,
        2.0,
        mentions=("method must be 'matmul' or 'auto'", "'tensorflow'", "got 'fft'"),
        convention="tensorflow",
        method="fft",
    )
    larger = ((13, 10), (12, 11), (24, 20))
    for sizes in larger:
        mentions = ("sizes must be at most (12, 10)", "'tensorflow'", f"got {sizes}")
        what = f"sizes {sizes}"
        group.add(what, X, 2.0, mentions=mentions, convention="tensorflow", sizes=sizes)
    yield from group.calls

    for operation in ("diff_stride", "spectral_pool", "output_sizes", "authors_strides"):
        group = _Group(operation, "tensorflow")
        options = {} if operation == "authors_strides" else {"convention": "tensorflow"}
        shapes_only = operation in ("output_sizes", "authors_strides")
        first: Any = SHAPE if shapes_only else X
        for axes in ((-1,), (0, 1, 2)):
            mentions = ("axes must name exactly 2 axes", "'tensorflow'", f"got {axes}")
            what = f"{len(axes)} axes"
            group.add(what, first, 2.0, mentions=mentions, axes=axes, **options)
        narrow: Any = (2, 12, 1) if shapes_only else FrameworkArray(np.ones((2, 12, 1)))
        mentions = ("'tensorflow' needs a width of at least 2", "got an axis of size 1")
        group.add("width 1", narrow, 2.0, mentions=mentions, **options)
        yield from group.calls


def _resizes() -> Iterator[BadCall]:
    group = _Group("spectral_resize", "sizes")
    for what, sizes, error, allowed in (
        *_WRONG_SIZES,
        ("None", None, TypeError, "an int or a sequence of ints"),
    ):
        given = (sizes,) if isinstance(sizes, int) else sizes
        mentions = ("sizes must", allowed, f"got {given!r}")
        group.add(what, X, sizes, error=error, mentions=mentions)
    yield from group.calls


def _pools() -> Iterator[BadCall]:
    group = _Group("spectral_pool", "strides")
    for convention in ("nominal", "paper", "tensorflow"):
        for value in (0.999, 0.0, -2.0):
            mentions = ("strides must be at least 1", repr(value))
            what = f"{value} {convention}"
            group.add(what, X, (2.0, value), mentions=mentions, convention=convention)
        for value in (math.nan, math.inf):
            mentions = ("strides must be finite", repr(value))
            what = f"{value} {convention}"
            group.add(what, X, value, mentions=mentions, convention=convention)
            array = FrameworkArray([2.0, value])
            group.add(f"{what} array", X, array, mentions=mentions, convention=convention)
    group.add("three", X, (2.0,) * 3, mentions=("strides must have one entry per axis", "got 3"))
    group.add("none", X, (), mentions=("strides must have at least one entry", "got none"))
    mentions = ("strides must have at most 1 dimension", "got 2")
    group.add("nested", X, [[2.0, 2.0]], mentions=mentions)
    mentions = ("strides must be real numbers", "got '2'")
    group.add("string", X, "2", error=TypeError, mentions=mentions)
    half = FrameworkArray(2.0, "float16")
    mentions = ("strides must be float32 or float64", "got dtype float16")
    group.add("half", X, half, error=TypeError, mentions=mentions)
    yield from group.calls


def _complexities() -> Iterator[BadCall]:
    group = _Group("complexity", "strides_per_layer")
    for none in ([], ()):
        mentions = ("strides_per_layer must have at least one layer", "got none")
        group.add(f"none {none}", none, mentions=mentions)
    for wrong in (2.0, None, "22", b"22", {0: [2.0, 2.0]}, {2.0, 3.0}, np.full((1, 2), 2.0)):
        mentions = ("strides_per_layer must be a sequence", f"got {wrong!r}")
        group.add(type(wrong).__name__, wrong, error=TypeError, mentions=mentions)
    for value in (math.nan, math.inf):
        mentions = ("strides must be finite", repr(value))
        group.add(f"{value}", [[2.0, 2.0], [value, 2.0]], mentions=mentions)
        array = FrameworkArray([2.0, value])
        group.add(f"{value} in an array", [array, [2.0]], mentions=mentions)
    mentions = ("strides must have at most 1 dimension", "got 2")
    group.add("2-D", [FrameworkArray(np.full((2, 2), 2.0))], mentions=mentions)
    group.add("2-D host", [[2.0], [[2.0, 2.0]]], mentions=mentions)
    mentions = ("strides must have at least one entry", "got none")
    group.add("empty layer", [[2.0, 2.0], []], mentions=mentions)
    group.add("empty array", [FrameworkArray([])], mentions=mentions)
    mentions = ("strides must be float32 or float64", "got dtype float16")
    group.add("half", [FrameworkArray([2.0], "float16")], error=TypeError, mentions=mentions)
    for what, layer in (("None in it", None), ("strings", ["2"])):
        mentions = ("strides must be real numbers or an array", f"got {layer!r}")
        group.add(what, [[2.0], layer], error=TypeError, mentions=mentions)
    yield from group.calls


def _shapes() -> Iterator[BadCall]:
    for operation in ("output_sizes", "authors_strides"):
        group = _Group(operation, "shape")
        for what, shape in (
            ("floats", (12.0, 10.0)),
            ("string", "ab"),
            ("None", None),
            ("set", {12, 10}),
            ("dict", {12: 0, 10: 0}),
        ):
            mentions = ("shape must be an int or a sequence of ints", f"got {shape!r}")
            group.add(what, shape, 2.0, error=TypeError, mentions=mentions)
        mentions = ("shape must have no negative entry", "got (12, -10)")
        group.add("negative", (12, -10), 2.0, mentions=mentions)
        yield from group.calls

        group = _Group(operation, "strides")
        for strides, allowed in (
            (math.nan, "finite"),
            ([2.0] * 3, "one entry per axis"),
            ([], "at least one entry"),
        ):
            group.add(f"{strides}", SHAPE, strides, mentions=("strides must", allowed))
        mentions = ("strides must be float32 or float64", "got dtype int64")
        integers = FrameworkArray([2, 2], "int64")
        group.add("integers", SHAPE, integers, error=TypeError, mentions=mentions)
        yield from group.calls


def _convolved_arrays() -> Iterator[BadCall]:
    arrays = {"x": IMAGES, "weight": WEIGHT, "bias": BIAS}

    def add(
        group: _Group, what: str, wrong: Any, *mentions: str, error: type[Exception] = ValueError
    ) -> None:
        """Add a call with a wrong array in place of the argument of the group."""
        given = {**arrays, group.argument: wrong}
        group.add(
            what, given["x"], given["weight"], 2.0,
            bias=given["bias"], error=error, mentions=mentions,
        )  # fmt: skip

    for argument, good in arrays.items():
        group = _Group("conv_diff_stride", argument)
        for dtype in ("int64", "bool", "complex64"):
            mentions = (f"{argument} must be real floating point", f"got dtype {dtype}")
            wrong = FrameworkArray(np.ones_like(good.values), dtype)
            add(group, dtype, wrong, *mentions, error=TypeError)
        for value in ([1.0], 1.0, None):
            if argument == "bias" and value is None:  # None means no bias
                continue
            what = type(value).__name__
            add(group, what, value, f"{argument} must be a", f"got {what}", error=TypeError)
        if argument != "x":
            for dtype in ("float32", "float16"):
                mentions = (f"{argument} must have the dtype of x", "float64, got", dtype)
                wrong = FrameworkArray(good.values, dtype)
                add(group, dtype, wrong, *mentions, error=TypeError)
        yield from group.calls

    wrong_shapes: tuple[tuple[str, str, tuple[tuple[int, ...], ...]], ...] = (
        ("x", "channels and 2 spatial axes", ((12, 10), (10,), ())),
        ("x", "not be empty", ((2, 4, 0, 10), (2, 4, 12, 0))),
        ("weight", "have the shape (out_channels,", ((), (6,), (6, 4), (6, 4, 3, 3, 3, 3))),
        ("weight", "have odd kernel sizes", ((6, 4, 3, 2), (6, 4, 4, 3))),
        ("weight", "no empty axis", ((6, 4, 3, 0), (0, 4, 3, 3), (6, 0, 3, 3))),
        ("weight", "in_channels / groups of x", ((6, 3, 3, 3), (6, 2, 3, 3), (6, 5, 1, 1))),
        ("bias", "have shape (6,)", ((), (1,), (4,), (6, 1), (1, 6))),
    )
    for argument, allowed, shapes in wrong_shapes:
        group = _Group("conv_diff_stride", argument)
        for shape in shapes:
            mentions = (f"{argument} must", allowed, str(shape))
            add(group, f"shape {shape}", FrameworkArray(np.ones(shape)), *mentions)
        yield from group.calls
    group = _Group("conv_diff_stride", "x")
    for shape, channels in (((2, 5, 12, 10), 5), ((2, 12, 10, 4), 12), ((3, 12, 10), 3)):
        mentions = ("in_channels / groups of x", f"for {channels} channels")
        add(group, f"shape {shape}", FrameworkArray(np.ones(shape)), *mentions)
    yield from group.calls


def _convolutions() -> Iterator[BadCall]:
    def calls(
        argument: str,
        allowed: str,
        *wrong: Any,
        error: type[Exception] = ValueError,
        **others: Any,
    ) -> Iterator[BadCall]:
        """Yield one call per wrong value of a keyword argument. The other arguments are right."""
        group = _Group("conv_diff_stride", argument)
        for value in wrong:
            options = {**others, argument: value}
            mentions = (f"{argument} must", allowed, f"got {value!r}")
            what = " ".join([repr(value), *(f"{key} {other}" for key, other in others.items())])
            group.add(what, IMAGES, WEIGHT, 2.0, error=error, mentions=mentions, **options)
        yield from group.calls

    integers = "an int or a sequence of ints"
    yield from calls("dilation", "1 or 2 entries of at least 1", 0, -1, (1, 0), (1, 1, 1))
    yield from calls("dilation", "at least one entry", ())
    yield from calls("dilation", integers, 1.0, "2", None, True, (1, 1.5), {1, 2}, error=TypeError)
    yield from calls("groups", "one entry of at least 1", 0, -2, (1, 1))
    yield from calls("groups", integers, 1.0, "1", None, True, error=TypeError)
    choices = {
        "padding_mode": "'zeros', 'circular'",
        "method": "'auto', 'fused', 'separate'",
        "norm": "'forward', 'ortho', 'backward'",
        "convention": "'nominal', 'paper', 'tensorflow'",
    }
    for argument, names in choices.items():
        yield from calls(argument, f"be one of {names}", "", "matmul", "same", names[1:4].upper())
        wrong: tuple[Any, ...] = (1, True, ("zeros",))
        if argument != "norm":  # for norm, None is the convention's default
            wrong = (*wrong, None)
        yield from calls(argument, f"be one of {names}", *wrong, error=TypeError)
    yield from calls("channels_last", "be True or False", 1, 0, None, "yes", error=TypeError)
    yield from calls("cropping", "be True or False", 1, None, error=TypeError)
    yield from calls("multiple_of", "be at least 1", 0)
    yield from calls("limits", "lower <= upper", (3.0, 2.0))
    yield from calls("smoothness", "above 0 and at most 1", 0.0, -1.0, 1.5, math.nan)
    yield from calls("smoothness", "finite number above 0", 0.0, convention="paper")
    yield from calls("sizes", "one entry per axis, 2", (6,), (6, 6, 6))
    yield from calls("sizes", "at least 1", (6, 0))

    group = _Group("conv_diff_stride", "groups")
    for groups, shape in ((2, (6, 4, 3, 3)), (2, (5, 2, 3, 3)), (3, (6, 1, 3, 3))):
        weight = FrameworkArray(np.ones(shape))
        mentions = ("out_channels divisible by groups", f"groups {groups} for 4 channels")
        what = f"{groups} of {shape}"
        group.add(what, IMAGES, weight, 2.0, mentions=mentions, groups=groups)
    yield from group.calls

    group = _Group("conv_diff_stride", "padding_mode")
    mentions = ("padding_mode must be 'zeros'", "got 'circular' for a reach of (1, 11)", "(12, 10)")
    group.add(
        "circular too far", IMAGES, WEIGHT, 2.0,
        mentions=mentions, padding_mode="circular", dilation=(1, 11),
    )  # fmt: skip
    yield from group.calls

    group = _Group("conv_diff_stride", "method")
    longest = FrameworkArray(np.ones((1, 2049))), FrameworkArray(np.ones((1, 1, 3)))
    mentions = ("x must have at most 2048 samples", "'fused'", "got sizes (2049,)")
    group.add("fused too long", *longest, 2.0, mentions=mentions, method="fused")
    yield from group.calls

    group = _Group("conv_diff_stride", "tensorflow")
    line = FrameworkArray(np.ones((4, 12))), FrameworkArray(np.ones((6, 4, 3)))
    mentions = ("axes must name exactly 2 axes", "'tensorflow'")
    group.add("1 axis", *line, 2.0, mentions=mentions, convention="tensorflow")
    yield from group.calls

    group = _Group("conv_diff_stride", "strides")
    for strides, allowed in (
        (math.nan, "be finite"),
        (FrameworkArray([2.0, math.inf]), "be finite"),
        ([2.0] * 3, "have one entry per axis"),
        (FrameworkArray([2.0] * 4), "have one entry per axis"),
        ([], "have at least one entry"),
        ([[2.0, 2.0]], "have at most 1 dimension"),
    ):
        values = strides.values if isinstance(strides, FrameworkArray) else strides
        what = f"{values} {type(strides).__name__}"
        group.add(what, IMAGES, WEIGHT, strides, mentions=(f"strides must {allowed}",))
    for dtype in ("float16", "int64"):
        mentions = ("strides must be float32 or float64", f"got dtype {dtype}")
        array = FrameworkArray([2, 2], dtype)
        group.add(dtype, IMAGES, WEIGHT, array, error=TypeError, mentions=mentions)
    for strides in (None, "2"):
        mentions = ("strides must be real numbers or an array", f"got {strides!r}")
        group.add(f"{strides!r}", IMAGES, WEIGHT, strides, error=TypeError, mentions=mentions)
    yield from group.calls
