"""The only place that knows array-api-compat."""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np

_NUMPY_CONFORMS = getattr(np, "__array_api_version__", "") >= "2023.12"


def namespace_of(array: Any) -> Any:
    """Return the array API namespace of an array.

    Parameters
    ----------
    array : array
        An array of any supported framework.

    Returns
    -------
    module
        The namespace. It is wrapped by array-api-compat if the framework's own departs from the
        standard. Backends call this function once, when they are made: a call inside a traced
        function costs warnings and time.
    """
    if _NUMPY_CONFORMS and isinstance(array, np.ndarray):
        return np  # its wrapper would import numpy.f2py and numpy.testing
    return array_api_compat.array_namespace(array)


def device_of(array: Any) -> Any:
    """Return the device of an array as the framework's own object; None if it has none."""
    return array_api_compat.device(array)
