"""Facts besides the code that the results of a run depend on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy

from diffstride_conformance.implementation import Implementation


def facts(implementations: Sequence[Implementation]) -> dict[str, str]:
    """Return versions, machine, threads and the devices of each implementation, as text."""
    found = {
        "diffstride": importlib.metadata.version("diffstride"),
        "Python": platform.python_version(),
        "NumPy, SciPy": f"{np.__version__}, {scipy.__version__}",
        "machine": f"{platform.system()} {platform.machine()}, {_processor()}",
        "threads": f"{os.environ.get('OMP_NUM_THREADS', 'any')} of {os.cpu_count()} cores",
    }
    for implementation in implementations:
        devices = [_name(device) for device in implementation.devices() if device is not None]
        on = f" on {', '.join(devices)}" if devices else ""
        found[implementation.name] = f"{implementation.version}{on}"
    return found


def _name(device: object) -> str:
    """Return the quoted part of a device's description, or all of it if nothing is quoted."""
    quoted = re.search(r"'([^']+)'", str(device))
    return quoted[1] if quoted else str(device)


def _processor() -> str:
    # Python itself knows the name of the processor only on few systems.
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
