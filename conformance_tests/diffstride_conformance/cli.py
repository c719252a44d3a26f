"""The command ``diffstride-verify``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from diffstride_conformance import frameworks, selection
from diffstride_conformance.cases import METHODS
from diffstride_conformance.environment import facts
from diffstride_conformance.implementation import (
    DTYPES,
    Implementation,
    ImplementationError,
    load,
)
from diffstride_conformance.verify import Report, count_steps, not_offered, verify

SUFFIXES = (".html", ".json")

DESCRIPTION = """\
Check the outputs, gradients, sizes and errors of DiffStride implementations. The command compares
them with an independent float64 reference, with recordings of the authors' own code, and with each
other.
"""

EXAMPLES = """\
examples:
  diffstride-verify                                      all installed backends, about two minutes
  diffstride-verify --backends torch --dtype bfloat16    one framework in half precision
  diffstride-verify --all --report report.html           every case, with a map of the errors
  diffstride-verify --backend my_package.layer:Backend   an implementation of your own: see
                                                         diffstride_conformance.implementation,
                                                         and two short examples in
                                                         diffstride_conformance.examples
  diffstride-verify --backends jax --case complexity-2   one case, by the name that a failure shows

exit status: 0 if everything passed; 1 if something failed, if a requested backend or a package is
missing, or if the report cannot be written; 2 for wrong options; 130 after an interruption
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    try:
        return _verify(arguments)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130


def _verify(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        from diffstride_conformance import console, html_report, json_report
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        return _failed(f"{package} is not installed: pip install 'diffstride[conformance]'")
    try:
        chosen = _chosen(options)
    except ValueError as error:
        parser.error(str(error))

    # Set before the frameworks are imported: on arrays as small as these, their threads would wait
    # for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    start = time.perf_counter()
    implementations, named_by, absent, missing = _implementations(options)
    found_facts = facts(implementations)
    console.show_facts(found_facts)
    with console.progress(count_steps(implementations, chosen, options.dtype)) as step:
        comparisons = tuple(verify(implementations, chosen, options.dtype, step))
    report = Report(
        found_facts,
        comparisons,
        absent,
        missing,
        {each.name: not_offered(each, chosen, options.dtype) for each in implementations},
        named_by,
        time.perf_counter() - start,
    )
    console.show(report)
    if options.report is not None:
        write = html_report.write if options.report.suffix == ".html" else json_report.write
        try:
            write(report, options.report)
        except OSError as error:
            return _failed(f"--report: {options.report} cannot be written: {error.strerror}")
        console.show_written(options.report)
    return 0 if report.passed else 1


def _failed(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "diffstride-verify",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--backends",
        nargs="+",
        action="extend",
        choices=frameworks.names(),
        metavar="NAME",
        help=f"backends to check: {', '.join(frameworks.names())} (default: all that are usable)",
    )
    parser.add_argument(
        "--backend",
        nargs="+",
        action="extend",
        default=[],
        metavar="MODULE:NAME",
        help="your own implementations to check, also against those that --backends names",
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=DTYPES,
        default=["float64", "float32"],
        metavar="DTYPE",
        help=f"dtypes of the inputs: {', '.join(DTYPES)} (default: float64 float32)",
    )
    parser.add_argument(
        "--method",
        nargs="+",
        choices=[method for methods in METHODS.values() for method in methods],
        metavar="METHOD",
        help="leave out cases that need another method: matmul or fft for resizes; fused or "
        "separate for a convolution before a resize",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="run every case instead of a selection; frameworks that compile take many minutes",
    )
    parser.add_argument(
        "--case",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="run only the cases with these names",
    )
    parser.add_argument(
        "--report",
        type=_report_path,
        metavar="FILE",
        help="write a report: a page (.html) or data (.json)",
    )
    return parser


def _report_path(text: str) -> Path:
    path = Path(text)
    if path.suffix not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"must end in {' or '.join(SUFFIXES)}, got {text!r}")
    if not path.resolve().parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be in a folder that exists, got {text!r}")
    return path


def _chosen(options: argparse.Namespace) -> selection.Selection:
    if options.case:
        chosen = selection.only(options.case)
    else:
        chosen = selection.everything() if options.all else selection.representative()
    return selection.with_methods(chosen, options.method) if options.method else chosen


def _implementations(
    options: argparse.Namespace,
) -> tuple[list[Implementation], dict[str, str], dict[str, str], dict[str, str]]:
    """Return the implementations found, their options, and the reasons why others are not found.

    The last two results are the absent and the missing implementations, with the reasons. An
    implementation that is installed but cannot be imported is missing even if it was not requested.
    """
    found: dict[str, Implementation] = {}
    named_by: dict[str, str] = {}
    absent: dict[str, str] = {}
    missing: dict[str, str] = {}
    by_default = () if options.backend else frameworks.names()
    for name in dict.fromkeys(options.backends or by_default):
        reason = frameworks.unavailable(name)
        if reason is not None:
            (missing if options.backends else absent)[name] = reason
            continue
        try:
            found[name] = frameworks.get(name)
        except Exception as error:
            missing[name] = f"{type(error).__name__}: {error}"
        named_by[name] = f"--backends {name}"
    for location in dict.fromkeys(options.backend):
        try:
            implementation = load(location)
        except ImplementationError as error:
            missing[location] = str(error)
            continue
        if implementation.name in found:
            missing[location] = f"the name {implementation.name!r} is already taken"
            continue
        found[implementation.name] = implementation
        named_by[implementation.name] = f"--backend {location}"
    return list(found.values()), named_by, absent, missing
