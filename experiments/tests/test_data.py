import numpy as np
import pytest
import torch
from diffstride_experiments.data import load_split, split_indices, split_sizes

LABELS = np.repeat(np.arange(10), 500)


@pytest.mark.parametrize("evaluate_on", ["test", "validation"])
@pytest.mark.parametrize(("count", "fraction"), [(5000, 0.2), (1000, 0.1), (200, 0.5)])
def test_split_is_stratified_disjoint_and_repeatable(count, fraction, evaluate_on):
    train, evaluation = split_indices(LABELS, count, fraction, evaluate_on)
    assert (len(train), len(evaluation)) == split_sizes(count, fraction, evaluate_on)
    assert not set(train) & set(evaluation)
    for part in (train, evaluation):
        assert len(set(part)) == len(part)
        counts = np.bincount(LABELS[part], minlength=10)
        assert counts.max() - counts.min() <= 1
    again = split_indices(LABELS, count, fraction, evaluate_on)
    np.testing.assert_array_equal(train, again[0])
    np.testing.assert_array_equal(evaluation, again[1])


def test_validation_leaves_the_test_images_alone():
    train, test = split_indices(LABELS, 5000, 0.2, "test")
    fewer, validation = split_indices(LABELS, 5000, 0.2, "validation")
    assert not set(test) & (set(fewer) | set(validation))
    assert set(fewer) | set(validation) == set(train)


def test_images_are_standardised_digits():
    data = load_split(1000, 0.2, "test")
    assert data.train_images.shape == (800, 1, 28, 28)
    assert data.images.shape == (200, 1, 28, 28)
    assert data.train_images.dtype == torch.float32
    assert data.train_labels.dtype == torch.int64
    assert data.train_images.mean().item() == pytest.approx(0, abs=1e-5)
    assert data.train_images.std().item() == pytest.approx(1, abs=1e-5)
    assert data.labels.bincount().tolist() == [20] * 10
