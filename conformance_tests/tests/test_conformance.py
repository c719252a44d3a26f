"""Every backend computes what the oracle computes."""

import pytest
from diffstride_backends import registry
from diffstride_conformance.cases import Case, all_cases
from diffstride_conformance.run import run_case

FRAMEWORKS = ("numpy", "torch")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_case(case: Case, name: str, dtype: str):
    worst = run_case(registry.get(name), case, dtype)
    assert worst
