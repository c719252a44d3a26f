"""Plots: what they draw is what the core computes, and importing the rest never needs them."""

import subprocess
import sys

import diffstride_plotting as plotting
import numpy as np
import pytest
import torch
from diffstride_conformance import oracle
from diffstride_torch import DiffStride1d, DiffStride2d, functional, stride_summary
from diffstride_torch.plotting import plot_kept_spectrum, plot_stride_history, plot_windows

from diffstride_core.planning import plan_diff_stride
from diffstride_core.settings import make_settings


def windows_of(sizes, strides, **options):
    settings = make_settings(axes=tuple(range(-len(sizes), 0)), **options)
    plan = plan_diff_stride(settings, settings.axes, sizes, strides, shared=len(strides) == 1)
    return plotting.axis_windows(settings, plan, strides), plan


def panel():
    return plotting.make_figure(4, 3).subplots()


def lines_of(axes):
    return {line.get_label(): line for line in axes.get_lines()}


# --- Windows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("strides", [(2.0,), (1.7, 3.1)])
@pytest.mark.parametrize("convention", ["paper", "nominal"])
def test_windows_are_the_masks_of_the_definition(convention, strides):
    windows, plan = windows_of((32, 27), strides, convention=convention)
    for i, (window, axis) in enumerate(zip(windows, plan.axes, strict=True)):
        assert (window.size, window.output_size) == (axis.size, axis.output_size)
        assert window.stride == axis.bounds.apply(strides[i % len(strides)])
        half = window.size // 2
        assert window.frequency.tolist() == list(range(-half, half + 1))
        expected, _ = oracle.mask(
            window.size, window.stride, last=axis.is_last, convention=convention
        )
        np.testing.assert_allclose(window.mask[half:], expected, atol=1e-13)
        np.testing.assert_array_equal(window.mask, window.mask[::-1])


@pytest.mark.parametrize("size", [24, 25])
def test_windows_of_tensorflow_are_what_its_bins_are_weighted_by(size):
    # The height's rows have a ramp each way, centred beside frequency 0: seen in the response to a
    # cosine and a sine along the height alone, (mu(k) + mu(-k))/2 in phase.
    options = {"convention": "tensorflow", "cropping": False, "norm": "forward"}
    (height, width), _ = windows_of((size, 24), (2.5, 2.5), **options)
    n = torch.arange(size, dtype=torch.float64)
    response = []
    for k in range(1, size // 2):
        wave = torch.cos(2 * torch.pi * k * n / size)[:, None].expand(size, 24)
        y = functional.diff_stride(wave, (2.5, 2.5), **options)
        response.append(float((y * wave).sum() / (wave * wave).sum()))
    half = size // 2
    expected = [(height.mask[half + k] + height.mask[half - k]) / 2 for k in range(1, half)]
    np.testing.assert_allclose(response, expected, atol=1e-6)
    assert (height.mask != height.mask[::-1]).any()
    np.testing.assert_array_equal(width.mask, width.mask[::-1])


def test_windows_use_the_bounded_stride_and_show_what_is_cropped():
    (window,), plan = windows_of((64,), (0.1,), limits=(3.0, None), convention="paper")
    assert window.stride == 3.0
    kept = plan.axes[0].output_size // 2
    assert window.mask[32] == 1
    # On the last axis of the paper's convention the window reaches the output's Nyquist frequency.
    assert window.mask[32 + kept] > 0
    assert (window.mask[32 + kept + 1 :] == 0).all()


def test_a_window_is_drawn_with_its_marks():
    (window,), _ = windows_of((64,), (2.0,))
    axes = panel()
    plotting.draw_window(axes, window)
    lines = lines_of(axes)
    np.testing.assert_array_equal(lines["window μ"].get_xdata(), window.frequency)
    np.testing.assert_array_equal(lines["window μ"].get_ydata(), window.mask)
    assert lines["N/2S"].get_xdata() == [16.0, 16.0]
    _, labels = axes.get_legend_handles_labels()
    assert sorted(labels) == sorted(["window μ", "ramp", "N/2S", "cropped: |k| > M/2"])
    assert axes.get_xlim() == (-32, 32)


@pytest.mark.parametrize(("size", "stride", "output_size"), [(64, 2.0, 32), (33, 3.1, 11)])
def test_what_is_cropped_begins_at_the_nyquist_frequency_of_the_output(size, stride, output_size):
    (window,), _ = windows_of((size,), (stride,))
    axes = panel()
    plotting.draw_window(axes, window)
    to_data = axes.transData.inverted().transform
    ends = sorted(abs(to_data((x, 0))[0]) for x in axes.patches[1].get_extents().intervalx)
    assert ends == pytest.approx([output_size / 2, size / 2])
    # The last frequency that is kept is M/2 itself where that is one.
    alive = window.frequency[window.mask > 0]
    assert alive.max() == output_size // 2


# --- Strides, images and spectra ---------------------------------------------------------------


def test_strides_are_drawn_per_layer_and_axis():
    strides = np.arange(12.0).reshape(3, 2, 2)
    axes = panel()
    plotting.draw_strides(axes, [0, 1, 2], strides, ["a", "b"], ["height", "width"])
    lines = lines_of(axes)
    assert list(lines) == ["a, height", "a, width", "b, height", "b, width"]
    np.testing.assert_array_equal(lines["b, width"].get_ydata(), strides[:, 1, 1])
    assert lines["a, height"].get_color() is not lines["b, height"].get_color()
    assert lines["a, height"].get_linestyle() != lines["a, width"].get_linestyle()


def test_images_are_clipped_and_drawn_in_a_view():
    axes = panel()
    plotting.draw_image(axes, np.array([[-1.0, 0.0], [1.0, 5.0]]), (0.0, 2.0), view=(10, 20))
    (image,) = axes.get_images()
    np.testing.assert_array_equal(image.get_array(), [[0, 0], [0.5, 1]])
    assert image.get_extent() == [0, 20, 10, 0]


def test_constant_images_are_drawn():
    axes = panel()
    plotting.draw_image(axes, np.full((2, 2), 3.0), (3.0, 3.0))
    plotting.draw_spectrum(axes, np.full((4, 4), 3.0))
    assert not np.asarray(axes.get_images()[1].get_array()).any()


@pytest.mark.parametrize("shape", [(16, 12), (15, 13)])
def test_a_spectrum_has_its_frequencies_where_its_axes_say(shape):
    rows, columns = np.indices(shape)
    wave = np.cos(2 * np.pi * (3 * rows / shape[0] - 2 * columns / shape[1]))
    axes = panel()
    plotting.draw_spectrum(axes, wave)
    (image,) = axes.get_images()
    amplitude = np.asarray(image.get_array())
    left, right, bottom, top = image.get_extent()
    assert (right - left, bottom - top) == shape[::-1]
    peaks = np.argwhere(amplitude > 1)
    found = {(round(top + 0.5 + i), round(left + 0.5 + j)) for i, j in peaks}
    assert found == {(3, -2), (-3, 2)}


def test_a_crop_is_outlined_at_the_nyquist_frequencies_of_the_output():
    windows, plan = windows_of((32, 48), (2.0, 3.0))
    axes = panel()
    plotting.draw_crop(axes, windows, plotting.BLUE)
    (box,) = axes.patches
    height, width = plan.output_sizes
    assert (box.get_xy(), box.get_width(), box.get_height()) == (
        (-width / 2, -height / 2),
        width,
        height,
    )


# --- PyTorch -----------------------------------------------------------------------------------


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(DiffStride2d(2.0), DiffStride2d((1.5, 2.5), convention="paper"))


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_visible()]


def test_plot_windows_shows_each_layer_as_the_model_saw_it(model, tmp_path):
    model(torch.zeros(1, 64, 48))
    figure = plot_windows(model)
    assert titles(figure) == [
        "0, axis -2: S = 2.00, 64 → 32",
        "0, axis -1: S = 2.00, 48 → 24",
        "1, axis -2: S = 1.50, 32 → 30",
        "1, axis -1: S = 2.50, 24 → 18",
    ]
    figure.savefig(tmp_path / "windows.png")
    assert (tmp_path / "windows.png").read_bytes().startswith(b"\x89PNG")


def test_plot_windows_of_a_layer_and_of_layers_of_several_ranks():
    layer = DiffStride1d(2.0)
    layer(torch.zeros(2, 64))
    assert titles(plot_windows(layer)) == ["axis -1: S = 2.00, 64 → 32"]
    other = DiffStride2d(2.0)
    other(torch.zeros(64, 64))
    assert len(titles(plot_windows(torch.nn.ModuleList([layer, other, DiffStride2d(2.0)])))) == 3


def test_plot_windows_refuses_a_model_that_has_seen_nothing(model):
    with pytest.raises(ValueError, match="have seen none: call it first"):
        plot_windows(model)
    with pytest.raises(ValueError, match="DiffStride layer, got Linear with none"):
        plot_windows(torch.nn.Linear(1, 1))


def test_plot_stride_history(model):
    history = [stride_summary(model)]
    with torch.no_grad():
        model[1].strides.add_(0.5)
    history.append(stride_summary(model))
    (axes,) = plot_stride_history(history).axes
    lines = lines_of(axes)
    assert list(lines) == ["0, axis -2", "0, axis -1", "1, axis -2", "1, axis -1"]
    assert lines["1, axis -1"].get_ydata().tolist() == [2.5, 3.0]
    assert list(lines["1, axis -1"].get_xdata()) == [0, 1]


def test_plot_stride_history_refuses_what_is_no_history(model):
    with pytest.raises(ValueError, match="history must have at least one entry"):
        plot_stride_history([])
    with pytest.raises(ValueError, match=r"same layers in each entry.* in entry 1"):
        plot_stride_history([stride_summary(model), stride_summary(model[0])])
    mixed = torch.nn.ModuleList([DiffStride1d(2.0), DiffStride2d(2.0)])
    with pytest.raises(ValueError, match=r"same number of axes in each layer, got \[1, 2\]"):
        plot_stride_history([stride_summary(mixed)])


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((48, 40), {}),
        ((3, 48, 40), {"convention": "paper"}),
        ((1, 48, 40), {"convention": "tensorflow"}),
        ((48, 40, 3), {"axes": (0, 1), "shared": True}),
    ],
)
def test_plot_kept_spectrum(shape, options):
    torch.manual_seed(0)
    layer = DiffStride2d(2.0, **options)
    image = torch.rand(shape)
    figure = plot_kept_spectrum(layer, image)
    height, width = layer.output_sizes(shape)
    assert titles(figure) == [
        "input, 48x40",
        "spectrum, S = 2.00, 2.00",
        f"output, {height}x{width}",
    ]
    before, _, after = (axes.get_images()[0] for axes in figure.axes)
    assert before.get_extent() == after.get_extent()
    # As bright, whatever the norm: the mean of the image is one of its frequencies.
    span = float(image.max() - image.min())
    mean = float(image.mean() - image.min()) / span
    assert float(np.mean(after.get_array())) == pytest.approx(mean, abs=0.02)


def test_plot_kept_spectrum_leaves_the_layer_as_it_was():
    layer = DiffStride2d(2.0)
    plot_kept_spectrum(layer, torch.rand(48, 40))
    (row,) = stride_summary(layer).rows
    assert row.axes[0].input_size is None


def test_plot_kept_spectrum_refuses_what_it_cannot_draw():
    layer = DiffStride2d(2.0)
    with pytest.raises(TypeError, match="must be a DiffStride2d, got DiffStride1d"):
        plot_kept_spectrum(DiffStride1d(2.0), torch.rand(32, 32))
    with pytest.raises(ValueError, match=r"2 or 3 axes, got shape \(1, 3, 32, 32\)"):
        plot_kept_spectrum(layer, torch.rand(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"1 or 3 colours .* got shape \(4, 32, 32\)"):
        plot_kept_spectrum(layer, torch.rand(4, 32, 32))


# --- Without Matplotlib ------------------------------------------------------------------------


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


def test_only_the_plots_need_matplotlib_and_say_so():
    output = python(
        "import sys, diffstride_torch, diffstride_backends.registry\n"
        "print('matplotlib' in sys.modules)\n"
        "sys.modules['matplotlib'] = None\n"
        "import diffstride_torch.plotting"
    )
    assert output.startswith("False\n")
    assert "ModuleNotFoundError: plots need Matplotlib" in output
    assert "pip install 'diffstride[plot]'" in output


def test_plots_use_no_pyplot():
    modules = python("import sys, diffstride_plotting; print(*sys.modules)").split()
    assert "matplotlib" in modules
    assert "matplotlib.pyplot" not in modules
