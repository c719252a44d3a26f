"""Learn the strides of a small network on handwritten digits, in Lightning.

    python experiments/examples/lightning_digits.py --epochs 2
    python experiments/examples/lightning_digits.py --epochs 4  # goes on where that ended

The loop is Lightning's: what DiffStride needs is in `configure_optimizers` and in the two calls
that log. `tensorboard --logdir` of the folder shows the strides on their way. Needs the extra
experiments, and lightning.
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
    """An order of samples that follows from the epoch alone: a run that is resumed has the same.

    Lightning calls `set_epoch`.
    """

    def __init__(self, count: int) -> None:
        self._count, self._epoch = count, 0

    def set_epoch(self, epoch: int) -> None:
        """Begin another epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._epoch)
        return iter(torch.randperm(self._count, generator=generator).tolist())


class Classifier(lightning.LightningModule):
    """A residual network that learns its strides at the multiply-adds that it begins with.

    Parameters
    ----------
    stride : float
        Of every layer, to begin with.
    """

    def __init__(self, stride: float) -> None:
        super().__init__()
        self.network = small_resnet(strides=(stride, 2.0, 2.0), channels=(8, 8, 16, 32))
        # From the strides as they are made, before a checkpoint is loaded: the same in every run.
        self.budget = FlopsBudget(self.network, torch.zeros(1, 1, 28, 28))
        self.data = Digits().load("test")

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the training images."""
        return DataLoader(self.data.train, BATCH, sampler=Shuffled(len(self.data.train)))

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the test images."""
        return DataLoader(self.data.evaluation, 500)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Return the loss of some images, with the budget's term."""
        images, labels = batch
        loss = cross_entropy(self.network(images), labels)
        self.log_dict({"loss": loss, **stride_metrics(self.network, self.budget)})
        return loss + self.budget()

    def validation_step(self, batch: Batch, _: int) -> None:
        """Log the accuracy on some images."""
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
    """Train the network, or go on, and return accuracy, strides and sizes."""
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
        """Learn the strides of a small network on handwritten digits, in Lightning."""

        epochs: PositiveInt = 3
        """Passes over the training images, those of an earlier run in the folder included."""

        stride: float = Field(3.0, ge=1)
        """Stride of the first layer, to begin with."""

        folder: Path = Path("runs/lightning-digits")
        """Folder of the checkpoint and of the curves; what it holds is gone on with."""

        seed: int = Field(0, ge=0, lt=2**32)
        """Seed of the weights."""

    run_script(Arguments, main)
