"""A report as one self-contained page, with a map of all errors."""

from __future__ import annotations

import math
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from diffstride_conformance.verify import Comparison, Report, Table, dtypes_of, subjects, worst

EXACT, SMALLEST = "exact", -4
"""An error of 0, and the power of ten from which on errors are told apart by their colour."""


def write(report: Report, path: Path) -> None:
    """Write the page."""
    environment = Environment(
        loader=PackageLoader("diffstride_conformance", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shade"] = shade
    environment.filters["subjects"] = subjects
    template = environment.get_template("report.html.jinja")
    path.write_text(
        template.render(
            report=report,
            tables=_tables(report),
            strips=_strips(report),
        ),
        "utf-8",
    )


def _tables(report: Report) -> dict[str, Table]:
    """Return the tables of worst errors by their headings."""
    kinds = (("Against the reference", False), ("Pairwise", True))
    return {
        f"{kind}, {dtype}": table
        for kind, pairs in kinds
        for dtype in dtypes_of(report)
        if (table := worst(report, dtype, pairs=pairs))
    }


def shade(comparison: Comparison) -> str:
    """Return the class that colours a comparison: by the power of ten of its error."""
    if comparison.failure is not None:
        return "failed"
    if comparison.units == 0:
        return EXACT
    power = max(SMALLEST, math.floor(math.log10(comparison.units)))
    return f"p{min(-power, -SMALLEST)}"


def _strips(report: Report) -> dict[str, dict[tuple[str, str], list[Comparison]]]:
    """Return, per subject, dtype and quantity, the comparisons in the order of the cases."""
    strips: dict[str, dict[tuple[str, str], list[Comparison]]] = {}
    for each in report.comparisons:
        if not each.is_pair:
            strip = strips.setdefault(each.subject, {})
            strip.setdefault((each.dtype, each.quantity), []).append(each)
    return strips
