"""The mathematics of DiffStride, written once against the Python array API."""

from diffstride_core._version import __version__ as __version__
from diffstride_core.settings import NothingToCropWarning as NothingToCropWarning
