"""The same answers where the function and its pullback are compiled by the user."""

import jax
import pytest
import torch
from diffstride_backends import registry
from diffstride_conformance.cases import all_cases
from diffstride_conformance.frameworks import FrameworkImplementation
from diffstride_conformance.run import run_case
from diffstride_conformance.selection import representative_cases
from support.amounts import quick_every

# Not the selection that is run without compilation, but for the few cases of the penalty.
FRESH = [case for case in all_cases()[5::37] if case not in representative_cases()]
FRESH += [case for case in all_cases() if case.operation == "complexity"][1::2]
# The compiler does not see through NumPy, where spectral_pool's numbers go.
FRESH_FOR_TORCH = [case for case in FRESH if case.operation != "spectral_pool"][::2]
FRESH_FOR_TORCH += [
    next(case for case in all_cases() if case.options.get(option) == value)
    for option, value in (("convention", "tensorflow"), ("method", "auto"))
]


class Compiled(FrameworkImplementation):
    """Compiles each function anew, with the sizes that traced strides cannot decide."""

    def __init__(self, name):
        super().__init__(registry.get(name))
        functions = registry.get(name).functional

        def sized(x, strides, axes, options):
            if not options.get("cropping", True) or "sizes" in options:
                return options
            named = ("smoothness", "limits", "convention", "multiple_of")
            known = {key: options[key] for key in named if key in options}
            return {
                **options,
                "sizes": functions.output_sizes(x.shape, strides, axes=axes, **known),
            }

        def diff_stride(x, strides, **options):
            options = sized(x, strides, options.get("axes", (-2, -1)), options)
            return self.evaluate(lambda *a: functions.diff_stride(*a, **options), x, strides)

        def conv_diff_stride(x, weight, strides, bias=None, **options):
            rank, end = weight.ndim - 2, -int(options.get("channels_last", False))
            options = sized(x, strides, range(end - rank, end), options)

            def function(x, weight, strides, bias=None):
                return functions.conv_diff_stride(x, weight, strides, bias=bias, **options)

            arrays = (x, weight, strides, bias)[: 3 if bias is None else 4]
            return self.evaluate(function, *arrays)

        def spectral_resize(x, **options):
            return self.evaluate(lambda a: functions.spectral_resize(a, **options), x)

        def spectral_pool(x, strides, **options):
            return self.evaluate(lambda a: functions.spectral_pool(a, strides, **options), x)

        def complexity(layers):
            return self.evaluate(lambda *a: functions.complexity(a), *layers)

        self.diff_stride, self.conv_diff_stride = diff_stride, conv_diff_stride
        self.spectral_resize = spectral_resize
        self.spectral_pool, self.complexity = spectral_pool, complexity


class Jitted(Compiled):
    def __init__(self):
        super().__init__("jax")

    def evaluate(self, function, *arrays):
        pullback = jax.jit(lambda g, *a: jax.vjp(function, *a)[1](g))
        return jax.jit(function)(*arrays), lambda g: pullback(g, *arrays)


class CompiledByDynamo(Compiled):
    def __init__(self):
        super().__init__("torch")

    def evaluate(self, function, *arrays):
        torch._dynamo.reset()
        leaves = [array.detach().requires_grad_() for array in arrays]
        y = torch.compile(function, fullgraph=True, backend="aot_eager")(*leaves)
        return y.detach(), lambda g: torch.autograd.grad(y, leaves, g)


@pytest.mark.parametrize("case", quick_every(4, FRESH), ids=lambda case: case.name)
def test_case_under_jit(case):
    for dtype in ("float64", "float32"):
        assert run_case(Jitted(), case, dtype)


@pytest.mark.slow
# The compiler instantiates the autograd function, which torch itself warns of.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("case", FRESH_FOR_TORCH, ids=lambda case: case.name)
def test_case_under_torch_compile(case):
    assert run_case(CompiledByDynamo(), case, "float32")


def test_every_operation_is_among_them():
    assert {case.operation for case in FRESH} == {
        "diff_stride",
        "conv_diff_stride",
        "spectral_resize",
        "spectral_pool",
        "complexity",
    }
    conventions = {case.options.get("convention") for case in FRESH_FOR_TORCH}
    assert conventions >= {"paper", "nominal", "tensorflow"}
