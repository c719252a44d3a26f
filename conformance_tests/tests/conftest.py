import os

import pytest
import torch

# Before JAX is imported: several devices, which tests of sharding and of other devices need.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    # A second thread costs these small arrays a hundred times what they take.
    torch.set_num_threads(1)
