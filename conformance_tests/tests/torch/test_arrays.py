"""The PyTorch functions: layouts, devices, dtypes."""

import sys

import numpy as np
import pytest
import torch
from diffstride_torch import (
    complexity,
    diff_stride,
    output_sizes,
    spectral_pool,
    spectral_resize,
)
from support.torch_functions import each_engine
from support.torch_values import assert_close, random, strides_of
from torch.utils._python_dispatch import TorchDispatchMode

from diffstride_core.testing import block_elements, clear_caches

some_cannot_crop = pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")


LAYOUTS = {
    "contiguous": lambda: random(2, 3, 12, 15),
    "transposed": lambda: random(2, 3, 15, 12).transpose(-1, -2),
    "permuted": lambda: random(12, 15, 2, 3).permute(2, 3, 0, 1),
    "sliced": lambda: random(4, 3, 24, 30)[::2, :, 1::2, ::2],
    "expanded": lambda: random(1, 3, 12, 1).expand(2, 3, 12, 15),
    "channels-last": lambda: random(2, 3, 12, 15).to(memory_format=torch.channels_last),
    "offset": lambda: random(3, 3, 12, 15)[1:],
}


@each_engine
@pytest.mark.parametrize("axes", [(-2, -1), (1, 3), (3, 0), (2,)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@some_cannot_crop
def test_memory_layout_does_not_matter(layout, axes, method):
    def run(x):
        x = x.detach().requires_grad_()
        s = strides_of(*(1.7, 2.4)[: len(axes)], requires_grad=True)
        y = diff_stride(x, s, axes=axes, method=method)
        # An expanded cotangent.
        y.sum().backward()
        return y.detach(), x.grad, s.grad

    x = LAYOUTS[layout]()
    before = x.clone()
    expected = run(x.clone(memory_format=torch.contiguous_format))
    for a, b in zip(run(x), expected, strict=True):
        assert_close(a, b)
    assert torch.equal(x, before)


@pytest.mark.parametrize("rank", [4, 5])
def test_channels_last_stays_and_copies_nothing(rank):
    kind = {4: torch.channels_last, 5: torch.channels_last_3d}[rank]
    x = random(2, 3, *(14, 12, 15)[: rank - 2]).to(memory_format=kind).requires_grad_()
    s, axes = strides_of(1.7, 2.4, requires_grad=True), (-2, -1)

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if args and isinstance(args[0], torch.Tensor) and args[0].numel() >= x.numel() // 4:
                copied.append(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    copied = []
    with torch.no_grad(), Copies():
        y = diff_stride(x, s, axes=axes)
    assert y.is_contiguous(memory_format=kind)
    assert not {"clone", "copy_", "contiguous"} & set(copied)
    y = diff_stride(x, s, axes=axes)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert y.is_contiguous(memory_format=kind)
    assert dx.is_contiguous(memory_format=kind)


@pytest.mark.parametrize("convention", ["paper", "nominal", "tensorflow"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [torch.contiguous_format, torch.channels_last], ids=str)
def test_large_batches_are_resized_in_blocks(convention, dtype, kind):
    x = random(7, 3, 12, 16).to(dtype, memory_format=kind).requires_grad_()
    s = strides_of(1.7, 2.4, requires_grad=True)

    def run():
        y = diff_stride(x, s, smoothness=0.9, convention=convention)
        return y, *torch.autograd.grad(y, (x, s), torch.cos(y.detach()))

    whole = run()
    for elements in (1, 3 * 3 * 12 * 16, 6 * 3 * 12 * 16):
        with block_elements(elements):
            parts = run()
        for part, expected in zip(parts, whole, strict=True):
            assert part.dtype == expected.dtype
            assert part.stride() == expected.stride()
            torch.testing.assert_close(part, expected)


@each_engine
@pytest.mark.parametrize("batch", [(), (0,), (1,), (3,), (2, 3), (2, 0, 3), (2, 1, 2, 2)], ids=str)
def test_any_number_of_batch_dimensions(batch, method):
    x = random(*batch, 12, 15, requires_grad=True)
    s = strides_of(1.7, 2.4, requires_grad=True)
    y = diff_stride(x, s, method=method)
    assert y.shape == (*batch, *output_sizes(x.shape, s))
    y.sum().backward()
    assert x.grad.shape == x.shape
    if x.numel() == 0:
        assert torch.equal(s.grad, torch.zeros_like(s))
        return
    flat = diff_stride(x.detach().reshape(-1, 12, 15), s, method=method)
    assert_close(y, flat.reshape(y.shape))


def test_inputs_are_not_modified():
    x, s = random(2, 12, 15, requires_grad=True), strides_of(0.3, 99.0, requires_grad=True)
    before = x.detach().clone(), s.detach().clone(), x._version, s._version
    diff_stride(x, s).sum().backward()
    spectral_resize(x, (3, 4)).sum().backward()
    complexity([s]).backward()
    assert torch.equal(x.detach(), before[0])
    assert torch.equal(s.detach(), before[1])
    assert (x._version, s._version) == before[2:]


def test_the_output_shares_no_memory_with_the_input():
    # The identity included.
    x = random(8, 8)
    for y in (
        diff_stride(x, [1.0, 1.0], limits=None, sizes=(8, 8), convention="paper"),
        spectral_resize(x, (8, 8)),
        spectral_pool(x, 1.0),
    ):
        assert_close(y, x)
        y.zero_()
        assert x.abs().min() > 0


@pytest.mark.parametrize("stride_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_dtypes_are_those_of_the_inputs(dtype, stride_dtype):
    x = random(12, 15).to(dtype).requires_grad_()
    s = strides_of(1.7, 2.4, dtype=stride_dtype, requires_grad=True)
    y = diff_stride(x, s)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert s.grad.dtype == stride_dtype
    assert y.device == x.device


@pytest.mark.parametrize(
    "strides",
    [
        1.75,
        2,
        [1.75, 1.75],
        (1.75, 2),
        np.array([1.75, 2.5]),
        np.float32(1.75),
        torch.tensor(1.75),
        strides_of(1.75),
    ],
    ids=repr,
)
def test_strides_given_in_any_form(strides):
    x = random(12, 14)
    values = torch.as_tensor(strides, dtype=torch.float64).reshape(-1)
    expected = diff_stride(x, values)
    assert torch.equal(diff_stride(x, strides), expected)
    assert tuple(expected.shape) == output_sizes(x.shape, strides)


@pytest.mark.parametrize("options", [{"sizes": (10, 8)}, {}], ids=["sizes", "no-sizes"])
def test_strides_are_read_only_where_they_decide_the_size(options, monkeypatch):
    """On a device, that is, where reading costs a transfer and waits for what was launched."""
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    reads = []
    for name in ("tolist", "item", "cpu", "numpy", "__bool__", "__float__"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, original=original, name=name, **kwargs):
            reads.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    x, s = random(12, 15), strides_of(1.7, 2.4, requires_grad=True)
    diff_stride(x, s, **options).sum().backward()
    assert reads == ([] if options else ["tolist"])


def test_meta_tensors_give_shapes():
    x = torch.empty(2, 3, 12, 15, device="meta")
    s = torch.empty(2, device="meta", requires_grad=True)
    y = diff_stride(x, s, sizes=(12, 10))
    assert y.shape == (2, 3, 12, 10)
    assert y.device.type == "meta"
    y.sum().backward()
    assert s.grad.shape == (2,)
    with pytest.raises(ValueError, match="sizes must be given"):
        diff_stride(x, s)


def test_strides_on_another_device_are_refused():
    x, s = torch.empty(12, 15, device="meta"), strides_of(1.7, 2.4)
    with pytest.raises(ValueError, match=r"strides must be on the device of x, meta, got cpu"):
        diff_stride(x, s)


def test_default_dtype_and_device_do_not_reach_inside():
    x, s = random(2, 12, 15), strides_of(1.7, 2.4)
    expected = diff_stride(x, s)
    clear_caches()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            y = diff_stride(x, s)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(y, expected)


def calls_of(function):
    """The file and name of each function of the project's files that a call runs through."""
    calls = []

    def note(frame, event, _):
        file, is_ours = frame.f_code.co_filename, "diffstride_" in frame.f_globals["__name__"]
        if event == "call" and is_ours and file.endswith(".py"):  # no hash of a dataclass
            calls.append((file, frame.f_code.co_name))

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


@torch.no_grad()
def test_a_call_as_the_one_before_runs_through_few_functions_and_files():
    x = random(1, 1, 16, 16)
    for _ in range(2):
        calls = calls_of(lambda: diff_stride(x, 2.0))
    assert len(calls) <= 40
    assert len({file for file, _ in calls}) <= 8
