"""A report as JSON: all numbers, under stable keys."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffstride_conformance.verify import Report


def write(report: Report, path: Path) -> None:
    """Write a report. Errors that are not finite become null."""
    content: dict[str, Any] = {"passed": report.passed, **asdict(report)}
    for comparison in content["comparisons"]:
        if not math.isfinite(comparison["units"]):
            comparison["units"] = None
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", "utf-8")
