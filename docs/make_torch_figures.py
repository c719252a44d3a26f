"""Draw the figures of the page on seeing strides: docs/torch/seeing.md.

Run with the ``experiments`` extra: ``python docs/make_torch_figures.py [FOLDER]``. A small network
learns from which of two photographs, which ship with scikit-learn, a patch is cut.
"""

import sys
from pathlib import Path

import torch
from diffstride_torch import (
    DiffStride2d,
    complexity_penalty,
    param_groups,
    project_strides,
    stride_summary,
)
from diffstride_torch.models import small_resnet
from diffstride_torch.plotting import plot_kept_spectrum, plot_stride_history, plot_windows
from sklearn.datasets import load_sample_image

SIZE = 64
EPOCHS, STEPS, BATCH = 24, 10, 8


def photograph(name: str) -> torch.Tensor:
    """Return a photograph that ships with scikit-learn, halved, of shape (3, 213, 320)."""
    return torch.tensor(load_sample_image(name)[:426:2, ::2].copy()).permute(2, 0, 1) / 255


def patches(photographs: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return patches cut at random, and from which photograph each is."""
    labels = torch.randint(len(photographs), (BATCH,))
    cut = []
    for label in labels.tolist():
        photo = photographs[label]
        top, left = (int(torch.randint(n - SIZE + 1, ())) for n in photo.shape[1:])
        cut.append(photo[:, top : top + SIZE, left : left + SIZE])
    return torch.stack(cut) - 0.5, labels


def main(folder: Path) -> None:
    """Train the network and draw the figures."""
    torch.manual_seed(0)
    photographs = [photograph("flower.jpg"), photograph("china.jpg")]
    model = small_resnet(strides=((1.5, 2.5),) * 3, in_channels=3, num_classes=2)
    optimizer = torch.optim.AdamW(param_groups(model, lr=2e-3, stride_lr=1e-2))
    images, _ = patches(photographs)
    model(images)
    history = [stride_summary(model)]
    for _ in range(EPOCHS):
        for _ in range(STEPS):
            images, labels = patches(photographs)
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            (loss + 0.3 * complexity_penalty(model)).backward()
            optimizer.step()
            project_strides(model)
        history.append(stride_summary(model))
    print(history[-1])
    plot_windows(model).savefig(folder / "windows.png", dpi=130)
    plot_stride_history(history).savefig(folder / "stride_history.png", dpi=130)
    layer = DiffStride2d((2.0, 4.0))
    photo = photographs[0][:, :, 70:283]
    plot_kept_spectrum(layer, photo).savefig(folder / "kept_spectrum.png", dpi=130)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "figures")
