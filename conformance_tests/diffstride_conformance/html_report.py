"""A report as one self-contained page, with a map of all errors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from diffstride_conformance.verify import (
    PAIR,
    Comparison,
    Report,
    dtypes_of,
    keep_worst,
    subjects,
    worst,
)

DECADES = 4
"""Number of powers of ten below 1 that the colours distinguish."""


class Strip(NamedTuple):
    """One quantity in the map of errors.

    Attributes
    ----------
    cases : dict of str
        Columns, in order.
    rows : dict of (str, str) to dict of str to Comparison
        For each subject and dtype, the worst comparison of each case that has one.
    """

    cases: dict[str, None]
    rows: dict[tuple[str, str], dict[str, Comparison]]


def write(report: Report, path: Path) -> None:
    """Write the page."""
    environment = Environment(
        loader=PackageLoader("diffstride_conformance", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(colour=colour, number=number)
    template = environment.get_template("report.html.jinja")
    page = template.render(
        report=report,
        tables={pairs: _tables(report, pairs=pairs) for pairs in (False, True)},
        strips=strips(report),
        decades=DECADES,
        pair=PAIR,
    )
    path.write_text(page, "utf-8")


def strips(report: Report) -> dict[str, Strip]:
    """Return the map of errors, quantity by quantity."""
    found: dict[str, Strip] = {}
    for each in report.comparisons:
        if each.is_pair:
            continue
        strip = found.setdefault(each.quantity, Strip({}, {}))
        strip.cases[each.case] = None
        keep_worst(strip.rows.setdefault((each.subject, each.dtype), {}), each.case, each)
    return found


def colour(comparison: Comparison) -> str:
    """Return the attributes that colour a comparison by the logarithm of its error."""
    if comparison.failure is not None:
        return 'class="failed"'
    if comparison.units == 0:
        return 'class="exact"'
    share = 1 + math.log10(comparison.units) / DECADES
    return f'style="--share:{100 * min(max(share, 0.0), 1.0):.0f}%"'


def number(comparison: Comparison) -> str:
    """Return the error of a comparison as text."""
    return f"{comparison.units:.2g}" if comparison.units else "exact"


def _tables(report: Report, *, pairs: bool) -> list[dict[str, Any]]:
    tables = {dtype: worst(report, dtype, pairs=pairs) for dtype in dtypes_of(report)}
    return [
        {"dtype": dtype, "rows": table, "columns": subjects(table)}
        for dtype, table in tables.items()
        if table
    ]
