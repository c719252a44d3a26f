"""CuPy: its namespace, the whole adapter on a stand-in, errors without a GPU; and on a GPU."""

import contextlib
import doctest
import importlib
import importlib.util
import inspect
import json
import pickle
import pkgutil
import re
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import diffstride_numpy
import ml_dtypes
import numpy as np
import pytest
import torch
from diffstride_backends import registry
from diffstride_conformance.bad_input import all_bad_calls
from diffstride_conformance.cases import all_cases
from diffstride_conformance.problems import is_posed, pose
from diffstride_conformance.run import run_case
from diffstride_torch import diff_stride as torch_diff_stride
from support.amounts import quick_every
from support.subjects import skip

from diffstride_core.testing import cache_info

pytestmark = pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs/cupy.md").read_text("utf-8")
FAKE = ROOT / "conformance_tests/support/fake_cupy.py"


def load_fake():
    spec = importlib.util.spec_from_file_location("fake_cupy", FAKE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fake_cupy = load_fake()


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


# --- On a CuPy built on NumPy ------------------------------------------------------------------


@pytest.fixture
def fake():
    with fake_cupy.installed():
        yield fake_cupy


@pytest.fixture
def cupy(fake):
    return importlib.import_module("cupy")


@pytest.fixture
def ds(fake):
    return importlib.import_module("diffstride_cupy")


def uploads_of_strides_and_tables(watch, x):
    """Return whether what went to the device is strides and tables, and not x."""
    return all(len(shape) <= 2 and shape != x.shape for shape in watch.to_device)


# CuPy has no convolution for the method "separate".
CASES = [case for case in all_cases() if case.method != "separate"]
PROBLEMS = [
    (case, dtype)
    for dtype in ("float64", "float32", "float16")
    for case in CASES
    if is_posed(case, dtype)
]


@pytest.mark.parametrize(
    ("case", "dtype"),
    quick_every(5, PROBLEMS[::9]),
    ids=lambda value: getattr(value, "name", value),
)
def test_conformance_on_the_fake(fake, case, dtype):
    assert run_case(registry.get("cupy"), case, dtype)


@pytest.mark.parametrize("case", CASES[::40], ids=lambda case: case.name)
def test_everything_stays_on_the_device_of_its_input(fake, case):
    framework = registry.get("cupy")
    on_second = partial(framework.backend.from_host, dtype="float64", device=fake.Device(1))
    arguments = [on_second(array) for array, _ in pose(case, "float64").arrays]
    options = dict(case.options)
    if case.operation == "complexity":
        arguments = [arguments]
    elif case.operation == "spectral_pool":
        arguments.append(on_second(np.array(case.strides)))
    elif case.has_bias:
        options["bias"] = arguments.pop()
    y, pullback = getattr(framework.with_pullback, case.operation)(*arguments, **options)
    alone = getattr(framework.functional, case.operation)(*arguments, **options)
    results = (y, alone, *pullback(y))
    assert [array.device.id for array in results] == [1] * len(results)
    assert fake.Device().id == 0


@pytest.mark.parametrize("call", quick_every(4, all_bad_calls()), ids=lambda call: call.name)
def test_wrong_calls_are_refused_as_by_numpy(fake, call):
    messages = []
    for name in ("numpy", "cupy"):
        framework = registry.get(name)
        arguments, options = call.build(framework)
        with pytest.raises(call.error) as caught:
            getattr(framework.functional, call.operation)(*arguments, **options)
        assert caught.type is call.error
        messages.append(re.sub(r"\b(numpy|cupy)\.ndarray\b", "ARRAY", str(caught.value)))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("method", ["matmul", "fft"])
@pytest.mark.parametrize(
    ("strides", "sizes", "transfers"),
    [
        (2.0, None, []),
        ([2.0, 1.5], None, []),
        (np.array([2.0, 1.5], np.float32), None, []),
        ("cupy", None, [(2,)]),
        ("cupy", (14, 17), []),
        (2.0, (14, 17), []),
    ],
)
def test_transfers_of_diff_stride(fake, cupy, ds, strides, sizes, transfers, method):
    x = cupy.asarray(random(2, 20, 24))
    strides = cupy.asarray([2.0, 1.5]) if isinstance(strides, str) else strides
    for function in (ds.diff_stride_with_pullback, ds.diff_stride):
        fake.watch.clear()
        result = function(x, strides, sizes=sizes, method=method)
        assert fake.watch.to_host == transfers
        assert uploads_of_strides_and_tables(fake.watch, x)
        if isinstance(result, tuple):
            y, pullback = result
            pullback(y)
            assert fake.watch.to_host == transfers


def test_transfers_of_the_other_functions(fake, cupy, ds):
    x, strides = cupy.asarray(random(2, 20, 24)), cupy.asarray([2.0, 1.5])
    fake.watch.clear()
    ds.spectral_resize_with_pullback(x, (30, 11))[1](cupy.asarray(random(2, 30, 11)))
    ds.spectral_pool(x, [2.0, 1.5])
    ds.output_sizes(x.shape, [2.0, 1.5])
    value, pullback = ds.complexity_with_pullback([[2.0, 1.5], np.array([3.0])])
    pullback(value)
    assert fake.watch.to_host == []
    for read in (
        lambda: ds.spectral_pool(x, strides),
        lambda: ds.output_sizes(x.shape, strides),
        lambda: ds.authors_strides(x.shape, strides),
        lambda: ds.complexity([strides]),
    ):
        fake.watch.clear()
        read()
        assert fake.watch.to_host == [(2,)]


@pytest.mark.parametrize("stride", [2.0, [2.0, 1.5], np.float32([2.0, 1.5]), np.array(2.0)])
def test_gradients_are_of_the_strides_shape_and_dtype(cupy, ds, stride):
    x = cupy.asarray(random(2, 20, 24), dtype=cupy.float32)
    y, pullback = ds.diff_stride_with_pullback(x, stride)
    dx, dstrides = pullback(y)
    assert isinstance(dx, cupy.ndarray)
    assert (dx.shape, dx.dtype) == (x.shape, x.dtype)
    assert isinstance(dstrides, cupy.ndarray)
    assert (dstrides.shape, dstrides.dtype) == (np.shape(stride), np.asarray(stride).dtype)


def test_a_pullback_keeps_the_strides_of_its_forward_pass(cupy, ds):
    x, host = cupy.asarray(random(2, 20, 24)), np.array([2.0, 1.5])
    strides = cupy.asarray(host)
    strides._host = host  # what the caller writes to
    for function, arguments in (
        (ds.diff_stride_with_pullback, (x, strides)),
        (ds.complexity_with_pullback, ([strides],)),
    ):
        y, pullback = function(*arguments)
        before = [array.get() for array in pullback(y)]
        host += 0.25
        for a, b in zip(pullback(y), before, strict=True):
            np.testing.assert_array_equal(a.get(), b)


@pytest.mark.parametrize("name", ["diff_stride", "complexity_with_pullback"])
def test_a_function_is_pickled_by_its_name(ds, name):
    function = getattr(ds, name)
    assert function.__qualname__ == name
    assert pickle.loads(pickle.dumps(function)) is function


def test_other_arrays_are_refused(cupy, ds):
    for wrong, message in (
        (np.ones((8, 8)), "x must be a cupy.ndarray, got ndarray"),
        (torch.ones(8, 8), "x must be a cupy.ndarray, got Tensor"),
        (cupy.ones((8, 8), dtype=cupy.int64), "x must be real floating point.* got dtype int64"),
        (
            cupy.asarray(np.ones((8, 8), ml_dtypes.bfloat16)),
            "x must be real floating point.* got dtype bfloat16",
        ),
    ):
        for call in (ds.diff_stride, lambda x, _: ds.DiffStride(2.0).forward(x)):
            with pytest.raises(TypeError, match=message):
                call(wrong, 2.0)
    y, pullback = ds.diff_stride_with_pullback(cupy.ones((8, 8)), 1.5)
    with pytest.raises(TypeError, match=r"g must be a cupy\.ndarray, got ndarray"):
        pullback(y.get())


def test_strides_on_another_device_are_refused(cupy, ds):
    x = cupy.ones((8, 8))
    with cupy.cuda.Device(1):
        strides = cupy.asarray([2.0, 2.0])
    message = "strides must be on the device of x, <CUDA Device 0>, got <CUDA Device 1>"
    with pytest.raises(ValueError, match=message):
        ds.diff_stride(x, strides)


@pytest.mark.parametrize("method", ["matmul", "fft"])
def test_one_set_of_tables_per_stream(fake, cupy, ds, method):
    # The fake fails where an array is read in another stream than that which made it.
    x, streams = cupy.asarray(random(2, 20, 24)).everywhere(), [cupy.cuda.Stream() for _ in "ab"]
    expected = ds.diff_stride(x, 2.0, method=method).get()
    for again in range(2):
        for stream in streams:
            fake.watch.clear()
            with stream:
                y, pullback = ds.diff_stride_with_pullback(x, 2.0, method=method)
                pullback(y)
                np.testing.assert_array_equal(y.get(), expected)
            assert len(fake.watch.to_device) == (5 if method == "matmul" and not again else 1)


def test_one_set_of_tables_per_device(cupy, ds):
    for _ in range(2):
        for device in (0, 1):
            with cupy.cuda.Device(device):
                x = cupy.ones((20, 24))
            assert ds.diff_stride(x, 2.0).device.id == device


def test_default_streams_of_threads_are_told_apart(cupy, ds):
    x, results = cupy.asarray(random(2, 20, 24)).everywhere(), []

    def work():
        with cupy.cuda.Stream.ptds:
            results.append(ds.diff_stride(x, 2.0).get())

    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    np.testing.assert_array_equal(results[0], results[1])


def test_tables_are_bounded(fake):
    assert cache_info()["cupy_backend.tables"].most_bytes <= 2**26


@pytest.mark.parametrize("options", [{}, {"convention": "paper"}, {"shared": True}, {"axes": 0}])
def test_layer_is_numpys(fake, cupy, ds, options):
    here, there = ds.DiffStride(2.0, **options), diffstride_numpy.DiffStride(2.0, **options)
    x = random(24, 20)
    on_device = cupy.asarray(x)
    fake.watch.clear()
    for _ in range(3):
        y, expected = here.forward(on_device), there.forward(x)
        dx, dstrides = here.backward(y)
        assert here.output_sizes(x.shape) == there.output_sizes(x.shape)
        assert fake.watch.to_host == []
        assert isinstance(here.strides, np.ndarray)
        references = (expected, *there.backward(expected))
        for found, reference in zip((y, dx, dstrides), references, strict=True):
            np.testing.assert_allclose(found.get(), reference, rtol=0, atol=1e-11)
        assert uploads_of_strides_and_tables(fake.watch, x)
        fake.watch.clear()
        for layer in (here, there):
            layer.strides += 0.3
            layer.project()
    assert json.dumps(here.to_dict()) == json.dumps(there.to_dict())
    assert repr(here) == repr(there)


def test_layer_on_the_second_device(cupy, ds):
    layer = ds.DiffStride(2.0)
    with cupy.cuda.Device(1):
        x = cupy.ones((20, 24))
    y = layer.forward(x)
    assert {array.device.id for array in (y, *layer.backward(y))} == {1}


def test_layer_keeps_its_strides_on_the_host(cupy, ds):
    layer = ds.DiffStride([2.0, 1.5])
    y = layer.forward(cupy.ones((20, 24)))
    _, dstrides = layer.backward(y)
    with pytest.raises(TypeError):
        layer.strides -= dstrides
    layer.strides = dstrides
    with pytest.raises(TypeError, match="strides must be a float64 NumPy array of one dimension"):
        layer.forward(cupy.ones((20, 24)))


def test_framework_of_an_array(cupy):
    assert registry.unavailable("cupy") is None
    framework = registry.framework_of(cupy.ones(2))
    assert framework.name == "cupy"
    assert [device.id for device in framework.backend.devices()] == [0, 1]


def test_doctests(ds):
    failed, attempted = doctest.testmod(importlib.import_module("diffstride_cupy.modules"))
    assert attempted >= 6
    assert failed == 0


def code_of_docs():
    return "\n".join(re.findall(r"```python\n(.*?)```", DOCS, re.S))


class StreamOfTorch:
    """What `torch.cuda.current_stream` gives."""

    def __cuda_stream__(self):
        return 0, 77


def test_code_of_the_docs_on_the_fake(fake, cupy, monkeypatch, capsys):
    seen = []

    def from_dlpack(tensor):
        seen.append(cupy.cuda.get_current_stream().ptr)
        return fake.ndarray(np.from_dlpack(tensor))

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: StreamOfTorch())
    monkeypatch.setattr(cupy, "from_dlpack", from_dlpack)
    names = {}
    exec(compile(code_of_docs().replace('device="cuda"', 'device="cpu"'), "cupy.md", "exec"), names)
    assert capsys.readouterr().out
    assert seen == [0, 77, 77, 77]  # without a gradient, then forward and backward
    check_bridge(names["DiffStrideFunction"], torch.device("cpu"))


def check_bridge(function, device):
    """Compare the docs' autograd function with the PyTorch adapter."""
    x = torch.tensor(random(3, 20, 24), device=device, requires_grad=True)
    strides = torch.tensor([2.0, 1.5], dtype=torch.float64, device=device, requires_grad=True)
    gradients = []
    for f in (function.apply, torch_diff_stride):
        y = f(x, strides)
        gradients.append(torch.autograd.grad(y.sin().sum(), (x, strides)))
    for found, expected in zip(*gradients, strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=1e-11)


# --- CuPy's own functions, which a machine without a GPU has too --------------------------------


def test_cupy_has_every_function_that_is_called():
    pytest.importorskip("cupy", reason="CuPy is not installed")
    with fake_cupy.installed():
        framework = registry.get("cupy")
        # One in every so many cases, but all operations and conventions.
        steps = {"diff_stride": 9, "conv_diff_stride": 5, "spectral_resize": 12}
        steps |= {"spectral_pool": 3, "complexity": 1}
        for operation, step in steps.items():
            for case in [case for case in CASES if case.operation == operation][::step]:
                run_case(framework, case, "float32")
        calls = sorted(fake_cupy.watch.calls)
    assert {"cupy.sum", "cupy.where", "cupy.fft.rfft"} <= {name for name, *_ in calls}
    ufunc = importlib.import_module("cupy").ufunc
    for name, positional, keywords in calls:
        function = pkgutil.resolve_name(name)
        if inspect.isbuiltin(function):  # which keeps no signature
            continue
        if isinstance(function, ufunc):  # nor does this, but it tells its number of inputs
            assert (function.nin, ()) == (positional, keywords)
            continue
        inspect.signature(function).bind(*[None] * positional, **dict.fromkeys(keywords))


def test_cupy_has_what_the_fake_has():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    for ours, theirs in (
        (fake_cupy.ndarray, cupy.ndarray),
        (fake_cupy.Device, cupy.cuda.Device),
        (fake_cupy.Stream, cupy.cuda.Stream),
    ):
        names = {name for name in vars(ours) if not name.startswith("_")} - {"everywhere"}
        assert names - set(dir(theirs)) == set()
    assert cupy.ndarray.__module__.partition(".")[0] == "cupy"
    assert cupy.cuda.Device.__hash__ is None
    assert len({cupy.cuda.Stream.null, cupy.cuda.Stream.ptds, cupy.cuda.Stream(null=True)}) == 2


# --- Without a GPU -----------------------------------------------------------------------------

MISSING = "CuPy is not installed: pip install 'diffstride[cupy-cuda12x]' for CUDA 12, "
NO_GPU = "diffstride_cupy needs a CUDA GPU: CuPy is installed but finds none"

USES = """
import pydoc
import diffstride_cupy as ds
from diffstride_backends import registry

assert "Downsample an array" in pydoc.render_doc(ds.diff_stride)
assert "cupy.asnumpy(dstrides)" in pydoc.render_doc(ds.DiffStride)
print(registry.unavailable("cupy"))
for use in (
    lambda: ds.diff_stride([[1.0]], 2.0),
    lambda: ds.diff_stride_with_pullback([[1.0]], 2.0),
    lambda: ds.conv_diff_stride([[1.0]], [[[1.0]]], 2.0),
    lambda: ds.spectral_resize([[1.0]], 2),
    lambda: ds.spectral_pool([[1.0]], 2.0),
    lambda: ds.complexity([[2.0]]),
    lambda: ds.output_sizes((8, 8), 2.0),
    lambda: ds.authors_strides((8, 8), 2.0),
    lambda: ds.DiffStride(2.0),
    lambda: registry.get("cupy"),
    lambda: registry.get("cupy").backend.devices(),
):
    try:
        use()
    except RuntimeError as error:
        print(error)
print(*({"torch", "jax", "matplotlib"} & set(sys.modules)))
"""


def printed(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


def test_use_without_cupy():
    reason, *errors, loaded = printed(f"import sys\nsys.modules['cupy'] = None\n{USES}")
    assert reason == "not installed"
    assert len(errors) == 11
    assert len(set(errors)) == 1
    assert errors[0].startswith(MISSING)
    assert loaded == ""


def test_use_without_a_gpu():
    code = f"""
import sys
sys.path.insert(0, {str(FAKE.parent)!r})
from support import fake_cupy
fake_cupy.gpus = 0
with fake_cupy.installed():
    exec({USES!r})
"""
    reason, *errors, loaded = printed(code)
    assert reason == NO_GPU
    assert errors == [NO_GPU] * 11
    assert loaded == ""


def test_cupy_itself_without_a_gpu():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if cupy.cuda.is_available():
        pytest.skip("there is a GPU")
    reason, *errors, loaded = printed(f"import sys\n{USES}")
    assert reason == NO_GPU
    assert errors == [NO_GPU] * 11
    assert loaded == ""


# --- On a GPU ----------------------------------------------------------------------------------


@pytest.fixture
def gpu():
    """Return CuPy where it can compute; where the machine promises it, a lack of it fails."""
    if (reason := registry.unavailable("cupy")) is not None:
        skip("cupy", reason)
    return importlib.import_module("cupy")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_conformance_on_a_gpu(gpu, dtype):
    framework, wrong = registry.get("cupy"), {}
    for case in [case for case, posed in PROBLEMS if posed == dtype]:
        try:
            run_case(framework, case, dtype)
        except Exception as error:
            wrong[case.name] = repr(error)
    assert wrong == {}


BUSY = r"""
extern "C" __global__ void busy(long long cycles) {
    long long start = clock64();
    while (clock64() - start < cycles) {}
}
"""


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["matmul", "fft"])
def test_work_is_issued_in_the_current_stream_without_waiting(gpu, method):
    ds = importlib.import_module("diffstride_cupy")
    busy = gpu.RawKernel(BUSY, "busy")
    x = gpu.asarray(random(4, 64, 60))
    strides, sizes = gpu.asarray([2.0, 1.7]), ds.output_sizes(x.shape, [2.0, 1.7])
    layer = ds.DiffStride([2.0, 1.7], method=method)
    later, expected = gpu.empty_like(x), ds.diff_stride(x, [2.0, 1.7], method=method)
    gpu.cuda.Device().synchronize()

    def work():
        y, pullback = ds.diff_stride_with_pullback(later, strides, sizes=sizes, method=method)
        pullback(y)
        return y, layer.backward(layer.forward(later))

    stream = gpu.cuda.Stream(non_blocking=True)
    with stream:
        work()  # kernels are compiled, memory and tables fetched
        stream.synchronize()
        later.fill(0)
        busy((1,), (1,), (2_000_000_000,))
        # What runs before it in another stream reads zeros.
        gpu.copyto(later, x)
        y, _ = work()
        assert not stream.done
    stream.synchronize()
    np.testing.assert_allclose(y.get(), expected.get(), rtol=0, atol=1e-12)


@pytest.mark.gpu
def test_code_of_the_docs_on_a_gpu(gpu, capsys):
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    names = {}
    exec(compile(code_of_docs(), "cupy.md", "exec"), names)
    assert capsys.readouterr().out
    device = torch.device("cuda", 0)
    stream = torch.cuda.Stream(device)
    for context in (contextlib.nullcontext(), torch.cuda.stream(stream)):
        with context:
            check_bridge(names["DiffStrideFunction"], device)


@pytest.mark.gpu
def test_every_device(gpu):
    ds = importlib.import_module("diffstride_cupy")
    backend = registry.get("cupy").backend
    x = random(3, 20, 300)
    expected = diffstride_numpy.diff_stride(x, [2.0, 1.5])
    for device in backend.devices():
        on_device = backend.from_host(x, "float64", device)
        y, pullback = ds.diff_stride_with_pullback(on_device, [2.0, 1.5])
        assert {array.device.id for array in (y, *pullback(y))} == {device.id}
        np.testing.assert_allclose(backend.to_host(y), expected, rtol=0, atol=1e-12)
