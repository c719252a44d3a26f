"""Networks for the tests of surgery, costs and freezing."""

import copy
import operator

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

SIZE = 64


def images(size=SIZE, batch=2, channels=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, channels, size, size, generator=generator).to(dtype)


def build(name):
    torch.manual_seed(0)
    return getattr(torchvision.models, name)(weights=None, num_classes=5)


def independent_multiply_adds(model, *inputs):
    """Per image, as torch counts them: what a larger batch adds, without what each batch does."""

    def count(batch):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(*batch)
        return counter.get_total_flops() // 2

    twice = [torch.cat([x, x]) for x in inputs]
    return (count(twice) - count(inputs)) / len(inputs[0])


class Branches(nn.Module):
    """Two strided branches that meet, in a way to be chosen."""

    def __init__(self, left, right, join=operator.add):
        super().__init__()
        self.left, self.right, self.join = left, right, join

    def forward(self, x):
        return self.join(self.left(x), self.right(x))


def conv(stride, kernel=3, padding=1, **options):
    return nn.Conv2d(3, 4, kernel, stride=stride, padding=padding, **options)


STRIDES = [(2.0, 2.0), (1.4, 2.7), (3.1, 1.9)]


# What a convention makes of one map: the authors' code is a sum of two real operators.
TERMS = {"nominal": 1, "paper": 1, "tensorflow": 2}

# Where the smooth size is a whole number, of either parity, and so M itself: the convention, how
# much larger than N/S it is, N, and the strides of two layers.
AT_WHOLE_SIZES = (
    ("nominal", 0, 105, [[3.0, 2.1], [1.4, 2.0]]),  # To 35 x 50, to 25 x 25.
    ("nominal", 0, 84, [[2.1, 4.0], [2.5, 1.4]]),  # To 40 x 21, to 16 x 15.
    ("paper", 8, 96, [[2.0, 1.6], [1.75, 3.4]]),  # To 56 x 68, to 40 x 28.
    ("tensorflow", 8, 96, [[2.0, 1.6], [1.75, 3.4]]),
)
at_whole_sizes = pytest.mark.parametrize(
    ("convention", "larger", "size", "strides"),
    AT_WHOLE_SIZES,
    ids=[f"{convention}-{size}" for convention, _, size, _ in AT_WHOLE_SIZES],
)


def slopes(cost, strides):
    """Return the derivatives of a cost in each stride, by finite differences."""
    found = []
    for layer, own in enumerate(strides):
        found.append([])
        for axis in range(len(own)):
            ends = []
            for step in (1e-5, -1e-5):
                moved = copy.deepcopy(strides)
                moved[layer][axis] += step
                ends.append(cost(moved))
            found[-1].append((ends[0] - ends[1]) / 2e-5)
    return found


def resize_cost(n, m, strides):
    """Return the multiply-adds of resizing one map by matrices, of smooth sizes."""
    (n_h, n_w), (m_h, m_w) = n, m
    # The axis that shrinks more comes first.
    return (m_h if strides[0] > strides[1] else m_w) * n_h * n_w + (
        m_h * m_w * (n_w if strides[0] > strides[1] else n_h)
    )
