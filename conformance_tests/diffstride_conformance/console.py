"""The command's output on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as Grid

from diffstride_conformance.verify import (
    PAIR,
    Comparison,
    Report,
    Table,
    dtypes_of,
    subjects,
    worst,
)

FAILURES_PER_QUANTITY = 3

_console = Console(highlight=False)
if not _console.is_terminal:
    _console.width = 120


def show_facts(facts: dict[str, str]) -> None:
    """Print the facts that the results of a run depend on."""
    width = max(map(len, facts))
    for name, value in facts.items():
        _console.print(f"[bold]{name:>{width}}[/]  {escape(value)}", soft_wrap=True)


@contextmanager
def progress(steps: int) -> Iterator[Callable[[str], object]]:
    """Show a progress bar, and yield the function to call before each step."""
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=_console, transient=True) as bar:
        task = bar.add_task("", total=steps)
        yield lambda text: bar.update(task, advance=1, description=text[:60])


def show(report: Report) -> None:
    """Print the tables of a report, the cases of its worst errors, and the failures."""
    _console.print("\nWorst errors in units of the tolerance: up to 1 passes.")
    for dtype in dtypes_of(report):
        table = worst(report, dtype, pairs=False)
        if table:
            _show_table(f"{dtype}: against the reference", table)
            _show_cases(table)
    for dtype in dtypes_of(report):
        table = worst(report, dtype, pairs=True)
        if table:
            _show_table(f"{dtype}: against each other", table)
    for name, lacking in report.not_offered.items():
        if lacking:
            _console.print(f"{name}: not offered: {', '.join(lacking)}")
    for name, reason in report.absent.items():
        _console.print(f"[yellow]{name}: absent: {escape(reason)}[/]", soft_wrap=True)
    for name, reason in report.missing.items():
        _console.print(f"[bold red]{name}: MISSING: {escape(reason)}[/]", soft_wrap=True)
    _show_failures(report)
    verdict = "[bold green]passed[/]" if report.passed else "[bold red]failed[/]"
    _console.print(
        f"{len(report.comparisons)} comparisons in {report.seconds:.0f} s, "
        f"{len(report.failures)} failures: {verdict}"
    )


def show_written(path: Path) -> None:
    """Print where the report is."""
    _console.print(f"written: {escape(str(path))}", soft_wrap=True)


def _show_table(title: str, table: Table) -> None:
    """Print a table with the quantities down and the subjects across."""
    columns = subjects(table)
    grid = Grid(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    grid.add_column("", no_wrap=True)
    for subject in columns:
        grid.add_column(subject.replace(PAIR, "\n"), justify="right", overflow="fold")
    for quantity, row in table.items():
        grid.add_row(quantity, *(_number(row[s]) if s in row else "" for s in columns))
    _console.print(grid)


def _number(comparison: Comparison) -> str:
    if comparison.failure is not None:
        return f"[bold red]{comparison.units:.3g}[/]"
    return f"[green]{comparison.units:.2g}[/]" if comparison.units else "[dim]exact[/]"


def _show_cases(table: Table) -> None:
    """Print the case that each error of a table comes from."""
    grid = Grid(box=None, show_header=False, padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column()
    grid.add_column(overflow="fold", style="dim")
    for quantity, row in table.items():
        by_case: dict[str, list[str]] = {}
        for subject, comparison in row.items():
            if comparison.units:
                by_case.setdefault(comparison.case, []).append(subject)
        for case, names in by_case.items():
            grid.add_row(quantity, ", ".join(names), escape(case))
    if grid.row_count:
        _console.print("[bold]The cases they come from[/]")
        _console.print(grid)
        _console.print()


def _show_failures(report: Report) -> None:
    by_quantity: dict[str, list[Comparison]] = {}
    for failure in report.failures:
        by_quantity.setdefault(failure.quantity, []).append(failure)
    for quantity, failures in by_quantity.items():
        _console.print(f"[bold red]{quantity}: {len(failures)} failures[/]")
        for failure in failures[:FAILURES_PER_QUANTITY]:
            text = f"  {failure.subject}, {failure.case}: {failure.failure}"
            _console.print(text, markup=False, soft_wrap=True)
            _console.print(f"    {report.rerun(failure)}", markup=False, soft_wrap=True)
        if len(failures) > FAILURES_PER_QUANTITY:
            _console.print(f"  and {len(failures) - FAILURES_PER_QUANTITY} more")
