"""State dicts hold the convention and smoothness that their strides were learnt with."""

import copy
import io
import pickle
import warnings

import pytest
import safetensors.torch
import torch
from diffstride_torch import (
    DiffStride1d,
    DiffStride2d,
    DiffStride3d,
    DiffStrideConv1d,
    DiffStrideConv2d,
    DiffStrideConv3d,
    freeze,
    replace_downsampling,
    saved_state,
)
from diffstride_torch.models import preact_resnet18, resnet18
from support.amounts import quick_first
from torch import distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)

OTHERS = (
    {"convention": "paper"},
    {"convention": "tensorflow"},
    {"smoothness": 0.5},
    {"convention": "paper", "smoothness": 2.5},
)


def network(stride=2.0, seed=0, **options):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        DiffStride2d(stride, **options),
        nn.BatchNorm2d(4),
        DiffStrideConv2d(4, 4, 3, stride, **options),
    )


def without_extra_state(state):
    return {key: value for key, value in state.items() if not key.endswith("_extra_state")}


def equal(state, other):
    assert state.keys() == other.keys()
    return all(torch.equal(value, other[key]) for key, value in state.items())


def image(channels=3):
    return torch.randn(2, channels, 24, 20, generator=torch.Generator().manual_seed(1))


# --- States that say the same ------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, *OTHERS], ids=str)
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_a_state_loads_where_convention_and_smoothness_are_the_same(options, strict, assign):
    source, target = network(1.7, seed=1, **options).eval(), network(**options).eval()
    result = target.load_state_dict(source.state_dict(), strict=strict, assign=assign)
    assert result == ([], [])
    assert torch.equal(target(image()), source(image()))


@pytest.mark.parametrize(
    "layer",
    [
        DiffStride1d(2.0),
        DiffStride2d(2.0, shared=True),
        DiffStride3d(2.0),
        DiffStrideConv1d(3, 4, 3).pool,
        DiffStrideConv2d(3, 4, 3).pool,
        DiffStrideConv3d(3, 4, 3).pool,
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_every_layer_saves_a_tensor_of_plain_text(layer):
    state = layer.get_extra_state()
    assert (state.shape, state.dtype, state.device.type) == ((256,), torch.int32, "cpu")
    assert bytes(state.tolist()).decode().rstrip() == (
        '{"convention": "nominal", "smoothness": 0.25}'
    )
    assert layer.get_extra_state().data_ptr() != state.data_ptr()


def test_options_written_out_are_those_left_out():
    written = DiffStride2d(2.0, convention="paper", smoothness=4)
    written.load_state_dict(DiffStride2d(1.5, convention="paper").state_dict())
    assert written.strides.tolist() == [1.5, 1.5]


# --- States that say something else ------------------------------------------------------------


@pytest.mark.parametrize("options", OTHERS, ids=str)
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_another_convention_or_smoothness_is_refused_and_changes_nothing(options, strict, assign):
    source, conv = DiffStrideConv2d(3, 4, 3, 1.7, **options), DiffStrideConv2d(3, 4, 3)
    saved = source.pool.to_dict()
    before, y = copy.deepcopy(conv.state_dict()), conv(image())
    with pytest.raises(RuntimeError, match="Error") as caught:
        conv.load_state_dict(source.state_dict(), strict=strict, assign=assign)
    message = str(caught.value)
    assert "layer 'pool' was saved with" in message
    assert (
        f"convention={saved['convention']!r}, smoothness={saved['smoothness']!r}, "
        "but has convention='nominal', smoothness=0.25"
    ) in message
    assert "Make the layer with the saved settings" in message
    assert "leave the keys that end in '_extra_state' out of the state" in message
    assert equal(conv.state_dict(), before)
    assert torch.equal(conv(image()), y)


def test_every_layer_that_differs_is_named_and_no_other():
    class Pair(nn.Module):
        def __init__(self, *options):
            super().__init__()
            self.layers = nn.ModuleList(DiffStride2d(2.0, **own) for own in options)

    source, target = Pair({}, {"convention": "paper"}, {}), Pair({}, {}, {"smoothness": 1.0})
    with pytest.raises(RuntimeError) as caught:
        target.load_state_dict(source.state_dict())
    assert "'layers.0'" not in str(caught.value)
    assert "'layers.1'" in str(caught.value)
    assert "'layers.2'" in str(caught.value)


def test_the_error_names_a_layer_that_is_loaded_by_itself():
    with pytest.raises(RuntimeError, match="the layer was saved with convention='paper'"):
        DiffStride2d(2.0).load_state_dict(DiffStride2d(2.0, convention="paper").state_dict())
    with pytest.raises(ValueError, match="the layer was saved with convention='paper'"):
        DiffStride2d(2.0).set_extra_state(DiffStride2d(2.0, convention="paper").get_extra_state())


def test_weights_without_strides_are_refused_too():
    source = DiffStrideConv2d(3, 4, 3, convention="paper").state_dict()
    del source["pool.strides"]
    with pytest.raises(RuntimeError, match="layer 'pool' was saved with convention='paper'"):
        DiffStrideConv2d(3, 4, 3).load_state_dict(source, strict=False)


def test_what_a_later_version_saves_is_not_ignored():
    state = DiffStride2d(2.0).state_dict()
    arguments = {"convention": "nominal", "smoothness": 0.25, "novelty": [0, 1]}
    state["_extra_state"] = saved_state.encoded(arguments)
    with pytest.raises(RuntimeError, match=r"saved with .*novelty=\[0, 1\], but has"):
        DiffStride2d(2.0).load_state_dict(state)


@pytest.mark.parametrize(
    ("extra", "shown"),
    [
        (torch.zeros(3), r"a tensor of shape \(3,\) and dtype torch.float32"),
        (torch.tensor(7), r"a tensor of shape \(\) and dtype torch.int64"),
        (torch.full((256,), float("nan")), "a tensor of shape"),
        (torch.full((256,), 1000.0), "a tensor of shape"),
        (torch.tensor(list(b"[1, 2]")), "a tensor of shape"),
        ({"convention": "nominal"}, "got dict"),
        (None, "got NoneType"),
    ],
    ids=str,
)
def test_an_extra_state_that_cannot_be_read_is_refused(extra, shown):
    layer = DiffStride2d(2.0)
    state = {"strides": torch.tensor([3.0, 3.0]), "_extra_state": extra}
    with pytest.raises(RuntimeError, match=f"the layer: extra state must be a tensor .*{shown}"):
        layer.load_state_dict(state)
    assert layer.strides.tolist() == [2.0, 2.0]


# --- States that say nothing -------------------------------------------------------------------


@pytest.mark.parametrize("strict", [True, False])
def test_a_state_without_them_is_loaded_with_one_warning_for_the_whole_model(strict):
    source, target = network(1.7, seed=1).eval(), network().eval()
    old = without_extra_state(source.state_dict())
    for _ in range(2):  # One for each load.
        with pytest.warns(
            UserWarning, match="layer '1' uses its own, convention='nominal', smoothness=0.25"
        ) as caught:
            assert target.load_state_dict(old, strict=strict) == ([], [])
        (warning,) = caught
        assert "not the convention and smoothness" in str(warning.message)
        assert warning.filename == __file__
    assert torch.equal(target(image()), source(image()))


def test_a_state_that_lacks_them_for_some_layers_warns():
    state = network().state_dict()
    del state["3.pool._extra_state"]
    with pytest.warns(UserWarning, match=r"layer '3\.pool' uses its own"):
        network().load_state_dict(state)


def test_leaving_them_out_is_the_way_to_load_another_state_all_the_same():
    source, target = DiffStride2d(1.7, convention="paper"), DiffStride2d(2.0)
    with pytest.warns(UserWarning, match="the layer uses its own, convention='nominal'"):
        target.load_state_dict(without_extra_state(source.state_dict()))
    assert torch.equal(target.strides, source.strides)


@pytest.mark.parametrize("strict", [True, False])
def test_the_state_of_a_plain_convolution_lacks_the_strides_alone(strict):
    conv, plain = DiffStrideConv2d(3, 4, 3), nn.Conv2d(3, 4, 3, padding=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if strict:
            with pytest.raises(RuntimeError, match=r'Missing key\(s\).*: "pool.strides"\. $'):
                conv.load_state_dict(plain.state_dict())
        else:
            assert conv.load_state_dict(plain.state_dict(), strict=False) == (["pool.strides"], [])
    assert torch.equal(conv.weight, plain.weight)


# --- Ways that states go -----------------------------------------------------------------------


def through_a_file(model):
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def in_half_precision(dtype):
    # The strides in the state are rounded by this; what says how they are used must not be.
    return lambda model: {
        key: value.to(dtype) if key.endswith("_extra_state") else value
        for key, value in model.state_dict().items()
    }


def of_a_running_average(model):
    states = [copy.deepcopy(model.state_dict()) for _ in range(3)]
    return {
        key: value if value.dtype == torch.int64 else 0.3 * value + 0.6 * other + 0.1 * third
        for (key, value), other, third in zip(
            states[0].items(), states[1].values(), states[2].values(), strict=True
        )
    }


def of_a_mean(model):
    state = copy.deepcopy(model.state_dict())
    for key, value in state.items():
        for _ in range(9):
            value += model.state_dict()[key]
        state[key] = torch.div(value, 10)
    return state


WAYS = {
    "copy": lambda model: copy.deepcopy(model.state_dict()),
    "deepcopy": lambda model: copy.deepcopy(model).state_dict(),
    "pickle": lambda model: pickle.loads(pickle.dumps(model)).state_dict(),
    "file": through_a_file,
    "safetensors": lambda model: safetensors.torch.load(safetensors.torch.save(model.state_dict())),
    "float16": in_half_precision(torch.float16),
    "bfloat16": in_half_precision(torch.bfloat16),
    "running-average": of_a_running_average,
    "mean": of_a_mean,
    "averaged-model": lambda model: torch.optim.swa_utils.AveragedModel(
        model, use_buffers=True
    ).module.state_dict(),
    "keep-vars": lambda model: model.state_dict(keep_vars=True),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_state_stays_readable(name):
    source = network(1.7, seed=1)
    state = WAYS[name](source)
    target = network().eval()
    assert target.load_state_dict(state) == ([], [])
    torch.testing.assert_close(target(image()), source.eval()(image()))
    with pytest.raises(RuntimeError, match="was saved with"):
        network(convention="paper").load_state_dict(state)


def test_safetensors_save_and_load_models(tmp_path):
    file, source = tmp_path / "model.safetensors", network(1.7, seed=1).eval()
    source.append(source[1])  # A layer in two places has its strides in the file once.
    safetensors.torch.save_model(source, file)
    targets = [network(**options).eval() for options in ({}, {"convention": "paper"})]
    for target in targets:
        target.append(target[1])
    assert safetensors.torch.load_model(targets[0], file) == (set(), [])
    assert torch.equal(targets[0](image()), source(image()))
    with pytest.raises(RuntimeError, match="layer '4' was saved with convention='nominal'"):
        safetensors.torch.load_model(targets[1], file)


@pytest.mark.parametrize(
    "wrapped", quick_first(1, [torch.optim.swa_utils.AveragedModel, torch.compile])
)
def test_wrapped_models(wrapped):
    source, target = wrapped(network(1.7, seed=1)), wrapped(network())
    assert target.load_state_dict(source.state_dict()) == ([], [])
    with pytest.raises(RuntimeError, match=r"3\.pool' was saved with convention='nominal'"):
        wrapped(network(convention="paper")).load_state_dict(source.state_dict())


def test_models_without_memory_get_their_values():
    source = network(1.7, seed=1).eval()
    with torch.device("meta"):
        target, other = network().eval(), network(convention="paper")
    assert not target.state_dict()["1._extra_state"].is_meta
    with pytest.raises(RuntimeError, match="was saved with"):
        other.load_state_dict(source.state_dict(), assign=True)
    # A state without values says nothing of them.
    shapes = {key: value.to("meta") for key, value in source.state_dict().items()}
    other.load_state_dict(shapes, assign=True)
    target.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(target(image()), source(image()))


def test_functional_call_takes_a_state():
    model = network().eval()
    state = {**model.state_dict(), "1.strides": torch.tensor([3.0, 2.5])}
    y = torch.func.functional_call(model, state, image())
    assert y.shape != model(image()).shape
    model[1].load_state_dict({**model[1].state_dict(), "strides": torch.tensor([3.0, 2.5])})
    assert torch.equal(y, model(image()))


@pytest.mark.slow
def test_an_exported_model_holds_no_trace_of_it():
    program = torch.export.export(network().eval(), (image(),))
    assert not [key for key in program.state_dict if "extra" in key]


def test_a_frozen_model_holds_no_trace_of_it():
    frozen = freeze(network(), image())
    assert not [key for key in frozen.state_dict() if "extra" in key]
    other = freeze(network(seed=1), image())
    assert other.load_state_dict(frozen.state_dict()) == ([], [])


def test_a_network_after_surgery():
    def swapped(**options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2))
        replace_downsampling(model, image(), **options)
        return model

    source, target = swapped(), swapped()
    assert target.load_state_dict(source.state_dict()) == ([], [])
    with pytest.raises(RuntimeError, match="was saved with"):
        swapped(convention="paper").load_state_dict(source.state_dict())


@pytest.mark.parametrize("build", [resnet18, preact_resnet18])
def test_our_networks_take_no_weights_of_another_convention(build):
    state = build(num_classes=3, convention="paper").state_dict()
    with pytest.raises(RuntimeError, match=r"'[\w.]+\.pool' was saved with convention='paper'"):
        build(num_classes=3).load_state_dict(state)


# --- Distributed checkpoints -------------------------------------------------------------------


@pytest.fixture
def one_process(tmp_path):
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    "options",
    [
        StateDictOptions(),
        StateDictOptions(full_state_dict=True),
        StateDictOptions(full_state_dict=True, broadcast_from_rank0=True),
    ],
    ids=["sharded", "full", "broadcast"],
)
def test_states_of_distributed_models(options, one_process):
    source, target = network(1.7, seed=1), network()
    wrapped = nn.parallel.DistributedDataParallel(source)
    state = get_model_state_dict(wrapped)
    assert state.keys() == source.state_dict().keys()
    assert set_model_state_dict(target, dict(state), options=options) == ([], [])
    assert equal(target.state_dict(), source.state_dict())
    with pytest.raises(RuntimeError, match="was saved with convention='nominal'"):
        set_model_state_dict(network(convention="paper"), dict(state), options=options)


def test_distributed_checkpoints(tmp_path, one_process):
    source, target = network(1.7, seed=1).eval(), network().eval()
    checkpoint.save(source.state_dict(), checkpoint_id=tmp_path)
    other = network(convention="tensorflow", smoothness=1 / 3)
    # What is read goes into the tensors of the state, which must be as large.
    for model in (target, other):
        state = model.state_dict()
        checkpoint.load(state, checkpoint_id=tmp_path)
        if model is other:
            with pytest.raises(RuntimeError, match="was saved with convention='nominal'"):
                model.load_state_dict(state)
        else:
            model.load_state_dict(state)
    assert torch.equal(target(image()), source(image()))


def test_a_state_holds_the_multiple_of_the_sizes():
    state = DiffStride2d(2.5, multiple_of=4).state_dict()
    DiffStride2d(2.5, multiple_of=4).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"saved with.*multiple_of=4"):
        DiffStride2d(2.5).load_state_dict(state)
