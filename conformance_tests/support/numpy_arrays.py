"""Arrays for the tests of the NumPy adapter."""

import numpy as np

STEP = 1e-6
CLEAN = ("paper", "nominal")
ENGINES = ("matmul", "fft")


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)
