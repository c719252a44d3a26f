"""All studies by their names."""

from diffstride_experiments.studies.budget import BUDGET
from diffstride_experiments.studies.controls import CONTROLS
from diffstride_experiments.studies.demo import DEMO
from diffstride_experiments.studies.penalty import PENALTY
from diffstride_experiments.studies.rate import RATE
from diffstride_experiments.studies.robustness import MEAN, Robustness, random_strides
from diffstride_experiments.studies.study import Study

__all__ = ["STUDIES"]

STARTS = {
    "2, 2, 2": (2.0, 2.0, 2.0),
    "1, 3, 1": (1.0, 3.0, 1.0),
    "3, 1, 3": (3.0, 1.0, 3.0),
    "3, 2, 3": (3.0, 2.0, 3.0),
    "4, 4, 4": (4.0, 4.0, 4.0),
    **{f"{a:g}, {b:g}, {c:g} (random)": (a, b, c) for a, b, c in random_strides(2)},
}

DIGITS = Robustness(
    name="robustness-digits",
    title="Robustness to the initial strides (handwritten digits)",
    data="digits",
    starts=STARTS,
)

# Riad et al. (2022), Table 1, ResNet-18.
IMAGES = Robustness(
    name="robustness-images",
    title="Robustness to the initial strides (CIFAR10 images)",
    data="images",
    starts=STARTS,
    more_seeds=frozenset({"3, 1, 3", "3, 2, 3", "4, 4, 4"}),
    published={
        "2, 2, 2": "91.4 ± 0.2, 92.4 ± 0.1, 92.5 ± 0.1",
        "1, 3, 1": "90.0 ± 0.4, 91.1 ± 0.1, 92.4 ± 0.1",
        "3, 1, 3": "85.7 ± 0.1, 90.9 ± 0.2, 92.4 ± 0.1",
        "3, 2, 3": "82.0 ± 0.6, 89.2 ± 0.2, 92.3 ± 0.1",
        MEAN: "87.7 ± 3.4, 91.1 ± 1.1, 92.4 ± 0.2 (of six)",
    },
    published_caption="the paper, ResNet-18: convolution, spectral, DiffStride",
)

RECORDINGS = Robustness(
    name="robustness-recordings",
    title="Strides for frequency and for time (spoken digits of an unknown speaker)",
    data="recordings",
    starts={
        "2x2, 2x2, 2x2": (2.0, 2.0, 2.0),
        "2x3, 2x2, 2x3": ((2.0, 3.0), (2.0, 2.0), (2.0, 3.0)),
        "3x2, 2x2, 3x2": ((3.0, 2.0), (2.0, 2.0), (3.0, 2.0)),
        "4x4, 4x4, 4x4": (4.0, 4.0, 4.0),
    },
    axes=("frequency", "time"),
    # Each speaker is in the test set once: the accuracy of one network depends on the speakers.
    splits=[
        {"data.test_groups": test, "data.validation_groups": validation}
        for test, validation in (
            (("theo", "yweweler"), ("lucas",)),
            (("george", "lucas"), ("nicolas",)),
            (("jackson", "nicolas"), ("george",)),
        )
    ],
)

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        DEMO,
        DIGITS.study(),
        IMAGES.study(),
        RECORDINGS.study(),
        CONTROLS,
        BUDGET,
        PENALTY,
        RATE,
    )
}
