"""Try other ways to evaluate a convolution and the layer after it, beside the one that is used.

Usage: ``python benchmarks/fused_alternatives.py``

All are exact, which is first checked in float64. They are timed in float32, forward, on PyTorch:

- *separate*, *fused*: `conv_diff_stride` as it is; *channels last* for arrays of that order;
- *plain fused*: the shifted resizes in a few lines, without blocks, for comparison with the next;
- *low resolution*: the input is resized once, and the result is shifted by fractions of a sample.
  Zero padding differs from circular padding by the samples that come in at the border. These are
  carried along, with one more row for each;
- *half way*: one axis is resized and its taps are summed before the other axis is resized;
- *spectrum*: every kept frequency is multiplied by the transform of the kernel. This takes two
  multiply-adds per frequency, channel and output; the pointwise convolution takes nine. It works
  only for circular padding. The kernel is transformed in every call, as in training, or beforehand;
- *products*: plain fused with a matrix product instead of the pointwise convolution.

The script prints a table and writes `fused_alternatives.json` to `benchmarks/results`.
"""

from __future__ import annotations

from dataclasses import asdict

import fused
import measuring
import numpy as np
import torch
from diffstride_backends.torch_backend import BACKEND
from diffstride_torch import conv_diff_stride
from rich.console import Console
from rich.progress import track
from rich.table import Table

from diffstride_core import host

# Strides whose feature maps have odd sizes, so that no bin is at half the sampling rate, where
# shifts by a fraction of a sample do not exist.
CASES = (
    fused.Case(8, 128, 256, 28, 28 / 13),
    fused.Case(8, 128, 256, 28, 28 / 9),
    fused.Case(64, 128, 256, 28, 28 / 13),
    fused.Case(32, 64, 128, 32, 32 / 15),
    fused.Case(16, 256, 512, 14, 2.0),
)
TAPS = np.array([-1, 0, 1])


class Evaluations:
    """The evaluations of a 3x3, square case whose feature map has an odd size.

    Images are (batch, N, N, channels) here. They and the kernels are given in that order, so that
    no evaluation has to transpose them.

    Parameters
    ----------
    case : fused.Case
    dtype : torch.dtype
    """

    def __init__(self, case: fused.Case, dtype: torch.dtype) -> None:
        random = torch.Generator().manual_seed(0)
        shape = (case.batch, case.size, case.size, case.inputs)
        self.x = torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)
        weight = torch.randn(case.weight_shape, generator=random, dtype=torch.float64).to(dtype)
        self.weight = weight / (9 * case.inputs) ** 0.5
        self._channels_first = self.x.movedim(-1, 1).contiguous()
        self._case, self._dtype = case, dtype
        (matrix, _), *_ = host.matrices(case.plan.resize, (case.stride,) * 2, "float64")
        M, N = matrix.shape
        # Resize matrix for each tap: the matrix with shifted columns.
        padded = np.pad(matrix, ((0, 0), (1, 1)))
        self._shifted = self._tensor([padded[:, 1 - tap : 1 - tap + N] for tap in TAPS])
        # Shift matrices at low resolution. They correct circular padding: for the tap before, it
        # brings in the last sample at the first place, which is subtracted; likewise the first
        # sample.
        turns = np.subtract.outer(np.arange(M), np.arange(M)) / M
        half = M // 2 + 1
        k = np.arange(1 - half, half)
        shifts = np.cos(2 * np.pi * (turns[..., None] + TAPS[:, None, None, None] / N) * k).sum(-1)
        corrections = np.zeros((3, M, 2))
        corrections[0, :, 0], corrections[2, :, 1] = -matrix[:, 0], -matrix[:, -1]
        self._low_shifted = self._tensor(np.concatenate([shifts / M, corrections], axis=2))
        self._low = self._tensor(np.concatenate([matrix, np.eye(N)[[-1, 0]]]))
        # Signed frequencies along the first axis, frequencies of a real transform along the other.
        k = np.fft.ifftshift(k)
        waves = np.exp(2j * np.pi * np.outer(k, np.arange(N)) / N)
        out = np.exp(2j * np.pi * np.outer(np.arange(M), k) / M)
        mask = np.mean(out.conj() * (matrix @ waves.T), axis=0).real
        self._analysis = [self._tensor(waves.conj() / N, complex_too=True)]
        self._analysis.append(self._tensor([waves[:half].real / N, -waves[:half].imag / N]))
        twice = np.where(k[:half] == 0, 1, 2) * mask[:half]
        self._synthesis = [
            self._tensor(out * mask, complex_too=True),
            self._tensor(out[:, :half] * twice, complex_too=True),
        ]
        turned = np.exp(2j * np.pi * np.outer(k, TAPS) / N)
        both = np.einsum("ki,lj->klij", turned, turned[:half])
        self._turned = self._tensor(both.reshape(len(k) * half, 9), complex_too=True)
        self._spectral_shape = len(k), half
        self.transformed = self.transform()

    def _tensor(self, array: object, *, complex_too: bool = False) -> torch.Tensor:
        tensor = torch.as_tensor(np.asarray(array))
        return tensor.to(self._dtype.to_complex() if complex_too else self._dtype)

    @property
    def kernels(self) -> torch.Tensor:
        """One matrix (taps of the last axis * inputs, outputs) per tap of the first axis."""
        return self.weight.permute(2, 3, 1, 0).reshape(3, -1, self._case.outputs)

    def library(self, method: str, padding_mode: str = "zeros", *, last: bool = False) -> object:
        """Return the result of `conv_diff_stride`, shape (batch, outputs, M, M)."""
        x = self.x.movedim(-1, 1) if last else self._channels_first
        return conv_diff_stride(
            x, self.weight, [self._case.stride] * 2, convention=self._case.convention,
            method=method, padding_mode=padding_mode,
        )  # fmt: skip

    def plain(self, *, products: bool = False) -> torch.Tensor:
        """Resize for every tap, and sum over taps and channels at once."""
        return self._shift_and_sum(self.x, self._shifted, products=products)

    def low_resolution(self) -> torch.Tensor:
        """Resize once, and shift the result."""
        matrix, (batch, N, _, channels) = self._low, self.x.shape
        x = (matrix @ self.x.reshape(batch, N, -1)).reshape(-1, N, channels)
        x = (matrix @ x).reshape(batch, len(matrix), len(matrix), channels)
        return self._shift_and_sum(x, self._low_shifted)

    def _shift_and_sum(
        self, x: torch.Tensor, by_tap: torch.Tensor, *, products: bool = False
    ) -> torch.Tensor:
        batch, rows, columns, channels = x.shape
        M = by_tap.shape[1]
        side_by_side = by_tap.movedim(0, 1).reshape(3 * M, columns)
        y = None
        for matrix, kernel in zip(by_tap, self.kernels, strict=True):
            u = (matrix @ x.reshape(batch, rows, -1)).reshape(-1, columns, channels)
            u = (side_by_side @ u).reshape(1, batch * M * M, -1)
            if products:
                y = u @ kernel if y is None else y.baddbmm_(u, kernel[None])
            else:
                y = BACKEND.pointwise(u, kernel[None], y)
        return y.reshape(batch, M, M, -1)

    def half_way(self) -> torch.Tensor:
        """Resize the last axis, sum over its taps, then resize and sum the first axis."""
        batch, N, _, channels = self.x.shape
        M = self._shifted.shape[1]
        side_by_side = self._shifted.movedim(0, 1).reshape(3 * M, N)
        u = (side_by_side @ self.x.reshape(-1, N, channels)).reshape(1, batch * N * M, -1)
        y = None
        for matrix, kernel in zip(self._shifted, self.kernels, strict=True):
            summed = BACKEND.pointwise(u, kernel[None]).reshape(batch, N, -1)
            resized = matrix @ summed
            y = resized if y is None else y.add_(resized)
        return y.reshape(batch, M, M, -1)

    def transform(self) -> torch.Tensor:
        """Return the transform of the kernel, shape (frequencies, inputs, outputs)."""
        flat = self.weight.permute(2, 3, 1, 0).reshape(9, -1)
        real = torch.view_as_real(self._turned).movedim(-1, 1).reshape(-1, 9)
        parts = (real @ flat).reshape(-1, 2, self._case.inputs, self._case.outputs)
        return torch.complex(parts[:, 0], parts[:, 1])

    def spectrum(self, transformed: torch.Tensor | None = None) -> torch.Tensor:
        """Multiply every kept frequency by the transform of the kernel."""
        batch, N, _, channels = self.x.shape
        first, half = self._spectral_shape
        real, imaginary = (part @ self.x.reshape(-1, N, channels) for part in self._analysis[1])
        x = torch.complex(real, imaginary).reshape(batch, N, half * channels)
        x = (self._analysis[0] @ x).reshape(batch, first * half, channels).movedim(0, 1)
        y = x @ (self.transform() if transformed is None else transformed)
        y = y.movedim(0, 1).reshape(batch, first, -1)
        y = (self._synthesis[0] @ y).reshape(-1, half, self._case.outputs)
        by = self._synthesis[1]
        y = by.real @ y.real - by.imag @ y.imag
        return y.reshape(batch, by.shape[0], by.shape[0], -1)


def contenders(case: fused.Case, dtype: torch.dtype) -> measuring.Contenders:
    """Return the evaluations of a case."""
    own = Evaluations(case, dtype)
    return {
        "separate": lambda: own.library("separate"),
        "fused": lambda: own.library("fused"),
        "separate, channels last": lambda: own.library("separate", last=True),
        "fused, channels last": lambda: own.library("fused", last=True),
        "plain fused": own.plain,
        "low resolution": own.low_resolution,
        "half way": own.half_way,
        "spectrum": own.spectrum,
        "spectrum, kernel given": lambda: own.spectrum(own.transformed),
        "products": lambda: own.plain(products=True),
    }


def check(case: fused.Case) -> None:
    """Raise AssertionError unless all evaluations are equal in float64."""
    own = Evaluations(case, torch.float64)
    expected = {mode: own.library("separate", mode) for mode in ("zeros", "circular")}
    for name, run in contenders(case, torch.float64).items():
        y = run()
        if y.shape[1] != case.outputs:
            y = y.movedim(-1, 1)
        mode = "circular" if name.startswith("spectrum") else "zeros"
        torch.testing.assert_close(y, expected[mode], rtol=0, atol=1e-12, msg=f"{name} differs")


def multiply_adds(case: fused.Case) -> dict[str, int]:
    """Return the multiply-adds of each evaluation per image; a complex one counts as four."""
    N, M = case.size, case.plan.resize.output_sizes[0]
    inputs, outputs = case.inputs, case.outputs
    half = M // 2 + 1
    both, kept = inputs * outputs, M * half
    pointwise, resized = 9 * both * M * M, inputs * (3 * N * N * M + 9 * N * M * M)
    rows = M + 2
    low = inputs * (rows * N * N + rows * rows * N + 3 * M * rows * rows + 9 * M * M * rows)
    transforms = 2 * inputs * half * N * N + 4 * inputs * M * N * half
    inverse = 4 * outputs * M * M * half + 2 * outputs * M * M * half
    spectrum = 4 * kept * both + transforms + inverse
    return {
        "separate": 9 * both * N * N + outputs * (N * N * M + N * M * M),
        "fused": pointwise + resized,
        "low resolution": pointwise + low,
        "half way": 9 * both * N * M + 3 * inputs * N * N * M + 3 * outputs * N * M * M,
        "spectrum": spectrum + 18 * kept * both // case.batch,
        "spectrum, kernel given": spectrum,
    }


def main() -> None:
    """Run the benchmark."""
    console, rows = Console(width=200), []
    for case in track(CASES, console=console):
        check(fused.Case(2, 6, 5, case.size, case.stride))
        with torch.no_grad():
            runs = contenders(case, torch.float32)
            seconds = measuring.medians(runs, rounds=25, seconds=15)
        rows.append(
            {
                "case": asdict(case),
                "name": case.name,
                "sizes": case.plan.resize.output_sizes,
                "seconds": seconds,
                "multiply-adds": multiply_adds(case),
            }
        )
    path = measuring.save("fused_alternatives", {"rows": rows})
    table = Table(title="forward, float32: milliseconds (multiply-adds of an image, millions)")
    table.add_column("evaluation")
    for row in rows:
        table.add_column(f"{row['name']}\nto {row['sizes'][0]}x{row['sizes'][1]}", justify="right")
    for name in rows[0]["seconds"]:
        cells = []
        for row in rows:
            counted = row["multiply-adds"].get(name)
            shown = "" if counted is None else f" ({counted / 1e6:.0f})"
            cells.append(f"{1e3 * row['seconds'][name]:.1f}{shown}")
        table.add_row(name, *cells)
    console.print(table)
    console.print(f"written: {path}")


if __name__ == "__main__":
    main()
