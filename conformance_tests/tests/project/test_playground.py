"""The playground shows what `explain` returns, in a browser, by keyboard and unconnected."""

import base64
import importlib.util
import io
import re
from pathlib import Path

import numpy as np
import pytest
from diffstride_numpy import explain, spectral_resize
from scipy.io import wavfile

pytest.importorskip("sklearn")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")

DOCS = Path(__file__).parents[3] / "docs"
# The page has signs for minus and times, and spaces that do not break.
PLAIN = {0x2212: "-", 0xD7: "x", 0xA0: " "}


@pytest.fixture(scope="module")
def make_playground():
    """Return the script that computes what the page shows."""
    spec = importlib.util.spec_from_file_location("make_playground", DOCS / "make_playground.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- without a browser -----------------------------------------------------------------------


def test_what_the_page_says_is_so(make_playground):
    text = " ".join((DOCS / "playground.md").read_text("utf-8").split())

    def of_width(stride):
        return make_playground.explained("photo", (2.0, stride), "nominal", 0.25)

    assert "64 columns become 43" in text
    assert [of_width(stride).axes[1].M for stride in (2.0, 3.0)] == [64, 43]

    assert "frequency along the width is 34. At 1.5 it lies on the ramp of the window" in text
    assert "dS is -146, seventeen times what it is at 2" in text
    assert "At 1.25 the window lets the tiles through, and dS is -30" in text
    slopes = {stride: of_width(stride).dS[1] for stride in (1.25, 1.5, 2.0)}
    assert [round(slopes[stride]) for stride in (1.25, 1.5)] == [-30, -146]
    assert round(slopes[1.5] / slopes[2.0]) == 17
    width = of_width(1.5).axes[1]
    assert width.ramp[np.argmax(np.abs(width.contributions))] == 34
    through = of_width(1.25).axes[1]
    assert through.mask[through.k == 34] == 1

    assert "2 give 56 x 72 pixels (height x width) instead of 48 x 64" in text
    for convention, smoothness, sizes in (("paper", 4.0, [56, 72]), ("nominal", 0.25, [48, 64])):
        found = make_playground.explained("photo", (2.0, 2.0), convention, smoothness)
        assert [axis.M for axis in found.axes] == sizes

    assert "dS is most negative at 3.5" in text
    strides = [stride for stride in make_playground.STRIDES if stride >= 3]
    found = [make_playground.explained("recording", s, "nominal", 0.25).dS for s in strides]
    assert strides[np.argmin(found)] == 3.5
    assert min(found) < 0
    assert "the strongest tone of the caw, at 1.25 kHz" in text
    rate, samples = make_playground.recording()
    strongest = np.argmax(np.abs(np.fft.rfft(samples))) * rate / len(samples)
    assert round(strongest / 1000, 2) == 1.25


def test_defaults_are_on_the_page_at_first(make_playground):
    for subject in make_playground.SUBJECTS:
        page = (DOCS / "playground" / f"{subject}.html").read_text("utf-8")
        steps = re.findall(r'name="stride" value="2" min="(\S+)" max="(\S+)" step="(\S+)"', page)
        first, second, *_, last = make_playground.STRIDES
        assert {tuple(map(float, step)) for step in steps} == {(first, last, second - first)}
        for smoothness in make_playground.SMOOTHNESS.values():
            assert f'value="1" min="0" max="{len(smoothness) - 1}"' in page
    assert make_playground.SMOOTHNESS["nominal"][1] == 0.25
    assert make_playground.SMOOTHNESS["paper"][1] == 4.0


# --- in a browser ----------------------------------------------------------------------------


class Part:
    """The part of the page that is about one subject."""

    def __init__(self, browser, subject):
        self.browser, self.subject = browser, subject
        self.element = self.find(f"[data-play={subject}]", browser)[0]
        self.wait()

    def find(self, selector, parent=None):
        parent = self.element if parent is None else parent
        return parent.find_elements("css selector", selector)

    def wait(self):
        """Wait until what was chosen is shown."""
        from selenium.webdriver.support.wait import WebDriverWait

        script = "const {wanted, shown} = arguments[0].dataset; return wanted && wanted === shown"
        WebDriverWait(self.browser, 60, 0.05).until(
            lambda browser: browser.execute_script(script, self.element)
        )

    def press(self, name, key, times=1, index=0):
        """Press a key on a control."""
        self.find(f"[name={name}]")[index].send_keys(key * times)
        self.wait()

    def choose(self, strides, smoothness, convention):
        """Choose strides, the smoothness by its place, and the convention, all by keyboard."""
        from selenium.webdriver.common.keys import Keys

        for index, stride in enumerate(strides):
            self.press("stride", Keys.HOME, index=index)
            self.press("stride", Keys.ARROW_RIGHT, round((stride - 1) / 0.25), index)
        self.press("smoothness", Keys.HOME)
        self.press("smoothness", Keys.ARROW_RIGHT, smoothness)
        self.press("convention", convention[0])

    def text(self, selector):
        return self.find(selector)[0].text.translate(PLAIN)

    def source(self, name):
        return self.find(f"[data-show={name}]")[0].get_attribute("src")


@pytest.fixture(params=[400, 1280])
def parts(request, open_page, asked_for):
    """The parts of the page at a width; afterwards nothing was amiss and nothing was fetched."""
    browser = open_page("playground", request.param)
    yield {subject: Part(browser, subject) for subject in ("photo", "recording")}
    page = "document.documentElement"
    content, window = browser.execute_script(f"return [{page}.scrollWidth, {page}.clientWidth]")
    assert content <= window <= request.param
    assert browser.get_log("browser") == []
    assert [url for url in asked_for() if not url.startswith(("file:", "data:"))] == []


def content_of(url):
    return io.BytesIO(base64.b64decode(url.partition(",")[2]))


def pixels_of(url):
    pixels = np.asarray(Image.open(content_of(url)).convert("RGB")) / 255
    return np.moveaxis(pixels, -1, 0)


def called(part, make_playground):
    """Call what the page says it shows."""
    arrays = {"photo": make_playground.photo(), "recording": make_playground.recording()[1]}
    return eval(part.text(".play-call code"), {"explain": explain, **arrays})


def check_numbers(part, found):
    numbers = part.text(".play-numbers")
    becomes = [" x ".join(str(getattr(axis, size)) for axis in found.axes) for size in "NM"]
    unit = {"photo": "pixels", "recording": "samples"}[part.subject]
    assert numbers.startswith(f"{becomes[0]} {unit} become {becomes[1]}.")
    shown = [float(number) for number in re.findall(r"-?\d\S*\d(?=,|\.$)", numbers.split("dS:")[1])]
    np.testing.assert_allclose(shown, np.atleast_1d(found.dS), rtol=1e-3)

    plots = part.find("[data-axis]")
    for plot, axis in zip(plots, found.axes, strict=True):
        caption = part.find("figcaption", plot)[0].text.translate(PLAIN)
        pattern = (
            r"dS = (\S+) from (\d+) frequenc\w+; (?:k = )?(-?\d+).* has the largest share, (\S+)"
        )
        slope, bins, frequency, share = re.search(pattern, caption).groups()
        largest = np.argmax(np.abs(axis.contributions))
        assert float(slope) == pytest.approx(axis.dS, rel=1e-3)
        assert int(bins) == len(axis.ramp)
        assert float(share) == pytest.approx(axis.contributions[largest], rel=1e-3)
        if part.subject == "photo":
            assert int(frequency) == axis.ramp[largest]
        bars = part.find(".play-bars", plot)[0].get_attribute("d")
        heights = [
            float(end) - float(base) for base, end in re.findall(r" ([^MV ]+)V([^MV]+)", bars)
        ]
        # Each bar is as long as its frequency's share.
        scaled = axis.contributions / axis.contributions[largest]
        np.testing.assert_allclose(
            np.abs(heights) / np.max(np.abs(heights)), np.abs(scaled), atol=1e-3
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "strides", "smoothness", "convention"),
    [
        (400, (2.0, 1.5), 1, "nominal"),
        (1280, (1.0, 4.0), 2, "nominal"),
        (400, (2.75, 2.0), 0, "paper"),
        (1280, (1.5, 2.25), 1, "tensorflow"),
    ],
    indirect=["parts"],
)
def test_photo(parts, make_playground, strides, smoothness, convention):
    part = parts["photo"]
    before = part.source("result")
    part.choose(strides, smoothness, convention)
    assert part.source("result") != before

    found = called(part, make_playground)
    assert found.strides.tolist() == list(strides)
    assert found.convention == convention
    assert found.smoothness == make_playground.SMOOTHNESS[convention][smoothness]
    check_numbers(part, found)
    result = pixels_of(part.source("result"))
    assert result.shape == found.y.shape
    assert np.abs(result - np.clip(found.y, 0, 1)).mean() < 0.03

    rows, columns = (int(np.floor(stride + 0.5)) for stride in strides)
    strided = found.x[:, ::rows, ::columns]
    shown = pixels_of(part.source("strided"))
    assert shown.shape == strided.shape
    assert np.abs(shown - strided).mean() < 0.04
    assert " x ".join(map(str, strided.shape[1:])) in part.text("[data-show='strided caption']")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "stride", "smoothness", "convention"),
    [(400, 3.0, 1, "nominal"), (1280, 1.25, 2, "paper")],
    indirect=["parts"],
)
def test_recording(parts, make_playground, stride, smoothness, convention):
    from selenium.webdriver.common.keys import Keys

    part = parts["recording"]
    part.choose([stride], smoothness, convention)
    found = called(part, make_playground)
    assert found.strides.item() == stride
    assert found.smoothness == make_playground.SMOOTHNESS[convention][smoothness]
    check_numbers(part, found)

    rate, x = make_playground.recording()
    step = int(np.floor(stride + 0.5))
    every = x[::step]
    for name, samples, length in (
        ("input", x, len(x)),
        ("result", found.y, len(x)),
        ("strided", every, step * len(every)),
    ):
        part.find(f"[data-sound={name}] button")[0].send_keys(Keys.ENTER)
        played = part.find("audio")[0].get_attribute("src")
        shown_rate, shown = wavfile.read(content_of(played))
        assert shown_rate == rate
        expected = np.clip(spectral_resize(samples, length, axes=-1), -1, 1)
        np.testing.assert_allclose(shown / 32767, expected, atol=1e-4)
        script = "return [arguments[0].duration, arguments[0].error]"
        wait = (
            "const [a, done] = arguments; if (a.readyState) done(); else a.onloadedmetadata = done"
        )
        part.browser.execute_async_script(wait, part.find("audio")[0])
        duration, error = part.browser.execute_script(script, part.find("audio")[0])
        assert error is None
        assert duration == pytest.approx(length / rate, abs=0.01)


@pytest.mark.slow
def test_keyboard(parts):
    from selenium.webdriver.common.keys import Keys

    part = parts["photo"]
    height, width = part.find("[name=stride]")
    before = part.source("result")
    part.press("stride", Keys.ARROW_LEFT)
    assert [height.get_attribute("value"), width.get_attribute("value")] == ["1.75", "2"]
    assert part.find("label b")[0].text == "1.75"
    assert part.source("result") != before
    active = part.browser.switch_to.active_element
    assert active == height
    assert active.value_of_css_property("outline-style") == "solid"
    # Every control is reached by the key for that, and has a label.
    for control in ("stride", "smoothness", "convention", "together"):
        active.send_keys(Keys.TAB)
        active = part.browser.switch_to.active_element
        assert active.get_attribute("name") == control
        assert active.accessible_name
        assert active.value_of_css_property("outline-style") == "solid"

    active.send_keys(Keys.SPACE)
    part.wait()
    assert width.get_attribute("value") == "1.75"
    part.press("stride", Keys.END, index=1)
    assert [height.get_attribute("value"), width.get_attribute("value")] == ["4", "4"]
    assert part.text(".play-call code").startswith("explain(photo, (4, 4), ")


@pytest.mark.slow
def test_numbers_are_announced_and_pictures_are_described(parts):
    for part in parts.values():
        (status,) = part.find("[aria-live=polite]")
        assert "become" in status.text
        for described in part.find("img, svg"):
            assert described.get_attribute("alt") or described.get_attribute("aria-label")
        assert part.find("[name=smoothness]")[0].get_attribute("aria-valuetext") == "0.25"


@pytest.mark.slow
def test_files_are_loaded_when_they_are_needed(parts, asked_for):
    def loaded():
        names = (url.rpartition("/data/")[2] for url in asked_for() if "/data/" in url)
        return sorted(name for name in names if name.endswith(".js"))

    subjects = ("photo", "recording")
    first = [name for subject in subjects for name in (f"{subject}-nominal-1.js", f"{subject}.js")]
    assert loaded() == first
    parts["photo"].press("convention", "p")
    assert loaded() == ["photo-paper-1.js"]
    parts["photo"].press("convention", "n")
    assert loaded() == []


@pytest.mark.slow
def test_colours_follow_the_scheme(parts):
    part = parts["recording"]

    def colours(scheme):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        part.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        window, controls = part.find(".play-window")[0], part.find(".play-controls")[0]
        return (
            window.value_of_css_property("stroke"),
            controls.value_of_css_property("background-color"),
        )

    light, dark = colours("light"), colours("dark")
    colours("light")
    assert all(one != other for one, other in zip(light, dark, strict=True))


@pytest.mark.slow
def test_no_other_page_loads_any_of_it(site):
    pages = [path for path in site.rglob("*.html") if "playground/" in path.read_text("utf-8")]
    assert pages == [site / "playground.html"]


@pytest.mark.slow
def test_data_is_a_few_megabytes(site):
    sizes = [path.stat().st_size for path in (site / "_static/playground/data").glob("*.js")]
    assert len(sizes) == 17
    assert sum(sizes) < 6e6
    assert max(sizes) < 6e5
