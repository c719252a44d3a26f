"""Random tensors for the tests of PyTorch functions, and how they are compared."""

import torch


def random(*shape, dtype=torch.float64, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=dtype, generator=generator, **options)


def strides_of(*values, dtype=torch.float64, **options):
    return torch.tensor(values, dtype=dtype, **options)


def loss(y):
    """Return a scalar with a third derivative in y."""
    return (y**2 * torch.cos(y)).sum()


def assert_close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
