"""Learn the strides of a small network on handwritten digits, with Accelerate.

    python experiments/examples/accelerate_digits.py --epochs 2
    python experiments/examples/accelerate_digits.py --epochs 4  # continues that run

On several devices or in several processes, use `accelerate launch` instead of `python`.
`tensorboard --logdir` with the folder shows the strides during training. This example needs the
extra experiments, and accelerate.
"""

from __future__ import annotations

from pathlib import Path

from diffstride_experiments.entry import importing

with importing("pip install 'diffstride[experiments]' accelerate"):
    import torch
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from diffstride_experiments.command_line import run_script
    from diffstride_experiments.data import Digits
    from diffstride_experiments.options import Options
    from diffstride_torch import FlopsBudget, param_groups, project_after_step, stride_metrics
    from diffstride_torch.models import small_resnet
    from pydantic import Field, PositiveInt
    from torch import Tensor, nn
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader

BATCH = 64


class Progress:
    """Progress of a run, saved with the rest of its state."""

    def __init__(self) -> None:
        self.epochs = self.steps = 0

    def state_dict(self) -> dict[str, int]:
        """Return the state for `load_state_dict`."""
        return {"epochs": self.epochs, "steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a state."""
        self.epochs, self.steps = state["epochs"], state["steps"]


@torch.no_grad()
def accuracy(
    accelerator: Accelerator, model: nn.Module, loader: DataLoader[tuple[Tensor, Tensor]]
) -> float:
    """Return the share of images that the network classifies correctly."""
    model.eval()
    right = []
    for images, labels in loader:
        found = accelerator.gather_for_metrics((model(images).argmax(1) == labels).float())
        right.append(found)
    return float(torch.cat(right).mean())


def main(epochs: int, stride: float, folder: Path, seed: int) -> dict[str, float]:
    """Train the network, anew or from a saved state; return accuracy, strides and sizes."""
    accelerator = Accelerator(log_with="tensorboard", project_dir=folder)
    accelerator.init_trackers("curves")
    set_seed(seed)
    model = small_resnet(strides=(stride, 2.0, 2.0), channels=(8, 8, 16, 32))
    # Made at the initial strides, before a state is loaded, so that it is the same in every run.
    budget = FlopsBudget(model, torch.zeros(1, 1, 28, 28))
    optimizer = torch.optim.AdamW(param_groups(model, lr=3e-3, weight_decay=1e-2, stride_lr=3e-2))
    project_after_step(optimizer, model)

    data, progress = Digits().load("test"), Progress()
    model, optimizer, training, test = accelerator.prepare(
        model,
        optimizer,
        DataLoader(data.train, BATCH, shuffle=True),
        DataLoader(data.evaluation, 500),
    )
    accelerator.register_for_checkpointing(progress)
    state = folder / "state"
    if state.exists():
        accelerator.load_state(state)

    while progress.epochs < epochs:
        model.train()
        for images, labels in training:
            loss = cross_entropy(model(images), labels)
            optimizer.zero_grad()
            accelerator.backward(loss + budget())
            optimizer.step()
            progress.steps += 1
            if progress.steps % 10 == 0:
                metrics = {"loss": loss.item(), **stride_metrics(model, budget)}
                accelerator.log(metrics, progress.steps)
        accelerator.log({"accuracy": accuracy(accelerator, model, test)}, progress.steps)
        progress.epochs += 1
        accelerator.save_state(state)

    metrics = {"accuracy": accuracy(accelerator, model, test), **stride_metrics(model, budget)}
    for name, value in metrics.items():
        accelerator.print(f"{name}: {value:,.5g}")
    accelerator.end_training()
    return metrics


if __name__ == "__main__":

    class Arguments(Options):
        """Learn the strides of a small network on handwritten digits, with Accelerate."""

        epochs: PositiveInt = 3
        """Passes over the training images, including those of an earlier run in the folder."""

        stride: float = Field(3.0, ge=1)
        """Initial stride of the first layer."""

        folder: Path = Path("runs/accelerate-digits")
        """Folder of the state and the curves. A run in the folder is continued."""

        seed: int = Field(0, ge=0, lt=2**32)
        """Seed of the weights and of the order of the images."""

    run_script(Arguments, main)
