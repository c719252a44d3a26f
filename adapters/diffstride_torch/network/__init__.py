"""Tools for whole networks: tracing, costs and budgets, surgery, summaries, freezing."""

from diffstride_torch.network.budget import FlopsBudget
from diffstride_torch.network.costs import FlopsPenalty, flops_penalty
from diffstride_torch.network.downsampling import AntiAliasingSpectralPool
from diffstride_torch.network.freezing import FixedResize, freeze
from diffstride_torch.network.metrics import stride_metrics
from diffstride_torch.network.rounding import RoundingReport, round_strides
from diffstride_torch.network.strided import to_strided
from diffstride_torch.network.summary import stride_summary
from diffstride_torch.network.surgery import ReplacementReport, replace_downsampling

__all__ = [
    "AntiAliasingSpectralPool",
    "FixedResize",
    "FlopsBudget",
    "FlopsPenalty",
    "ReplacementReport",
    "RoundingReport",
    "flops_penalty",
    "freeze",
    "replace_downsampling",
    "round_strides",
    "stride_metrics",
    "stride_summary",
    "to_strided",
]
