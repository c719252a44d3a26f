"""The examples in docstrings run, and show what they print."""

import doctest
import pkgutil
from importlib import import_module, util

import diffstride_torch
import pytest

MODULES = [
    module.name
    for module in pkgutil.walk_packages(diffstride_torch.__path__, "diffstride_torch.")
    if ">>> " in (util.find_spec(module.name).loader.get_source(module.name) or "")
]


def test_modules_with_examples_are_found():
    assert {"diffstride_torch.modules", "diffstride_torch.conv_modules"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    failed, attempted = doctest.testmod(import_module(name))
    assert failed == 0
    assert attempted
