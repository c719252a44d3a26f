"""Whole networks leave PyTorch's eager mode: torch.export, torch.compile, ONNX."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffstride_torch import (
    DiffStride2d,
    DiffStrideConv2d,
    FixedResize,
    SpectralPool2d,
    complexity,
    conv_diff_stride,
    diff_stride,
    freeze,
    project_strides,
    spectral_pool,
    spectral_resize,
    stride_summary,
)
from diffstride_torch.models import preact_resnet18
from support.amounts import quick_first
from torch.export import Dim, export

ANY_BATCH = ({0: Dim("batch")},)

each_way = pytest.mark.parametrize(
    ("method", "placement"),
    [
        ("auto", "before"),
        ("fused", "after"),
        pytest.param("auto", "after", marks=pytest.mark.slow),
    ],
)

# Of the exporters' own.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.*"),
]


def images(batch):
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))


def network(convention="nominal", *, frozen, method="auto", placement="after"):
    torch.manual_seed(0)
    options = {"convention": convention, "placement": placement}
    model = preact_resnet18(channels=(4, 4, 8, 8, 8), **options).eval()
    with torch.no_grad():
        for i, place in enumerate(model.places):
            place.method = method
            place.pool.strides.copy_(torch.tensor([1.3 + 0.4 * i, 2.6 - 0.3 * i]))
        model(images(2))
    return model, freeze(model) if frozen else model


@pytest.mark.parametrize("frozen", [True, pytest.param(False, marks=pytest.mark.slow)])
@each_way
def test_export(frozen, method, placement):
    model, shipped = network(frozen=frozen, method=method, placement=placement)
    program = export(shipped, (images(4),), dynamic_shapes=ANY_BATCH)
    with torch.no_grad():
        for batch in (1, 7):
            torch.testing.assert_close(
                program.module()(images(batch)), model(images(batch)), rtol=1e-5, atol=1e-5
            )
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    # The convolutions of the stem and of the blocks with strides are among the layers' products.
    convolutions = sum("conv2d" in name for name in called)
    assert convolutions == 20 - 4 * (method == "fused")
    if frozen:
        assert not [name for name in called if "fft" in name or "complex" in name]
        resizes = [m for m in shipped.modules() if isinstance(m, FixedResize)]
        assert len(resizes) == 4
        assert {size % 2 for resize in resizes for size in resize.output_sizes} == {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False])
@each_way
def test_compile(frozen, method, placement):
    model, shipped = network(frozen=frozen, method=method, placement=placement)
    compiled = torch.compile(shipped, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images(4)), model(images(4)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda: DiffStride2d((1.7, 2.4)),
        lambda: DiffStrideConv2d(3, 4, 3, 2.3, method="fused"),
        lambda: DiffStrideConv2d(3, 4, 3, 2.3, method="separate"),
        lambda: SpectralPool2d(2.0),
        lambda: DiffStrideConv2d(3, 4, 3, 2.3),
    ],
)
def test_a_traced_frozen_network_takes_any_batch(make, grad):
    frozen = freeze(torch.nn.Sequential(make()), images(1))
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(frozen, images(4))
        for batch in (1, 3, 16):
            torch.testing.assert_close(traced(images(batch)), frozen(images(batch)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: DiffStride2d(2.0),
        lambda: DiffStrideConv2d(3, 4, 3, 2.3, method="fused"),
        lambda: DiffStrideConv2d(3, 4, 3, 2.3, method="separate"),
        lambda: SpectralPool2d(2.0),
        lambda: lambda x: spectral_resize(x, (20, 20)),
        lambda: lambda x: spectral_pool(x, 2.0),
        lambda: lambda x: diff_stride(x, 2.0),
        lambda: lambda x: conv_diff_stride(x, x[:, :, :3, :3], 2.0),
        lambda: lambda x: complexity([x[0, 0, 0]]),
    ],
)
def test_tracing_what_is_not_frozen_is_refused(make):
    """Before anything that PyTorch warns of, which is an error here."""
    with pytest.raises(NotImplementedError, match=r"torch\.jit\.trace.*torch\.export.*freeze"):
        torch.jit.trace(make(), images(2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: DiffStride2d(2.0),
        lambda: torch.nn.Sequential(DiffStrideConv2d(3, 4, 3)),
        lambda: freeze(SpectralPool2d(2.0), images(1)),
    ],
)
def test_scripting_is_refused(make):
    with pytest.raises(NotImplementedError, match=r"torch\.jit\.script .* torch\.export .*freeze"):
        torch.jit.script(make())


@pytest.mark.parametrize("frozen", quick_first(1, [True, False]))
@pytest.mark.parametrize("padding_mode", quick_first(1, ["zeros", "circular", "reflect"]))
def test_export_of_a_convolution_behind_its_layer(padding_mode, frozen):
    torch.manual_seed(0)
    model = DiffStrideConv2d(3, 4, 3, (2.3, 3.0), padding_mode=padding_mode)
    shipped = freeze(model, images(1)) if frozen else model
    program = export(shipped, (images(4),), dynamic_shapes=ANY_BATCH)
    with torch.no_grad():
        for batch in (1, 7):
            torch.testing.assert_close(
                program.module()(images(batch)), model(images(batch)), rtol=1e-5, atol=1e-5
            )


@pytest.mark.slow
@pytest.mark.parametrize("convention", ["paper", "nominal", "tensorflow"])
@each_way
def test_onnx(convention, method, placement, tmp_path):
    model, frozen = network(convention, frozen=True, method=method, placement=placement)
    assert_onnx_computes(model, frozen, tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("padding_mode", ["zeros", "circular", "reflect"])
def test_onnx_of_a_convolution_behind_its_layer(padding_mode, tmp_path):
    model = DiffStrideConv2d(3, 4, 3, (2.3, 3.0), padding_mode=padding_mode).eval()
    assert_onnx_computes(model, freeze(model, images(1)), tmp_path / "model.onnx")


def assert_onnx_computes(model, frozen, path):
    """Save a frozen model, and compare what ONNX Runtime makes of it with the model's outputs."""
    torch.onnx.export(
        frozen, (images(4),), dynamo=True, dynamic_shapes=ANY_BATCH, verbose=False
    ).save(path)
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert "MatMul" in operators
    assert not [name for name in operators if "DFT" in name or "Complex" in name]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 7):
        (y,) = session.run(None, {session.get_inputs()[0].name: images(batch).numpy()})
        with torch.no_grad():
            expected = model(images(batch)).numpy()
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.filterwarnings("ignore::diffstride_torch.NothingToCropWarning")
@pytest.mark.parametrize("convention", ["nominal", "paper", "tensorflow"])
@pytest.mark.parametrize("options", [{}, {"limits": None}, {"cropping": False}], ids=str)
def test_frozen_layers_of_sizes_of_either_parity(convention, options):
    parities = set()
    for sizes in ((24, 20), (25, 21), (7, 6), (2, 3)):
        x = torch.randn(2, 3, *sizes, dtype=torch.float64)
        for stride in ((1.0, 1.0), (2.0, 3.0), (1.7, 2.3), (6.0, 50.0)):
            layer = DiffStride2d(stride, convention=convention, dtype=torch.float64, **options)
            y, model = layer(x), torch.nn.Sequential(layer)
            torch.testing.assert_close(freeze(model, x)(x), y, rtol=0, atol=1e-13)
            (row,) = stride_summary(layer).rows
            assert tuple(axis.output_size for axis in row.axes) == y.shape[2:]
            parities.add((y.shape[2] % 2, y.shape[3] % 2))
    # A width of the authors' code is even always.
    assert len(parities) == (2 if convention == "tensorflow" else 4)


def test_freezing_after_training_needs_a_forward_pass_or_an_example():
    model, _ = network(frozen=False)
    project_strides(model)
    with pytest.raises(ValueError, match="give an example_input"):
        freeze(model)
    with torch.no_grad():
        expected = model(images(2))
        torch.testing.assert_close(freeze(model)(images(2)), expected)
        torch.testing.assert_close(freeze(model, images(2))(images(2)), expected)
