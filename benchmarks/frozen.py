"""Time a frozen layer in onnxruntime beside average pooling and a strided convolution.

Usage: ``python benchmarks/frozen.py``

Each layer is exported by `torch.onnx.export` and run in onnxruntime, forward, in float32 at stride
2 on one image and on a batch. The script prints a table, and writes `frozen.json` to
`benchmarks/results`.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import measuring
import onnxruntime
import torch
from diffstride_torch import DiffStride2d, freeze
from rich.console import Console
from rich.table import Table
from torch import nn

SHAPES = [
    (1, 64, 56, 56),
    (8, 64, 56, 56),
    (1, 64, 112, 112),
    (4, 64, 112, 112),
    (32, 128, 16, 16),
    (1, 3, 224, 224),
]
STRIDE = 2


def session(layer: nn.Module, x: torch.Tensor, path: Path) -> onnxruntime.InferenceSession:
    """Return the layer in onnxruntime."""
    torch.onnx.export(layer, (x,), input_names=["x"], dynamo=True, verbose=False).save(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def measure(shape: tuple[int, ...], folder: Path) -> dict[str, float]:
    """Return the median time of each layer in seconds."""
    torch.manual_seed(0)
    x, channels = torch.randn(shape), shape[1]
    layers = {
        "frozen layer": freeze(DiffStride2d(STRIDE), x),
        "average pooling": nn.AvgPool2d(STRIDE),
        "strided convolution": nn.Conv2d(channels, channels, 3, stride=STRIDE, padding=1),
    }
    feed = {"x": x.numpy()}
    runs: measuring.Contenders = {}
    for i, (name, layer) in enumerate(layers.items()):
        in_onnxruntime = session(layer.eval(), x, folder / f"{i}.onnx")
        runs[name] = partial(in_onnxruntime.run, None, feed)
    return measuring.medians(runs, rounds=200, seconds=5)


def main() -> None:
    """Run the benchmark."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    rows = []
    with TemporaryDirectory() as folder:
        for shape in SHAPES:
            rows.append({"shape": shape, "seconds": measure(shape, Path(folder))})
    path = measuring.save(
        "frozen", {"onnxruntime": onnxruntime.__version__, "stride": STRIDE, "rows": rows}
    )
    names = list(rows[0]["seconds"])
    table = Table("input", *(f"{name}, ms" for name in names), *(f"over {n}" for n in names[1:]))
    for row in rows:
        ours, *others = row["seconds"].values()
        cells = [f"{1e3 * s:.3f}" for s in (ours, *others)] + [f"{ours / s:.2f}" for s in others]
        table.add_row("x".join(map(str, row["shape"])), *cells)
    console = Console(width=140)
    console.print(table)
    console.print(f"written: {path}")


if __name__ == "__main__":
    main()
