"""A CuPy built on NumPy, for machines without a GPU.

It counts transfers and refuses what CuPy refuses: arrays do not turn into NumPy arrays by
themselves nor mix with them. It is stricter where CuPy would be slow or wrong: an array must be
used on the device and in the stream that made it, and nothing may wait for either.
"""

import contextlib
import operator
import sys
import threading
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType

import numpy as np
import scipy.fft

_state = threading.local()


class Watch:
    """What was asked of the module.

    Attributes
    ----------
    to_host, to_device : list of tuple of int
        The shapes of the arrays that were copied, in order.
    calls : set of (name, positional arguments, keywords)
        How its functions were called.
    """

    to_host: list[tuple[int, ...]]
    to_device: list[tuple[int, ...]]
    calls: set[tuple[str, int, tuple[str, ...]]]

    def clear(self):
        """Forget everything."""
        self.to_host, self.to_device, self.calls = [], [], set()


watch = Watch()
gpus = 2


# --- Devices and streams -----------------------------------------------------------------------


def _devices():
    if not hasattr(_state, "devices"):
        _state.devices, _state.streams = [0], {}
    return _state.devices


def _streams(device):
    _devices()
    return _state.streams.setdefault(device, [Stream.null])


class Device:
    """A device; not hashable, as in CuPy."""

    def __init__(self, device=None):
        self.id = _devices()[-1] if device is None else int(device)

    def __int__(self):
        return self.id

    def __eq__(self, other):
        return isinstance(other, Device) and self.id == other.id

    def __repr__(self):
        return f"<CUDA Device {self.id}>"

    def __enter__(self):
        _devices().append(self.id)
        return self

    def __exit__(self, *_):
        _devices().pop()

    def synchronize(self):
        """Fail."""
        raise AssertionError("the host waited for a device")


class Stream:
    """A stream, equal to any other of its handle."""

    null: "Stream"
    ptds: "Stream"
    _last = 1000

    def __init__(self, ptr=None, non_blocking=False):
        if ptr is None:
            Stream._last += 1
            ptr = Stream._last
        self.ptr = ptr

    @classmethod
    def from_external(cls, other):
        """Return the stream of another library."""
        version, ptr = other.__cuda_stream__()
        assert version == 0
        return cls(ptr)

    def __eq__(self, other):
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self):
        return self.ptr

    def __enter__(self):
        _streams(_devices()[-1]).append(self)
        return self

    def __exit__(self, *_):
        _streams(_devices()[-1]).pop()

    def synchronize(self):
        """Fail."""
        raise AssertionError("the host waited for a stream")


Stream.null, Stream.ptds = Stream(0), Stream(2)


def get_current_stream(device_id=-1):
    """Return the current stream of a device."""
    return _streams(_devices()[-1] if device_id == -1 else device_id)[-1]


def _order():
    """Return what identifies the queue of work that is issued now."""
    stream = get_current_stream()
    return stream.ptr, threading.current_thread() if stream == Stream.ptds else None


# --- Arrays ------------------------------------------------------------------------------------


class ndarray:  # noqa: N801
    """An array on a device."""

    __module__ = "cupy"
    __array_ufunc__ = None  # NumPy leaves the operators to this class

    def __init__(self, host):
        self._host = host
        self.device = Device()
        self._order = _order()

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    real = property(lambda self: _real(self))
    imag = property(lambda self: _imag(self))

    def everywhere(self):
        """Let every stream read the array, as after the caller's own synchronisation."""
        self._order = None
        return self

    def _read(self):
        if self.device != Device():
            raise AssertionError(f"an array of {self.device} was used on {Device()}")
        if self._order not in (None, _order()):
            raise AssertionError("an array was used in another stream than it was made in")
        return self._host

    def get(self):
        """Copy the array to the host."""
        host = self._read().copy()
        watch.to_host.append(host.shape)
        return host

    def astype(self, dtype, copy=True):
        """Return the array in another dtype."""
        return self if self.dtype == dtype and not copy else ndarray(self._read().astype(dtype))

    def __getitem__(self, index):
        return _boxed(self._read()[index])

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __repr__(self):
        return f"array({self.get()})"

    def __bool__(self):
        return bool(self.get())

    def __float__(self):
        return float(self.get())

    def __len__(self):
        return len(self._host)

    def item(self):
        """Copy the one element to the host."""
        return self.get().item()

    def tolist(self):
        """Copy the array to the host as a list."""
        return self.get().tolist()

    def __dlpack__(self, **options):
        return self._read().__dlpack__(**options)

    def __dlpack_device__(self):
        return self._host.__dlpack_device__()


def _unboxed(value):
    if isinstance(value, ndarray):
        return value._read()
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, list | tuple):
        return type(value)(map(_unboxed, value))
    return value


def _boxed(value):
    if isinstance(value, np.ndarray | np.generic):
        return ndarray(np.asarray(value))
    if isinstance(value, list | tuple):
        return tuple(map(_boxed, value))
    return value


def _on_device(function):
    def wrapped(*arguments, **options):
        options = {name: _unboxed(value) for name, value in options.items()}
        return _boxed(function(*map(_unboxed, arguments), **options))

    return wrapped


_real, _imag = _on_device(np.real), _on_device(np.imag)


def _reflected(function):
    return lambda a, b: function(b, a)


for _name in ("add", "sub", "mul", "truediv", "pow", "mod", "matmul", "and_", "or_"):
    _function = _on_device(getattr(operator, _name))
    setattr(ndarray, f"__{_name.rstrip('_')}__", _function)
    setattr(ndarray, f"__r{_name.rstrip('_')}__", _reflected(_function))
for _name in ("lt", "le", "gt", "ge", "eq", "ne", "neg", "invert"):
    setattr(ndarray, f"__{_name}__", _on_device(getattr(operator, _name)))
ndarray.__hash__ = None


def array(obj, dtype=None, copy=True):
    """Return an array on the current device; a NumPy array is copied there."""
    if isinstance(obj, ndarray):
        return ndarray(np.array(obj._read(), dtype=dtype, copy=copy))
    host = np.array(obj, dtype=dtype)
    watch.to_device.append(host.shape)
    return ndarray(host)


def asarray(a, dtype=None):
    """Return an array on the current device."""
    return a if isinstance(a, ndarray) and dtype in (None, a.dtype) else array(a, dtype)


# --- Modules -----------------------------------------------------------------------------------


def _watched(name, function):
    def watched(*arguments, **options):
        watch.calls.add((name, len(arguments), tuple(sorted(options))))
        return function(*arguments, **options)

    return watched


def _module(name, **contents):
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    for key, value in contents.items():
        vars(module)[key] = (
            _watched(f"{name}.{key}", value) if isinstance(value, FunctionType) else value
        )
    return module


def _functions(numpy_module):
    """Return a module's functions for arrays on the device, and its other names as they are."""
    return {
        name: _on_device(value) if callable(value) and not isinstance(value, type) else value
        for name in dir(numpy_module)
        if not name.startswith("_")
        and not isinstance(value := getattr(numpy_module, name), ModuleType)
    }


_TRANSFORMS = ("rfft", "irfft", "fft", "ifft")
_cuda = _module(
    "cupy.cuda",
    Device=Device,
    Stream=Stream,
    get_current_stream=get_current_stream,
    is_available=lambda: gpus > 0,
    runtime=_module("cupy.cuda.runtime", getDeviceCount=lambda: gpus),
    device=_module("cupy.cuda.device", Device=Device),
)
_fft = _module(
    "cupy.fft",
    # NumPy's own transforms compute float32 in double precision.
    **_functions(np.fft) | {name: _on_device(getattr(scipy.fft, name)) for name in _TRANSFORMS},
)
cupy = _module(
    "cupy",
    **_functions(np)
    | {
        "__version__": "14.0.0",
        "ndarray": ndarray,
        "array": array,
        "asarray": asarray,
        "asnumpy": lambda a: a.get(),
        "from_dlpack": lambda a: ndarray(np.from_dlpack(a)),
        "result_type": lambda *arrays: np.result_type(*(a.dtype for a in arrays)),
        "cuda": _cuda,
        "fft": _fft,
        "linalg": _module("cupy.linalg", **_functions(np.linalg)),
    },
)
_MODULES = {module.__name__: module for module in (cupy, _cuda, _cuda.device, _fft, cupy.linalg)}

# What holds on to the CuPy that it was imported with.
_DEPENDENT = (
    "cupy",
    "array_api_compat.cupy",
    "diffstride_backends.cupy_backend",
    "diffstride_cupy",
)


def _remove():
    """Take the modules out of `sys.modules` and of the packages that hold them; return them."""
    removed = {}
    for root in _DEPENDENT:
        for name in list(sys.modules):
            if name == root or name.startswith(f"{root}."):
                removed[name] = sys.modules.pop(name)
        package, _, child = root.rpartition(".")
        if package in sys.modules:
            vars(sys.modules[package]).pop(child, None)
    return removed


@contextlib.contextmanager
def installed():
    """Let everything that imports CuPy import this one."""
    before = _remove()
    sys.modules.update(_MODULES)
    watch.clear()
    try:
        yield
    finally:
        _remove()
        sys.modules.update(before)
