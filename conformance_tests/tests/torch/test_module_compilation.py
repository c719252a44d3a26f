"""The PyTorch layers: spectral pooling, bad arguments, torch.compile."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from diffstride_backends.torch_backend import BACKEND, FUNCTIONAL
from diffstride_conformance import oracle
from diffstride_torch import (
    DiffStride1d,
    DiffStride2d,
    DiffStride3d,
    DiffStrideConv2d,
    SpectralPool1d,
    SpectralPool2d,
    SpectralPool3d,
    complexity_penalty,
    project_strides,
)
from support.torch_modules import assert_close, layer, random, set_strides
from torch._dynamo.testing import CompileCounterWithBackend

from diffstride_core import bases
from diffstride_core.conventions import CONVENTIONS, Nominal
from diffstride_core.plan import AxisPlan, Bounds
from diffstride_core.window import clipped_ramp

# Dynamo's own way of tracing any autograd function, up to 2.13 at least.
COMPILER_WARNING = (
    r"ignore:<class 'torch\.autograd\.function\.Function'> should not be instantiated:"
    "DeprecationWarning"
)
"""A smoothness other than the default."""
"""Strides with floors above 1, and a ramp that leaves small maps something to crop."""


# --- Spectral pooling ---------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [None, "forward", "ortho", "backward"])
@pytest.mark.parametrize(
    ("cls", "stride", "options"),
    [
        (SpectralPool1d, 2.0, {}),
        (SpectralPool1d, 1.5, {"axes": 1}),
        (SpectralPool2d, 2.0, {}),
        (SpectralPool2d, (1.5, 3.0), {}),
        (SpectralPool2d, (1.5, 3.0), {"convention": "paper"}),
        (SpectralPool2d, (1.5, 3.0), {"convention": "tensorflow"}),
        (SpectralPool2d, (1.5, 3.0), {"axes": (1, 2)}),
        (SpectralPool3d, 1.4, {}),
        (SpectralPool3d, (1.4, 1.0, 2.5), {}),
    ],
)
def test_spectral_pooling(cls, stride, options, norm):
    module = cls(stride, norm=norm, **options)
    assert not list(module.parameters())
    assert not module.state_dict()
    x = random(2, 7, 9, 8, dtype=torch.float64, requires_grad=True)
    y = module(x)
    g = random(*y.shape, dtype=torch.float64, seed=1)
    y.backward(g)
    axes = options.get("axes", range(-cls.rank, 0))
    axes = (axes,) if isinstance(axes, int) else axes
    reference = oracle.spectral_pool(
        x.detach().numpy(), stride, g.numpy(), norm=norm, **{**options, "axes": axes}
    )
    assert_close(y.detach(), torch.from_numpy(reference.output))
    assert_close(x.grad, torch.from_numpy(reference.dx))
    assert y.numel() < x.numel()


def test_spectral_pooling_keeps_its_input_precision_and_copies():
    module = SpectralPool2d((2.0, 1.5)).half()
    x = random(2, 12, 15).half()
    assert module(x).dtype == torch.float16
    assert torch.equal(copy.deepcopy(module)(x), module(x))
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), module(x))
    assert repr(module) == (
        "SpectralPool2d(stride=(2.0, 1.5), convention='nominal', norm='forward', axes=(-2, -1))"
    )


BAD_STRIDES = [
    (0.5, ValueError, r"stride.*0\.5"),
    (0, ValueError, "stride.*0"),
    (-2.0, ValueError, r"stride.*-2"),
    ((2.0, 0.99), ValueError, r"stride.*0\.99"),
    (math.nan, ValueError, "stride.*nan"),
    ((2.0, math.inf), ValueError, "stride.*inf"),
    ((2.0, 2.0, 2.0), ValueError, r"stride.* 2 .*3"),
    ((), ValueError, "stride.*none"),
    ([[2.0, 2.0]], ValueError, "stride"),
    ("2", TypeError, "stride.*'2'"),
    (["2", 2.0], TypeError, "stride.*'2'"),
    (True, TypeError, "stride.*True"),
    (None, TypeError, "stride.*None"),
    (2j, TypeError, "stride.*2j"),
    (np.array([2.0, 2.0], dtype=np.float16), TypeError, "stride"),
]


@pytest.mark.parametrize("cls", [DiffStride2d, SpectralPool2d])
@pytest.mark.parametrize(("stride", "error", "message"), BAD_STRIDES, ids=repr)
def test_bad_strides(cls, stride, error, message):
    with pytest.raises(error, match=message):
        cls(stride)


BAD_OPTIONS = [
    ({"smoothness": 0}, ValueError, r"smoothness.*0"),
    ({"smoothness": -1.0}, ValueError, r"smoothness.*-1"),
    ({"smoothness": math.nan}, ValueError, "smoothness.*nan"),
    ({"smoothness": math.inf}, ValueError, "smoothness.*inf"),
    ({"smoothness": "4"}, TypeError, "smoothness.*'4'"),
    ({"smoothness": True}, TypeError, "smoothness.*True"),
    ({"smoothness": 1.5}, ValueError, r"smoothness.*at most 1.*1\.5"),
    ({"smoothness": 0.0, "convention": "paper"}, ValueError, r"smoothness.*0"),
    ({"smoothness": math.nan, "convention": "paper"}, ValueError, r"smoothness.*nan"),
    ({"limits": (3.0, 2.0)}, ValueError, r"limits.*\(3\.0, 2\.0\)"),
    ({"limits": (math.nan, 2.0)}, ValueError, "limits.*nan"),
    ({"limits": (math.inf, None)}, ValueError, "limits.*inf"),
    ({"limits": 2.0}, TypeError, r"limits.*2\.0"),
    ({"limits": (1.0, 2.0, 3.0)}, TypeError, r"limits.*3\.0"),
    ({"limits": ("1", None)}, TypeError, "limits.*'1'"),
    ({"cropping": 1}, TypeError, "cropping.*1"),
    ({"method": "conv"}, ValueError, "method.*'conv'"),
    ({"method": "fft", "convention": "tensorflow"}, ValueError, "method.*'fft'"),
    ({"dtype": torch.float16}, TypeError, "dtype.*torch.float16"),
    ({"shared": True, "stride": (2.0, 3.0)}, ValueError, r"stride.*\(2\.0, 3\.0\)"),
]

BAD_OPTIONS_OF_BOTH = [
    ({"convention": "authors"}, ValueError, "convention.*'authors'"),
    ({"convention": None}, TypeError, "convention.*None"),
    ({"norm": "orthonormal"}, ValueError, "norm.*'orthonormal'"),
    ({"norm": 1}, TypeError, "norm.*1"),
    ({"axes": (1,)}, ValueError, r"axes.*2.*\(1,\)"),
    ({"axes": 1}, ValueError, r"axes.*2.*1"),
    ({"axes": (1, 2, 3)}, ValueError, r"axes.*2.*\(1, 2, 3\)"),
    ({"axes": ()}, ValueError, r"axes.*\(\)"),
    ({"axes": (1.0, 2.0)}, TypeError, r"axes.*1\.0"),
    ({"axes": "hw"}, TypeError, "axes.*'hw'"),
    ({"axes": (True, 2)}, TypeError, "axes.*True"),
]


@pytest.mark.parametrize(
    ("cls", "options", "error", "message"),
    [
        *((DiffStride2d, *row) for row in BAD_OPTIONS),
        *((cls, *row) for row in BAD_OPTIONS_OF_BOTH for cls in (DiffStride2d, SpectralPool2d)),
    ],
    ids=repr,
)
def test_bad_options(cls, options, error, message):
    with pytest.raises(error, match=message):
        cls(**{"stride": 2.0, **options})


@pytest.mark.parametrize("cls", [DiffStride2d, SpectralPool2d])
@pytest.mark.parametrize(
    ("axes", "x", "error", "message"),
    [
        ((1, -2), (2, 24, 20), ValueError, r"axes must not name an axis twice, got \(1, -2\)"),
        ((1, 3), (2, 24, 20), ValueError, r"axes .*\(2, 24, 20\), got \(1, 3\)"),
        ((-4, 1), (2, 24, 20), ValueError, r"axes .*\(2, 24, 20\), got \(-4, 1\)"),
        ((-2, -1), (24,), ValueError, r"axes .*\(24,\), got \(-2, -1\)"),
        ((-2, -1), (2, 0, 24), ValueError, r"x must not be empty.*\(2, 0, 24\)"),
    ],
)
def test_axes_that_do_not_fit_the_input(cls, axes, x, error, message):
    module = cls(2.0, axes=axes)
    with pytest.raises(error, match=message):
        module(torch.zeros(x))
    with pytest.raises(error, match=message):
        module.output_sizes(x)


@pytest.mark.parametrize("cls", [DiffStride2d, SpectralPool2d])
def test_axes_that_never_fit_are_refused_when_made(cls):
    with pytest.raises(ValueError, match=r"axes must not name an axis twice, got \(1, 1\)"):
        cls(2.0, axes=(1, 1))


@pytest.mark.parametrize("cls", [DiffStride1d, DiffStride3d, SpectralPool1d])
def test_convention_of_two_axes_is_refused_when_made(cls):
    with pytest.raises(ValueError, match=r"axes must name exactly 2 axes.*'tensorflow'"):
        cls(2.0, convention="tensorflow")


@pytest.mark.filterwarnings(COMPILER_WARNING)
@pytest.mark.slow
def test_module_compiled_before_its_first_call():
    torch._dynamo.reset()
    module, x = layer(), random(2, 24, 20)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), module(x), 1e-6)


@pytest.mark.parametrize("module", [layer(), SpectralPool2d(2.0)], ids=["DiffStride", "pool"])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((24, 20)), "x must be a torch.Tensor, got ndarray"),
        ([[1.0]], "x must be a torch.Tensor, got list"),
        (torch.zeros(24, 20, dtype=torch.int64), "x must be real.*torch.int64"),
        (torch.zeros(24, 20, dtype=torch.complex64), "x must be real.*torch.complex64"),
        (torch.zeros(24, 20, dtype=torch.bool), "x must be real.*torch.bool"),
    ],
)
def test_bad_inputs(module, x, message):
    with pytest.raises(TypeError, match=message):
        module(x)


def test_parameter_of_a_dtype_that_strides_cannot_have():
    module = layer()
    module.strides = torch.nn.Parameter(torch.tensor([1.7, 2.4], dtype=torch.float16))
    with pytest.raises(TypeError, match=r"strides must be float32 or float64.*torch.float16"):
        module(random(2, 24, 20))


def test_parameter_of_a_length_that_strides_cannot_have():
    module = layer()
    module.strides = torch.nn.Parameter(torch.tensor([1.7, 2.4, 3.0]))
    with pytest.raises(ValueError, match=r"strides must have .*got 3"):
        module(random(2, 24, 20))


# --- torch.compile ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings(COMPILER_WARNING)
@pytest.mark.parametrize("method", ["matmul", "fft"])
def test_compiled_module(method):
    torch._dynamo.reset()
    module = layer(dtype=torch.float64, method=method)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = random(2, 24, 20, dtype=torch.float64, requires_grad=True)
    shapes = []
    for values in ((1.7, 2.4), (2.9, 1.4)):
        set_strides(module, *values)
        project_strides(module)
        expected = module(x)
        y = compiled(x)
        shapes.append(y.shape)
        assert_close(y, expected, 1e-14)
        inputs = x, module.strides
        gradients = torch.autograd.grad((y**3).sum(), inputs)
        for a, b in zip(gradients, torch.autograd.grad((expected**3).sum(), inputs), strict=True):
            assert_close(a, b)
    assert shapes[0] != shapes[1]
    # Values are those of the last pass outside the graph, or of the last projection.
    set_strides(module, 1.2, 3.1)
    assert compiled(x).shape == shapes[1]
    project_strides(module)
    assert_close(compiled(x), module(x), 1e-14)
    with torch.no_grad():
        assert_close(compiled(x), module(x), 1e-14)


@pytest.mark.filterwarnings(COMPILER_WARNING)
def test_sizes_of_constant_tables_are_no_symbols():
    torch._dynamo.reset()

    def f(x):
        return x * BACKEND.tables(bases.AxisBasis(20, 12, bases.half_spectrum), x)[0].shape[0]

    graphs = CompileCounterWithBackend("eager")
    compiled = torch.compile(f, dynamic=True, fullgraph=True, backend=graphs)
    assert_close(compiled(torch.ones(3)), torch.full((3,), 12.0))
    (graph,) = graphs.graphs
    assert 12 in [argument for node in graph.graph.nodes for argument in node.args]


AXIS = AxisPlan(-1, 20, 12, True)


@pytest.mark.filterwarnings(COMPILER_WARNING)
@pytest.mark.parametrize(
    "function",
    [
        lambda s: sum(clipped_ramp(BACKEND, s + i, s).value for i in range(2)),
        lambda s: Nominal().mask(BACKEND, AXIS, 0.25, s[0], s).value,
    ],
)
def test_numbers_of_the_core_are_no_symbols(function):
    """With dynamic sizes torch.compile makes one of each number that a module or a class has."""
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("eager")
    compiled = torch.compile(function, dynamic=True, fullgraph=True, backend=graphs)
    strides = torch.full((1,), 0.5, requires_grad=True)
    assert_close(compiled(strides), function(strides))
    (graph,) = graphs.graphs
    inputs = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
    assert [name for name in inputs if not name.startswith("g_axis_")] == ["l_s_"]


@pytest.mark.filterwarnings(COMPILER_WARNING)
def test_two_autograd_functions_with_the_same_numbers_compile_with_dynamic_sizes():
    torch._dynamo.reset()
    bounds = ((Bounds(1.1, 1.2, 3.3),),)

    def twice(s):
        return sum(FUNCTIONAL.bounded_complexity(bounds, [s + i]) for i in range(2))

    strides = torch.full((1,), 1.5, requires_grad=True)
    y = torch.compile(twice, dynamic=True, fullgraph=True, backend="eager")(strides)
    assert_close(y, twice(strides))


class Twice(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) + self.layer(2 * x)


@pytest.mark.slow
@pytest.mark.filterwarnings(COMPILER_WARNING)
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize(
    "make", [lambda make: Twice(make()), lambda make: torch.nn.Sequential(make(), make())]
)
def test_several_layers_compiled_with_dynamic_sizes(convention, make):
    torch._dynamo.reset()
    network = make(lambda: DiffStride2d(1.6, convention=convention))
    x = random(2, 3, 24, 24, requires_grad=True)
    expected = network(x)
    y = torch.compile(network, dynamic=True, fullgraph=True, backend="eager")(x)
    assert_close(y, expected, 1e-5)
    for a, b in zip(*(torch.autograd.grad(z.sum(), x) for z in (y, expected)), strict=True):
        assert_close(a, b, 1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings(COMPILER_WARNING)
@pytest.mark.parametrize(
    ("module", "seen", "shape"),
    [
        (DiffStride1d(1.7), False, (20,)),
        (DiffStrideConv2d(3, 4, 3, 2.3, method="separate"), True, (3, 24, 20)),
    ],
    ids=["DiffStride", "DiffStrideConv"],
)
def test_compiled_for_any_batch(module, seen, shape):
    torch._dynamo.reset()
    module = module.double()
    if seen:
        module(random(1, *shape, dtype=torch.float64))

    def f(x):
        return module(x).relu_()

    compiled = torch.compile(f, dynamic=True, fullgraph=True, backend="aot_eager")
    for batch in (4, 7):
        x = random(batch, *shape, dtype=torch.float64, requires_grad=True)
        y, expected = compiled(x), f(x)
        assert_close(y, expected)
        inputs = x, *module.parameters()
        gradients = torch.autograd.grad((y**3).sum(), inputs)
        for a, b in zip(gradients, torch.autograd.grad((expected**3).sum(), inputs), strict=True):
            assert_close(a, b)


@pytest.mark.slow
@pytest.mark.filterwarnings(COMPILER_WARNING)
def test_compiled_training_step_is_one_graph_per_size():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    conv = torch.nn.Conv2d(3, 4, 3, dtype=torch.float64)
    eager = torch.nn.Sequential(conv, layer(dtype=torch.float64), torch.nn.Flatten())
    network = copy.deepcopy(eager)
    images = random(2, 3, 26, 22, dtype=torch.float64)
    network(images)  # A size that no eager call has seen would be compiled twice.

    def loss_of(network, images):
        return (network(images) ** 2).sum()

    compiled = torch.compile(loss_of, fullgraph=True, backend=counter)
    optimizers = [torch.optim.SGD(n.parameters(), lr=1e-7) for n in (eager, network)]
    graphs, sizes = [], []
    for step in range(6):
        if step == 3:
            for n in (eager, network):
                set_strides(n[1], 2.9, 1.4)
                project_strides(n)
        for n, loss, optimizer in (
            (eager, loss_of, optimizers[0]),
            (network, compiled, optimizers[1]),
        ):
            optimizer.zero_grad()
            loss(n, images).backward()
            optimizer.step()
            project_strides(n)
        graphs.append(counter.frame_count)
        sizes.append(network[1].output_sizes((2, 4, 24, 20)))
        for a, b in zip(network.parameters(), eager.parameters(), strict=True):
            assert_close(a, b, 1e-12)
    assert len(set(sizes[:3])) == len(set(sizes[3:])) == 1
    assert sizes[0] != sizes[-1]
    assert graphs == [1, 1, 1, 2, 2, 2]


@pytest.mark.slow
@pytest.mark.filterwarnings(COMPILER_WARNING)
def test_compiled_spectral_pooling():
    torch._dynamo.reset()
    module, x = SpectralPool2d(2.0), random(2, 24, 20)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), module(x), 1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings(COMPILER_WARNING)
def test_compiled_penalty():
    torch._dynamo.reset()
    model = torch.nn.Sequential(layer(), layer(2.0, shared=True))
    model(random(1, 60, 50))
    compiled = torch.compile(complexity_penalty, fullgraph=True, backend="aot_eager")
    value, expected = compiled(model), complexity_penalty(model)
    assert_close(value, expected, 1e-6)
    a, b = (torch.autograd.grad(v, list(model.parameters())) for v in (value, expected))
    for compiled_gradient, gradient in zip(a, b, strict=True):
        assert_close(compiled_gradient, gradient, 1e-6)
