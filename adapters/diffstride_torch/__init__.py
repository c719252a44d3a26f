"""DiffStride for PyTorch: downsampling layers with learnt strides."""

import warnings as _warnings
from importlib import import_module as _import_module
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING as _TYPE_CHECKING

from diffstride_core import NothingToCropWarning as NothingToCropWarning
from diffstride_core import __version__ as __version__
from diffstride_torch.conv_modules import DiffStrideConv1d as DiffStrideConv1d
from diffstride_torch.conv_modules import DiffStrideConv2d as DiffStrideConv2d
from diffstride_torch.conv_modules import DiffStrideConv3d as DiffStrideConv3d
from diffstride_torch.functional import authors_strides as authors_strides
from diffstride_torch.functional import complexity as complexity
from diffstride_torch.functional import conv_diff_stride as conv_diff_stride
from diffstride_torch.functional import diff_stride as diff_stride
from diffstride_torch.functional import output_sizes as output_sizes
from diffstride_torch.functional import plain_autodiff as plain_autodiff
from diffstride_torch.functional import spectral_pool as spectral_pool
from diffstride_torch.functional import spectral_resize as spectral_resize
from diffstride_torch.modules import DiffStride1d as DiffStride1d
from diffstride_torch.modules import DiffStride2d as DiffStride2d
from diffstride_torch.modules import DiffStride3d as DiffStride3d
from diffstride_torch.modules import SpectralPool1d as SpectralPool1d
from diffstride_torch.modules import SpectralPool2d as SpectralPool2d
from diffstride_torch.modules import SpectralPool3d as SpectralPool3d
from diffstride_torch.modules import complexity_penalty as complexity_penalty
from diffstride_torch.modules import param_groups as param_groups
from diffstride_torch.modules import project_strides as project_strides
from diffstride_torch.training import project_after_step as project_after_step

if _TYPE_CHECKING:
    from diffstride_torch.network import *  # noqa: F403
else:

    def __getattr__(name: str) -> object:
        if name == "AntiAliasing":
            _warnings.warn(
                "diffstride_torch.AntiAliasing is now AntiAliasingSpectralPool; the old name will "
                "be removed",
                DeprecationWarning,
                stacklevel=2,
            )
            name = "AntiAliasingSpectralPool"
        if name == "__all__":  # for `from diffstride_torch import *`
            return [
                public
                for public in __dir__()
                if not public.startswith("_") and not isinstance(globals().get(public), _ModuleType)
            ]
        if not name.startswith("_"):
            # Imported on first use: the tools for whole networks take half as long to import as
            # everything else here.
            network = _import_module("diffstride_torch.network")
            if name == "network" or name in network.__all__:
                return globals().setdefault(name, getattr(network, name, network))
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_import_module("diffstride_torch.network").__all__})
