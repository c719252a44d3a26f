"""The mathematics of DiffStride, written once against the Python array API."""

from diffstride_core._version import __version__ as __version__
from diffstride_core.planning import NothingToCropWarning as NothingToCropWarning
