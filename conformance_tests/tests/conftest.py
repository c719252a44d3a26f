import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    # A second thread costs these small arrays a hundred times what they take.
    torch.set_num_threads(1)
