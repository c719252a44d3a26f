"""Fixtures of this folder."""

import pytest
from support.torch_modules import use_accelerator_rule

from diffstride_core import plan_cache


@pytest.fixture(params=["host", "accelerator"])
def rule(request, monkeypatch):
    """How a module knows that its strides have changed: that of a CPU, and that of a GPU."""
    if request.param == "accelerator":
        use_accelerator_rule(monkeypatch)
    return request.param


@pytest.fixture
def accelerator(monkeypatch):
    use_accelerator_rule(monkeypatch)


@pytest.fixture
def plans(monkeypatch):
    """Return the list of the strides that plans were made for."""
    made, make = [], plan_cache.plan_diff_stride

    def counted(settings, axes, sizes, strides, **options):
        made.append(strides)
        return make(settings, axes, sizes, strides, **options)

    monkeypatch.setattr(plan_cache, "plan_diff_stride", counted)
    return made
