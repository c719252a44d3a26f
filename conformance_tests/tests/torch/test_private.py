"""The private names of PyTorch: each does here what the project takes it to do."""

import ast
from functools import reduce
from pathlib import Path

import pytest
import torch
from diffstride_backends import torch_private
from torch.autograd import forward_ad

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", torch_private.NAMES)
def test_this_version_has_the_name(name):
    reduce(getattr, name.split("."), torch)


def test_no_other_file_reads_private_names_of_torch():
    own = {part for name in torch_private.NAMES for part in name.split(".") if part[0] == "_"}
    own |= {*torch_private.HOOKS, *torch_private.STATE_HOOKS, "_dynamo_static_indices"}
    own |= {"_dynamo_marked_constant", "_reversed_padding_repeated_twice"}
    readers = set()
    for folder in ("backends", "adapters"):
        for file in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
            texts = {
                node.value
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
            if own & (names | texts):
                readers.add(file.name)
    assert readers == {"torch_private.py"}


JIT_IS_OLD = pytest.mark.filterwarnings("ignore:`torch.jit.trace` is:FutureWarning")


@JIT_IS_OLD
@torch.no_grad()
def test_what_follows_operations_is_seen():
    x = torch.ones(3)
    seen = []

    def note(t):
        seen.append(torch_private.is_followed())
        return t

    note(x)
    torch.vmap(note)(x)
    torch.func.vjp(note, x)
    torch.jit.trace(note, x, check_trace=False)
    with torch.enable_grad():
        note(x)
    with forward_ad.dual_level():
        note(x)
        assert torch_private.active_transform() == "forward mode"
    with torch.utils.flop_counter.FlopCounterMode(display=False):
        note(x)
        assert torch_private.is_dispatched()
    note(x)
    assert seen[0] is seen[-1] is False
    assert all(seen[1:-1])
    assert torch_private.active_transform() is None
    assert not torch_private.is_dispatched()


def test_transforms_are_told_by_their_tensors():
    x, seen = torch.ones(3, 2), []

    def note(t):
        seen.append((torch_private._is_wrapped(t), torch_private.is_batched(t)))
        assert (torch_private.active_transform() == "torch.func") == seen[-1][0]
        return t.sum()

    note(x)
    torch.vmap(note)(x)
    torch.func.grad(note)(x)
    torch.func.grad(lambda t: torch.vmap(note)(t).sum())(x)
    assert seen == [(False, False), (True, True), (True, False), (True, True)]


def test_many_cotangents_are_told_by_their_tensors():
    seen = []

    class Note(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            with torch.no_grad(), torch_private.noting_batched(g):
                seen.append(torch_private.is_followed())
            return g

    x = torch.ones(3, requires_grad=True)
    y = Note.apply(x)
    torch.autograd.grad(y, x, torch.eye(3), is_grads_batched=True, retain_graph=True)
    torch.autograd.grad(y, x, torch.ones(3))
    assert seen == [True, False]


def test_tensors_for_later_outlive_inference_mode_and_transforms():
    kept = []

    def keep(t):
        with torch_private.for_later():
            kept.append(torch.ones(2))
        return t

    with torch.inference_mode():
        keep(torch.ones(2))
    torch.vmap(keep)(torch.ones(2))
    for tensor in kept:
        assert not tensor.is_inference()
        assert not torch_private._is_wrapped(tensor)


@JIT_IS_OLD
def test_sizes_are_ints_while_tracing_is_paused():
    types = []

    def note(t):
        types.append(type(t.shape[0]))
        with torch_private.sizes_untraced():
            types.append(type(t.shape[0]))
        return t * 2

    torch.jit.trace(note, torch.ones(3), check_trace=False)
    assert types == [torch.Tensor, int]


def test_writes_are_seen():
    x = torch.ones(3)
    before = torch_private.version_of(x)
    assert torch_private.version_of(x) == before
    x.add_(1)
    assert torch_private.version_of(x) != before
    with torch.inference_mode():
        y = torch.ones(3)
    assert torch_private.version_of(y) is None


def test_views_are_seen():
    x = torch.ones(3)
    assert torch_private.is_view(x[:2])
    assert not torch_private.is_view(x)


def test_hooks_on_saved_tensors_are_seen():
    outside = torch_private.saved_tensors_hooks()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        assert torch_private.saved_tensors_hooks() != outside
    assert torch_private.saved_tensors_hooks() == outside


@pytest.mark.parametrize(
    "register", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]
)
def test_hooks_of_a_module_are_seen(register):
    module = torch.nn.Linear(2, 2)
    assert not torch_private.has_hooks(module, of_state=True)
    getattr(module, f"register_{register}")(lambda *_: None)
    assert torch_private.has_hooks(module)


@pytest.mark.parametrize("register", ["state_dict_post_hook", "load_state_dict_pre_hook"])
def test_hooks_of_a_state_are_seen(register):
    module = torch.nn.Linear(2, 2)
    getattr(module, f"register_{register}")(lambda *_: None)
    assert not torch_private.has_hooks(module)
    assert torch_private.has_hooks(module, of_state=True)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_a_convolution_can_be_made_to_pad_nothing(mode):
    conv = torch.nn.Conv2d(1, 1, 3, padding=1, padding_mode=mode)
    torch_private.without_padding(conv)
    assert conv(torch.ones(1, 1, 5, 5)).shape == (1, 1, 3, 3)


def test_an_unknown_name_is_answered_by_what_is_safe():
    assert torch_private._known("_C._no_such_name", unknown=True)(1) is True
    assert torch_private._known("_C._no_such_part.name", unknown=1)() == 1


def test_optimizers_that_call_no_hooks_are_told_apart():
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer

        def step(self, closure=None):
            return self.optimizer.step(closure)

    optimizer, calls = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1), []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    optimizer.step()
    assert calls == [1]
    assert torch_private.calls_step_hooks(optimizer)
    assert not torch_private.calls_step_hooks(Wrapper(optimizer))
