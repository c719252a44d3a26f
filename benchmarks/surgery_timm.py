"""Put DiffStride into the models of timm, and report the outcome for each of them.

Usage: ``python benchmarks/surgery_timm.py [--only PATTERN ...] [--limit-seconds S]
[--max-parameters M] [--results PATH] [--table]``

Every model is made without weights, run at 64 or 96 pixels, passed through `replace_downsampling`,
and then run forward and backward in training mode. If torch.fx cannot trace a model, its strided
modules are given by name, and the modules that must share a layer, as `report.breaks` shows, do so.
Each model has its own process, which contains failures and limits memory and time.

Each model adds one line to `benchmarks/results/surgery_timm.jsonl`. Models that are already in the
file are skipped, so a run can be stopped and started again; delete lines to repeat them. At the
end, the table `surgery_timm.md` is written beside the file. With ``--table``, only the table is
written.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import resource
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import measuring
import timm
import torch
from diffstride_torch import NothingToCropWarning, ReplacementReport, replace_downsampling
from diffstride_torch.network.naming import strided_modules
from diffstride_torch.network.tracing import counted
from rich.console import Console
from rich.progress import track
from timm.layers import set_fused_attn
from torch import nn

SIZES = (64, 96)
"""Sizes in pixels. The first one that a model runs at is used."""
BATCH = 2
RESULTS = measuring.RESULTS / "surgery_timm.jsonl"

PRELOADED = ["diffstride_torch", "measuring", "rich.progress", "timm", "torch.utils.flop_counter"]
"""Modules that are imported once, for all processes."""
CONVOLUTIONAL = "convolutional"

OUTCOMES = {
    "replaced": "every strided operation has a layer; forward and backward pass work",
    "partly": "some have a layer, and the others keep their stride; both passes work",
    "kept": "all keep their stride",
    "refused": "surgery, or one of the passes after it, failed",
    "left out": "it has no strided operation, does not run at these sizes, or is too large",
}

Row = dict[str, Any]


class LeftOutError(Exception):
    """A model that surgery is not tried on."""


def made(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a model without weights, and an example that it runs on."""
    error: Exception | None = None
    # Models that work only at the size that they are built for are given the size.
    for told in (False, True):
        for size in SIZES:
            example = torch.randn(BATCH, 3, size, size)
            try:
                options = {"img_size": size} if told else {}
                model = timm.create_model(name, pretrained=False, **options)
                with torch.no_grad():
                    model.eval()(example)
            except Exception as failed:
                error = error or failed
            else:
                return model, example
    raise LeftOutError(f"does not run at {' or '.join(map(str, SIZES))} pixels: {one_line(error)}")


def kind_of(model: nn.Module, example: torch.Tensor) -> str:
    """Return whether a model is convolutional, uses attention, or mixes positions otherwise.

    A model uses attention if it multiplies feature maps with one another.
    """
    with torch.no_grad(), counted() as counter:
        model(example)
    products = {str(operator) for operator in counter.get_flop_counts()["Global"]}
    if products & {"aten.bmm", "aten.baddbmm"}:
        return "with attention"
    kernels = (
        (module.kernel_size, module.stride)
        for module in model.modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    )
    # The kernel is larger than the stride, unlike in a patch embedding.
    overlap = any(max(kernel) > max(stride) for kernel, stride in kernels)
    return CONVOLUTIONAL if overlap else "other"


def one_line(error: object, length: int = 160) -> str:
    """Return the beginning of a message on one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= length else f"{text[:length]}..."


def without_a_trace(
    name: str, model: nn.Module, example: torch.Tensor
) -> tuple[nn.Module, ReplacementReport, dict[str, str]]:
    """Replace all modules that can be replaced by name; return the reasons for the others."""
    only, shared, kept = list(strided_modules(model)), list[list[str]](), dict[str, str]()
    while True:
        try:
            report = replace_downsampling(model, example, only=only, shared=shared)
        except ValueError as error:
            found = re.match(r"only: '(.*?)' \(.*?\) cannot be replaced: (.*)", str(error))
            if found is None or len(only) == 1:
                raise
            only.remove(found[1])
            kept[found[1]] = found[2]
            continue
        together = list(groups(report))
        if shared or not together:
            return model, report, kept
        shared = together
        model, _ = made(name)


def groups(report: ReplacementReport) -> Iterator[list[str]]:
    """Yield names of modules that can share a layer and whose outputs meet where a model fails."""
    for place in report.breaks:
        alike: dict[object, list[str]] = {}
        for done in report.replaced:
            if done.layer in place.layers:
                key = done.stride, done.layer.settings.size_offset
                alike.setdefault(key, []).append(done.name)
        yield from (names for names in alike.values() if len(names) > 1)


def examine(name: str, max_parameters: float) -> Row:
    """Return the outcome for a model."""
    warnings.simplefilter("ignore", NothingToCropWarning)
    torch.manual_seed(0)
    set_fused_attn(False)  # The products of attention must be visible.
    with torch.device("meta"):
        count = sum(p.numel() for p in timm.create_model(name, pretrained=False).parameters())
    row: Row = {"parameters": count}
    if count > max_parameters:
        return {**row, "outcome": "left out", "reason": "more parameters than the limit"}
    try:
        model, example = made(name)
        row |= {"size": example.shape[-1], "kind": kind_of(model, example)}
        if not strided_modules(model):
            raise LeftOutError("no strided module")
    except LeftOutError as error:
        return {**row, "outcome": "left out", "reason": str(error)}
    try:
        kept: dict[str, str] = {}
        try:
            report = replace_downsampling(model, example)
            row["found by"] = "trace"
        except ValueError as error:
            if "cannot be traced" not in str(error):
                raise
            row["found by"] = "names"
            model, report, kept = without_a_trace(name, model, example)
        kept |= {place.name: place.reason for place in report.kept}
        row |= {
            "placements": Counter(done.placement or "in its place" for done in report.replaced),
            "layers": len(report.layers),
            "kept": Counter(kept.values()),
            "breaks": [place.name for place in report.breaks],
            "multiply-adds ratio": report.multiply_adds_after / report.multiply_adds_before,
        }
        train(model, example, report)
    except Exception as error:
        nothing = "no strided operation that can be replaced" in str(error)
        outcome, reason = ("kept" if nothing else "refused"), one_line(error, 400)
        if nothing:
            reason = max(re.findall(r"\): ([^;]*)", reason) or [reason], key=len)
        return {**row, "outcome": outcome, "reason": reason}
    if not kept:
        return {**row, "outcome": "replaced"}
    (reason, _), *_ = Counter(kept.values()).most_common()
    return {**row, "outcome": "partly", "reason": reason}


def train(model: nn.Module, example: torch.Tensor, report: ReplacementReport) -> None:
    """Run forward and backward; raise ArithmeticError if a stride has no finite gradient."""
    outputs: list[torch.Tensor] = []

    def gather(found: Any) -> None:
        if isinstance(found, torch.Tensor):
            outputs.append(found)
        else:
            for each in found.values() if isinstance(found, dict) else found:
                gather(each)

    gather(model.train()(example))
    sum(output.float().square().mean() for output in outputs).backward()  # type: ignore[union-attr]
    for done in report.replaced:
        gradient = done.layer.strides.grad
        if gradient is None or not gradient.isfinite().all():
            raise ArithmeticError(f"the stride of {done.name} has the gradient {gradient}")


def _work(connection: Connection, name: str, max_parameters: float, memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    torch.set_num_threads(1)
    try:
        row = examine(name, max_parameters)
    except Exception as error:
        row = {"outcome": "left out", "reason": f"cannot be made: {one_line(error)}"}
    connection.send(row)


def examine_apart(name: str, options: argparse.Namespace) -> Row:
    """Examine a model in its own process, within the limits of time and memory."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=_work,
        args=(theirs, name, options.max_parameters * 1e6, int(options.memory * 2**30)),
    )
    began = time.perf_counter()
    process.start()
    theirs.close()
    row: Row = {"outcome": "left out", "reason": "more time than the limit"}
    try:
        if ours.poll(options.limit_seconds):
            row = ours.recv()
    except EOFError:
        row = {
            "outcome": "left out",
            "reason": "its process ended, as for more memory than there is",
        }
    finally:
        process.kill()
        process.join()
    seconds = time.perf_counter() - began
    return {"model": name, **row, "seconds": round(seconds, 1), "timm": timm.__version__}


def table_of(rows: list[Row]) -> str:
    """Return the outcomes for all models as a Markdown page."""
    tried = [row for row in rows if row["outcome"] != "left out"]
    models = len(timm.list_models())
    lines = [
        "# Surgery on the models of timm",
        "",
        f"Made by `benchmarks/surgery_timm.py` with timm {timm.__version__} and torch "
        f"{torch.__version__.partition('+')[0]}: {len(rows)} of {models} models"
        + (", not all of them." if len(rows) < models else "."),
        "",
        *(f"- *{outcome}*: {meaning}" for outcome, meaning in OUTCOMES.items()),
        "",
        "*With attention* are models that multiply maps with one another; *convolutional* are the",
        "others that have a convolution with overlapping windows.",
        "",
        "| models | tried | replaced | partly | kept | refused |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    kinds = sorted({row["kind"] for row in tried})
    for kind in kinds:
        of_kind = [row for row in tried if row["kind"] == kind]
        counts = Counter(row["outcome"] for row in of_kind)
        cells = [_share(counts[o], len(of_kind)) for o in ("replaced", "partly", "kept", "refused")]
        lines.append(f"| {kind} | {len(of_kind)} | {' | '.join(cells)} |")
    for kind in kinds:
        of_kind = [row for row in tried if row["kind"] == kind]
        reasons = Counter((row["outcome"], row["reason"]) for row in of_kind if "reason" in row)
        if reasons:
            lines += ["", f"Why not all of the {kind} ones:", "", "| share | outcome | reason |"]
            lines += ["|---:|---|---|"]
        for (outcome, reason), count in reasons.most_common():
            lines.append(f"| {_share(count, len(of_kind))} | {outcome} | {_cell(reason)} |")
    left_out = Counter(row["reason"].partition(":")[0] for row in rows if row not in tried)
    if left_out:
        lines += ["", "Left out:", "", "| models | reason |", "|---:|---|"]
        lines += [f"| {count} | {reason} |" for reason, count in left_out.most_common()]
    lines += [
        "",
        "Placements are those of the layers: before or after their operations, or in their place.",
        "Where a model *fails once strides move*, its maps must keep some size; its strides can be",
        "held, or the size be made to follow.",
        "",
        "| model | kind | pixels | found by | outcome | placements | layers | multiply-adds "
        "| fails once strides move | reason |",
        "|---|---|---:|---|---|---|---:|---:|---|---|",
    ]
    lines += [f"| {' | '.join(_cells(row))} |" for row in sorted(tried, key=_name)]
    return "\n".join([*lines, ""])


def _name(row: Row) -> str:
    return str(row["model"])


def _share(count: int, of: int) -> str:
    return f"{count} ({100 * count / of:.1f} %)"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _cells(row: Row) -> Iterator[str]:
    yield row["model"]
    yield row["kind"]
    yield str(row["size"])
    yield row.get("found by", "")
    yield row["outcome"]
    yield ", ".join(f"{count} {where}" for where, count in row.get("placements", {}).items())
    yield str(row.get("layers", ""))
    yield f"{row['multiply-adds ratio']:.2f}" if "multiply-adds ratio" in row else ""
    yield ", ".join(row.get("breaks", ()))
    yield _cell(row.get("reason", ""))


def main() -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of names, as resnet*")
    parser.add_argument("--limit-seconds", type=float, default=120.0, help="for each model")
    parser.add_argument("--max-parameters", type=float, default=100.0, help="in millions")
    parser.add_argument("--memory", type=float, default=24.0, help="address space, GiB per model")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of lines to add to")
    parser.add_argument("--table", action="store_true", help="write the table alone")
    options = parser.parse_args()
    console = Console(width=110)
    rows = []
    if options.results.exists():
        rows = [json.loads(line) for line in options.results.read_text().splitlines()]
    done = {row["model"] for row in rows}
    names = [
        name
        for name in timm.list_models()
        if name not in done and any(fnmatch(name, pattern) for pattern in options.only)
    ]
    if not options.table:
        multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
        for name in track(names, "models", console=console):
            rows.append(examine_apart(name, options))
            with options.results.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    table = options.results.with_suffix(".md")
    table.write_text(table_of(rows))
    console.print(f"written: {options.results}, {table}")


if __name__ == "__main__":
    main()
