"""DiffStride for PyTorch: downsampling layers whose strides are learnt."""

import warnings as _warnings

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
from diffstride_torch.network.budget import FlopsBudget as FlopsBudget
from diffstride_torch.network.costs import FlopsPenalty as FlopsPenalty
from diffstride_torch.network.costs import flops_penalty as flops_penalty
from diffstride_torch.network.downsampling import (
    AntiAliasingSpectralPool as AntiAliasingSpectralPool,
)
from diffstride_torch.network.freezing import FixedResize as FixedResize
from diffstride_torch.network.freezing import freeze as freeze
from diffstride_torch.network.metrics import stride_metrics as stride_metrics
from diffstride_torch.network.rounding import RoundingReport as RoundingReport
from diffstride_torch.network.rounding import round_strides as round_strides
from diffstride_torch.network.strided import to_strided as to_strided
from diffstride_torch.network.summary import stride_summary as stride_summary
from diffstride_torch.network.surgery import ReplacementReport as ReplacementReport
from diffstride_torch.network.surgery import replace_downsampling as replace_downsampling
from diffstride_torch.training import project_after_step as project_after_step


def __getattr__(name: str) -> object:
    if name == "AntiAliasing":
        _warnings.warn(
            "diffstride_torch.AntiAliasing is now AntiAliasingSpectralPool; the old name will be "
            "removed",
            DeprecationWarning,
            stacklevel=2,
        )
        return AntiAliasingSpectralPool
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
