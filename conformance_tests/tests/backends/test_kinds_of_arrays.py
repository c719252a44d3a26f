"""What kinds of arrays and numbers the functions take, and how they refuse the others by name."""

import itertools
import math
import sys
from decimal import Decimal
from fractions import Fraction

import diffstride_jax
import diffstride_numpy
import diffstride_torch
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import torch
from diffstride_jax import equinox_modules, nnx_modules
from diffstride_torch import models
from jax.experimental import sparse

from diffstride_core.arguments import FLOAT32_MAX

ADAPTERS = {"numpy": diffstride_numpy, "torch": diffstride_torch, "jax": diffstride_jax}
IMAGE = np.sin(np.arange(900.0)).reshape(30, 30)


def arrays(name, host=IMAGE):
    if name == "torch":
        return torch.tensor(host)
    return jnp.asarray(host) if name == "jax" else host


# --- Arrays that mean something else by their entries --------------------------------------------

PULLBACK = diffstride_numpy.diff_stride_with_pullback(IMAGE, 2.0, axes=-1)[1]
Y = diffstride_numpy.diff_stride(IMAGE, 2.0, axes=-1)
MASKED = np.ma.array(IMAGE, mask=IMAGE > 0.5)
NUMPY_CALLS = {
    "x": (
        lambda a: diffstride_numpy.diff_stride(a, 2.0),
        lambda a: diffstride_numpy.diff_stride(a, 2.0, method="fft"),
        lambda a: diffstride_numpy.spectral_resize(a, (9, 8)),
        lambda a: diffstride_numpy.spectral_pool(a, 2.0),
        lambda a: diffstride_numpy.DiffStride(2.0).forward(a),
        lambda a: diffstride_numpy.conv_diff_stride(a, np.ones((1, 30, 3)), 2.0),
        lambda a: diffstride_numpy.explain(a, 2.0),
    ),
    "weight": (lambda a: diffstride_numpy.conv_diff_stride(IMAGE, a[:, :, None], 2.0),),
    "g": (lambda a: PULLBACK(a[:, : Y.shape[1]]),),
    "dy": (lambda a: diffstride_numpy.explain(IMAGE, 2.0, axes=-1, dy=a[:, : Y.shape[1]]),),
}


@pytest.mark.parametrize("argument", NUMPY_CALLS)
def test_masks_are_refused_by_numpy(argument):
    for call in NUMPY_CALLS[argument]:
        with pytest.raises(TypeError, match=rf"^{argument} must be an array without a mask"):
            call(MASKED)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_other_kinds_are_refused_by_numpy():
    kinds = {
        "a numpy.matrix": np.asmatrix(IMAGE),
        "got csr_matrix": scipy.sparse.csr_matrix(IMAGE),
        "got csr_array": scipy.sparse.csr_array(IMAGE),
        "got dtype object": IMAGE.astype(object),
        "got dtype complex128": IMAGE + 0j,
        "got dtype float128": IMAGE.astype(np.longdouble),
        r"got dtype \[\('a'": np.zeros((30, 30), [("a", float)]),
    }
    if np.longdouble == np.float64:
        del kinds["got dtype float128"]
    for (found, a), call in itertools.product(kinds.items(), NUMPY_CALLS["x"]):
        with pytest.raises(TypeError, match=rf"^x must be .*{found}"):
            call(a)


class Subclass(np.ndarray):
    pass


def test_harmless_subclasses_of_numpy_work():
    for a in (IMAGE.view(Subclass), IMAGE.view(np.recarray)):
        y = diffstride_numpy.diff_stride(a, 2.0)
        assert type(y) is np.ndarray
        np.testing.assert_array_equal(y, diffstride_numpy.diff_stride(IMAGE, 2.0))


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize(
    "strides",
    [
        np.ma.array([2.0, 3.0], mask=[False, True]),
        np.ma.masked,
        [2.0, np.ma.masked],
        [2.0, np.array(True)],
        scipy.sparse.csr_matrix([[2.0, 3.0]]),
        bytearray(b"ab"),
        [2.0, 10**400],
        {2.0, 3.0},
        {2.0: 3.0}.values(),
    ],
    ids=repr,
)
def test_strides_that_are_no_numbers(name, strides):
    ds = ADAPTERS[name]
    for call in (
        lambda: ds.diff_stride(arrays(name), strides),
        lambda: ds.spectral_pool(arrays(name), strides),
        lambda: ds.output_sizes((30, 30), strides),
        lambda: ds.authors_strides((30, 30), strides),
        lambda: ds.complexity([strides]),
    ):
        with pytest.raises(TypeError, match=r"^strides must be"):
            call()
    if name == "numpy":
        with pytest.raises(TypeError, match=r"^stride must be"):
            ds.DiffStride(strides)


def tensors():
    full = torch.tensor(IMAGE, dtype=torch.float32)
    made = {
        "layout torch.sparse_coo": full.to_sparse(),
        "a nested tensor": torch.nested.nested_tensor([full, full[:8]]),
        "a masked tensor": torch.masked.masked_tensor(full, full > 0),
    }
    if torch.backends.mkldnn.is_available():
        made["layout torch._mkldnn"] = full.to_mkldnn()
    for kind in ("csr", "csc"):
        made[f"layout torch.sparse_{kind}"] = getattr(full, f"to_sparse_{kind}")()
    return made


@pytest.mark.filterwarnings("ignore:Sparse|.*nested tensors|.*MaskedTensor")
def test_tensors_that_are_not_dense_are_refused():
    full, kernel = torch.tensor(IMAGE, dtype=torch.float32), torch.ones(1, 30, 3)
    for kind, tensor in tensors().items():
        for argument, call in (
            ("x", lambda t: diffstride_torch.diff_stride(t, 2.0)),
            ("x", lambda t: diffstride_torch.spectral_resize(t, (8, 8))),
            ("x", lambda t: diffstride_torch.spectral_pool(t, 2.0)),
            ("x", lambda t: diffstride_torch.DiffStride2d(2.0)(t)),
            ("x", lambda t: diffstride_torch.conv_diff_stride(t, kernel, 2.0)),
            ("weight", lambda t: diffstride_torch.conv_diff_stride(full, t, 2.0)),
            ("bias", lambda t: diffstride_torch.conv_diff_stride(full, kernel, 2.0, bias=t)),
            ("strides", lambda t: diffstride_torch.diff_stride(full, t)),
            ("strides", lambda t: diffstride_torch.output_sizes((30, 30), t)),
            ("strides", lambda t: diffstride_torch.complexity([t])),
        ):
            with pytest.raises(
                TypeError, match=rf"^{argument} must be a dense tensor, got .*{kind}"
            ):
                call(tensor)


@pytest.mark.filterwarnings("ignore:Sparse|.*nested tensors|.*MaskedTensor")
def test_tensors_that_are_not_dense_are_refused_under_autocast():
    kernel = torch.ones(1, 30, 3)
    for kind, tensor in tensors().items():
        with (
            torch.autocast("cpu", dtype=torch.bfloat16),
            pytest.raises(TypeError, match=rf"^x must be a dense tensor, got .*{kind}"),
        ):
            diffstride_torch.conv_diff_stride(tensor, kernel, 2.0)


@pytest.mark.filterwarnings("ignore:.*MaskedTensor")
def test_gradients_that_are_not_dense_are_refused():
    x = torch.tensor(IMAGE, requires_grad=True)
    y = diffstride_torch.diff_stride(x, 2.0)
    g = torch.ones_like(y)
    for wrong in (g.to_sparse(), torch.masked.masked_tensor(g, g > 0)):
        with pytest.raises(TypeError, match=r"^the gradient of the output must be a dense"):
            y.backward(wrong)


def test_integers_without_values_are_refused():
    x, integers = torch.ones(16, 16), torch.tensor([-2, -1], device="meta")
    for name, call in (
        ("axes", lambda: diffstride_torch.diff_stride(x, 2.0, axes=integers)),
        ("sizes", lambda: diffstride_torch.spectral_resize(x, integers)),
    ):
        with pytest.raises(TypeError, match=f"^{name} must be an int or a sequence of ints"):
            call()


def test_harmless_tensors_work():
    full = torch.tensor(IMAGE)
    expected = diffstride_torch.diff_stride(full, torch.tensor([2.0, 3.0]))
    parameter, strides = torch.nn.Parameter(full), torch.nn.Parameter(torch.tensor([2.0, 3.0]))
    assert torch.equal(diffstride_torch.diff_stride(parameter, strides), expected)


def test_sparse_arrays_of_jax_are_refused():
    bcoo = sparse.BCOO((jnp.array([2.0, 3.0]), jnp.array([[0], [1]])), shape=(2,))
    x = jnp.asarray(IMAGE)
    with pytest.raises(TypeError, match=r"^x must be a jax\.Array, got BCOO"):
        diffstride_jax.diff_stride(bcoo, 2.0)
    with pytest.raises(TypeError, match=r"^strides must be"):
        diffstride_jax.diff_stride(x, bcoo)


# --- Dtypes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"])
def test_eight_bits_are_refused(name):
    for framework, dtype in (("jax", getattr(jnp, name)), ("torch", getattr(torch, name))):
        ds, x = ADAPTERS[framework], arrays(framework)
        low = x.astype(dtype) if framework == "jax" else x.to(dtype)
        kernel = low[:1, :, None]
        for argument, call in (
            ("x", lambda: ds.diff_stride(low, 2.0)),  # noqa: B023
            ("x", lambda: ds.spectral_resize(low, (9, 8))),  # noqa: B023
            ("x", lambda: ds.spectral_pool(low, 2.0)),  # noqa: B023
            ("x", lambda: ds.conv_diff_stride(low, kernel, 2.0)),  # noqa: B023
            ("weight", lambda: ds.conv_diff_stride(x, kernel, 2.0)),  # noqa: B023
            ("strides", lambda: ds.diff_stride(x, low[0, :2])),  # noqa: B023
        ):
            with pytest.raises(TypeError, match=rf"^{argument} must be .*{name}"):
                call()


@pytest.mark.parametrize("kind", ["f8", "f4", "f2"])
def test_the_byte_order_changes_nothing(kind):
    other = (">" if sys.byteorder == "little" else "<") + kind
    x, weight = IMAGE.astype(kind), np.cos(np.arange(180.0)).reshape(2, 30, 3).astype(kind)
    strides = np.array([2.0, 2.5], kind if kind != "f2" else "f4")
    swapped = strides.astype(strides.dtype.newbyteorder())
    for function, good, bad in (
        ("diff_stride", (x, strides), (x.astype(other), swapped)),
        ("conv_diff_stride", (x, weight, strides[:1]), (x, weight.astype(other), swapped[:1])),
        ("conv_diff_stride", (x, weight, strides[:1]), (x.astype(other), weight, swapped[:1])),
        ("spectral_resize", (x, (9, 8)), (x.astype(other), (9, 8))),
        ("spectral_pool", (x, strides), (x.astype(other), swapped)),
        ("complexity", ([strides],), ([swapped],)),
    ):
        function = getattr(diffstride_numpy, f"{function}_with_pullback")
        (y, pullback), (found, found_pullback) = function(*good), function(*bad)
        g = np.asarray(y)
        gradients = found_pullback(g.astype(g.dtype.newbyteorder()))
        for a, b in zip((y, *pullback(g)), (found, *gradients), strict=True):
            assert b.dtype.isnative
            np.testing.assert_array_equal(a, b, strict=True)
    explained = diffstride_numpy.explain(x.astype(other), 2.0)
    np.testing.assert_array_equal(explained.y, diffstride_numpy.diff_stride(x, 2.0))


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_strides_of_the_other_byte_order(name):
    ds, x, strides = ADAPTERS[name], arrays(name), np.array([2.0, 2.5])
    swapped = strides.astype(strides.dtype.newbyteorder())
    found, expected = ds.diff_stride(x, swapped), ds.diff_stride(x, strides)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


# --- Numbers -------------------------------------------------------------------------------------


HUGE = [1e39, -1e39, [2.0, 1e300], [np.float64(1e39), 10**40], np.array([1e39, -1e39])]
EXTREME = [*zip(HUGE, itertools.repeat("paper"), itertools.repeat((None, None)))]
CONVENTIONS = "nominal", "paper", "tensorflow"
EXTREME += itertools.product([[1e39, -1e39]], CONVENTIONS, [None, (1e39, None)])
EXTREME += itertools.product([1e39], ["nominal", "tensorflow"], [(None, None), (None, 1e39)])


@pytest.mark.parametrize(("strides", "convention", "limits"), EXTREME)
def test_strides_beyond_float32_count_as_its_ends(strides, convention, limits):
    options = {"convention": convention, "limits": limits}
    expected = diffstride_numpy.diff_stride(IMAGE, strides, **options)
    assert np.isfinite(expected).all()
    for name in ("torch", "jax"):
        ds, x = ADAPTERS[name], arrays(name)
        y = np.asarray(ds.diff_stride(x, strides, **options))
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
        assert ds.output_sizes(x.shape, strides, **options) == expected.shape


def test_the_gradient_of_a_huge_stride_is_finite():
    gradient = jax.grad(lambda x: jnp.sum(diffstride_jax.diff_stride(x, 1e39) ** 2))
    assert np.isfinite(gradient(arrays("jax"))).all()


@pytest.mark.parametrize("name", ADAPTERS)
def test_other_functions_of_huge_strides(name):
    ds = ADAPTERS[name]
    assert np.isfinite(np.asarray(ds.complexity([[1e39, 2.0], [-1e39]])))
    assert np.asarray(ds.spectral_pool(arrays(name), 1e39)).shape == (2, 2)
    assert ds.authors_strides((30, 30), 1e39) == (FLOAT32_MAX,)


def test_strides_of_layers_are_within_float32():
    assert torch.isfinite(diffstride_torch.DiffStride2d(1e39).strides).all()
    layer = diffstride_torch.DiffStride2d(2.0, limits=(1e39, None))
    diffstride_torch.project_strides(layer)
    assert torch.isfinite(layer.strides).all()


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_smoothness_beyond_float32_is_refused(name, convention):
    ds = ADAPTERS[name]
    for smoothness in (1e39, 1e-39, 10**39, 1e300):
        with pytest.raises(ValueError, match=r"^smoothness must be .* from 1e-30"):
            ds.diff_stride(arrays(name), 2.0, convention=convention, smoothness=smoothness)


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize(
    ("convention", "smoothness"),
    [("nominal", 1e-30), *itertools.product(["paper", "tensorflow"], [1e-30, 1e30])],
)
@pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")
def test_the_extreme_values_of_smoothness_are_finite(name, convention, smoothness):
    y = ADAPTERS[name].diff_stride(
        arrays(name), [2.3, 1.7], convention=convention, smoothness=smoothness
    )
    assert np.isfinite(np.asarray(y)).all()


@pytest.mark.parametrize("name", ADAPTERS)
def test_numbers_of_every_kind(name):
    ds, x = ADAPTERS[name], arrays(name)
    expected = np.asarray(ds.diff_stride(x, [2.5, 2.0], limits=(1, 3)))
    for strides in (
        [Decimal("2.5"), 2],
        (Fraction(5, 2), Fraction(2)),
        [np.float32(2.5), np.int64(2)],
        [np.array(2.5), np.float16(2)],
    ):
        y = ds.diff_stride(x, strides, limits=(Fraction(1), Decimal(3)), smoothness=Decimal("0.25"))
        np.testing.assert_array_equal(np.asarray(y), expected)


@pytest.mark.parametrize(
    "value", [np.ma.masked, np.array([4.0]), np.array(True), np.array(4j), torch.tensor(True)]
)
def test_what_is_no_number(value):
    for options in ({"smoothness": value}, {"limits": (value, None)}):
        with pytest.raises(TypeError, match=rf"^{next(iter(options))} must be a real number"):
            diffstride_numpy.diff_stride(IMAGE, 2.0, **options)


@pytest.mark.parametrize("name", ADAPTERS)
def test_huge_integers_are_refused_by_name(name):
    ds, x = ADAPTERS[name], arrays(name)
    for huge in (2**31, 10**30, 10**400):
        with pytest.raises(ValueError, match=r"^sizes must be at most 2147483647"):
            ds.spectral_resize(x, (huge, 8))
        with pytest.raises(ValueError, match=r"^sizes must be at most 2147483647"):
            ds.diff_stride(x, 2.0, sizes=(8, huge))
        with pytest.raises(ValueError, match=r"^dilation must be at most 2147483647"):
            ds.conv_diff_stride(x, arrays(name, np.ones((1, 30, 3))), 2.0, dilation=huge)
        with pytest.raises(ValueError, match=r"^axes must lie between"):
            ds.diff_stride(x, 2.0, axes=huge)
    with pytest.raises(ValueError, match=r"^shape must have no entry above"):
        ds.output_sizes((10**400, 30), 2.0)
    with pytest.raises(TypeError, match=r"^limits must be a real number"):
        ds.diff_stride(x, 2.0, limits=(None, 10**400))


# --- Sequences -----------------------------------------------------------------------------------

UNORDERED = [
    {-2, -1},
    frozenset({-2, -1}),
    {-2: 2.0, -1: 4.0},
    {-2: 2.0, -1: 4.0}.keys(),
    {2.0: -2, 4.0: -1}.values(),
    bytearray(b"\x00\x01"),
    np.ma.array([-2, -1]),
    np.array([True, False]),
    torch.tensor([True, False]),
    np.array([[-2, -1]]),
]


@pytest.mark.parametrize("entries", UNORDERED, ids=lambda entries: type(entries).__name__)
@pytest.mark.parametrize("name", ADAPTERS)
def test_what_is_no_sequence_of_integers(name, entries):
    ds, x = ADAPTERS[name], arrays(name)
    kernel = arrays(name, np.ones((1, 30, 3)))
    calls = {
        "axes": [
            lambda: ds.diff_stride(x, 2.0, axes=entries),
            lambda: ds.spectral_resize(x, (9, 8), axes=entries),
            lambda: ds.spectral_pool(x, 2.0, axes=entries),
            lambda: ds.output_sizes((30, 30), 2.0, axes=entries),
            lambda: ds.authors_strides((30, 30), 2.0, axes=entries),
        ],
        "sizes": [
            lambda: ds.diff_stride(x, 2.0, sizes=entries),
            lambda: ds.spectral_resize(x, entries),
            lambda: ds.conv_diff_stride(x, kernel, 2.0, sizes=entries),
        ],
        "shape": [lambda: ds.output_sizes(entries, 2.0)],
        "dilation": [lambda: ds.conv_diff_stride(x, kernel, 2.0, dilation=entries)],
        "groups": [lambda: ds.conv_diff_stride(x, kernel, 2.0, groups=entries)],
    }
    for argument, wrong in calls.items():
        for call in wrong:
            with pytest.raises(TypeError, match=rf"^{argument} must be an int or a sequence of"):
                call()


@pytest.mark.parametrize("name", ADAPTERS)
def test_what_is_no_sequence_of_numbers(name):
    ds, x = ADAPTERS[name], arrays(name)
    for limits in (b"12", bytearray(b"12"), {1.0, 2.0}, {1.0: 2.0, 2.0: 3.0}.keys()):
        with pytest.raises(TypeError, match=r"^limits must be None or a pair"):
            ds.diff_stride(x, 2.0, limits=limits)
    for layers in (b"ab", bytearray(b"ab"), {2.0, 3.0}, {2.0: 3.0}, {2.0: 3.0}.values(), "23"):
        with pytest.raises(TypeError, match=r"^strides_per_layer must be a sequence"):
            ds.complexity(layers)


def test_layers_are_in_an_order():
    layer = diffstride_torch.DiffStride2d(2.0)
    for layers in ({layer}, {layer: 1}, {1: layer}.values()):
        with pytest.raises(TypeError, match=r"^model must be a sequence"):
            diffstride_torch.complexity_penalty(layers)
    for modules in (nnx_modules, equinox_modules):
        layer = modules.DiffStride(2.0)
        for layers in ({1: layer}, {1: layer}.values()):
            with pytest.raises(TypeError, match=r"^layers must be a sequence"):
                modules.complexity_penalty(layers)
        assert modules.complexity_penalty(iter([layer])) == modules.complexity_penalty([layer])
    with pytest.raises(TypeError, match=r"^strides must be a sequence, one entry per place"):
        models.resnet18(strides={1.0, 2.0, 3.0, 4.0, 5.0})
    with pytest.raises(TypeError, match=r"^shape must be an int or a sequence"):
        diffstride_numpy.DiffStride(2.0).output_sizes({30, 31})


def test_sequences_of_every_kind_work():
    expected = diffstride_numpy.diff_stride(IMAGE, [2.0, 3.0], axes=(-2, -1))
    for axes in ([-2, -1], range(-2, 0), np.array([-2, -1]), (i for i in (-2, -1))):
        y = diffstride_numpy.diff_stride(IMAGE, [2.0, 3.0], axes=axes)
        np.testing.assert_array_equal(y, expected)
    single = diffstride_numpy.diff_stride(IMAGE, 2.0, axes=np.array(-1))
    np.testing.assert_array_equal(single, diffstride_numpy.diff_stride(IMAGE, 2.0, axes=-1))


# --- Pullbacks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f4", "f8", ">f8"])
@pytest.mark.parametrize("name", ["diff_stride", "conv_diff_stride", "complexity"])
def test_a_pullback_keeps_the_strides_of_its_forward_pass(name, dtype):
    function = getattr(diffstride_numpy, f"{name}_with_pullback")
    weight = np.cos(np.arange(180.0)).reshape(2, 30, 3)
    for given in ([2.5], 2.5):
        strides = np.array(given, dtype)
        before = {
            "diff_stride": (IMAGE, strides),
            "conv_diff_stride": (IMAGE, weight, strides),
            "complexity": ([strides, 2.0],),
        }[name]
        y, pullback = function(*before)
        g = np.asarray(y)
        expected = pullback(g)
        strides -= math.sqrt(0.5)
        for a, b in zip(pullback(g), expected, strict=True):
            np.testing.assert_array_equal(a, b)
