"""Learn the strides of a small network on handwritten digits, with Lightning.

    python experiments/examples/lightning_digits.py --epochs 2
    python experiments/examples/lightning_digits.py --epochs 4  # continues that run

Lightning runs the loop. The code for DiffStride is in `configure_optimizers` and `training_step`.
`tensorboard --logdir` with the folder shows the strides during training. This example needs the
extra experiments, and lightning.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffstride_experiments.entry import importing

with importing("pip install 'diffstride[experiments]' lightning"):
    import lightning
    import torch
    from diffstride_experiments.command_line import run_script
    from diffstride_experiments.data import Digits
    from diffstride_experiments.options import Options
    from diffstride_torch import FlopsBudget, param_groups, project_after_step, stride_metrics
    from diffstride_torch.models import small_resnet
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import TensorBoardLogger
    from pydantic import Field, PositiveInt
    from torch import Tensor
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader, Sampler

BATCH = 64

Batch = tuple[Tensor, Tensor]
"""Images and labels."""


class Shuffled(Sampler[int]):
    """A random order that depends only on the epoch, so that a resumed run has the same order.

    Lightning calls `set_epoch`.
    """

    def __init__(self, count: int) -> None:
        self._count, self._epoch = count, 0

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._epoch)
        return iter(torch.randperm(self._count, generator=generator).tolist())


class Classifier(lightning.LightningModule):
    """A residual network that learns its strides at its initial number of multiply-adds.

    Parameters
    ----------
    stride : float
        Initial stride of the first layer.
    """

    def __init__(self, stride: float) -> None:
        super().__init__()
        self.network = small_resnet(strides=(stride, 2.0, 2.0), channels=(8, 8, 16, 32))
        # Made at the initial strides, before a checkpoint is loaded, so it is the same in every
        # run.
        self.budget = FlopsBudget(self.network, torch.zeros(1, 1, 28, 28))
        self.data = Digits().load("test")

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the training images."""
        return DataLoader(self.data.train, BATCH, sampler=Shuffled(len(self.data.train)))

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the test images."""
        return DataLoader(self.data.evaluation, 500)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Return the loss on a batch, including the budget term."""
        images, labels = batch
        loss = cross_entropy(self.network(images), labels)
        self.log_dict({"loss": loss, **stride_metrics(self.network, self.budget)})
        return loss + self.budget()

    def validation_step(self, batch: Batch, _: int) -> None:
        """Log the accuracy on a batch."""
        images, labels = batch
        right = (self.network(images).argmax(1) == labels).float().mean()
        self.log("accuracy", right, batch_size=len(labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser, which keeps the strides within their bounds."""
        groups = param_groups(self, lr=3e-3, weight_decay=1e-2, stride_lr=3e-2)
        optimizer = torch.optim.AdamW(groups)
        project_after_step(optimizer, self)
        return optimizer


def main(epochs: int, stride: float, folder: Path, seed: int) -> dict[str, float]:
    """Train the network, anew or from a checkpoint; return accuracy, strides and sizes."""
    lightning.seed_everything(seed, verbose=False)
    model = Classifier(stride)
    last = folder / "checkpoints" / "last.ckpt"
    trainer = lightning.Trainer(
        max_epochs=epochs,
        logger=TensorBoardLogger(folder, name=None, version=""),
        callbacks=[ModelCheckpoint(last.parent, filename=last.stem, enable_version_counter=False)],
        log_every_n_steps=10,
        enable_model_summary=False,
    )
    trainer.fit(model, ckpt_path=last if last.exists() else None)
    (metrics,) = trainer.validate(model, verbose=False)
    metrics = {**metrics, **stride_metrics(model.network, model.budget)}
    for name, value in metrics.items():
        print(f"{name}: {value:,.5g}")
    return metrics


if __name__ == "__main__":

    class Arguments(Options):
        """Learn the strides of a small network on handwritten digits, with Lightning."""

        epochs: PositiveInt = 3
        """Passes over the training images, including those of an earlier run in the folder."""

        stride: float = Field(3.0, ge=1)
        """Initial stride of the first layer."""

        folder: Path = Path("runs/lightning-digits")
        """Folder of the checkpoint and the curves. A run in the folder is continued."""

        seed: int = Field(0, ge=0, lt=2**32)
        """Seed of the weights."""

    run_script(Arguments, main)
