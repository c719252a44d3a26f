"""The command finds what is wrong with an implementation, and says so."""

import json
import subprocess
import sys
import types
from contextlib import contextmanager

import numpy as np
import pytest
from diffstride_backends import registry
from diffstride_conformance import cli, frameworks
from diffstride_conformance.cases import all_cases
from diffstride_conformance.comparison import TOLERANCES
from diffstride_conformance.frameworks import FrameworkImplementation
from diffstride_conformance.implementation import OPERATIONS, ImplementationError, load
from diffstride_conformance.selection import everything, representative, representative_cases
from support.subjects import subject

MODULE = "third_party_layer"
CASE = "size-2x48-2.0-axes=(-1,)-convention=nominal-method=matmul"
CONV_CASE = next(
    case.name
    for case in all_cases()
    if case.operation == "conv_diff_stride" and case.has_bias and case.method == "fused"
)
CASES = (
    CASE,
    "resize-16-9-forward",
    "pool-paper-(2,12,15)-(3.0,2.4)",
    "complexity-2",
    CONV_CASE,
)
CALL = "complexity-strides_per_layer-none-[]"


class Correct(FrameworkImplementation):
    def __init__(self):
        super().__init__(registry.get("numpy"))
        self.name = "third party"


class OnDevices(FrameworkImplementation):
    def __init__(self):
        self.__dict__.update(vars(subject("array-api-strict")))
        self.name = "third party"


class WithAutodiff(Correct):
    """Claims to be differentiated by its framework, and gets something else that way."""

    def __init__(self):
        super().__init__()
        attached, plain = self.diff_stride, with_gradients(scaled(1))(self.diff_stride)

        @contextmanager
        def plain_autodiff():
            self.diff_stride = plain
            yield
            self.diff_stride = attached

        self.plain_autodiff = plain_autodiff


def wrong(member, change, base=Correct):
    """Return a class of implementations with one member changed."""

    class Wrong(base):
        def __init__(self):
            super().__init__()
            setattr(self, member, change(getattr(self, member)))

    return Wrong


def with_value(change):
    """Return what changes the value that a function returns with its pullback."""

    def changed(function):
        def wrapped(*arguments, **options):
            value, pullback = function(*arguments, **options)
            return change(value), pullback

        return wrapped

    return changed


def with_gradients(change):
    """Return what changes the gradients that a function's pullback returns."""

    def changed(function):
        def wrapped(*arguments, **options):
            value, pullback = function(*arguments, **options)
            return value, lambda g: tuple(change(list(pullback(g))))

        return wrapped

    return changed


def scaled(position):
    def change(gradients):
        gradients[position] = gradients[position] * (1 + 1e-4)
        return gradients

    return change


def nowhere(gradients):
    return [None, *gradients[1:]]


def off(y):
    return y * (1 + 1e-4)


def moved(y):
    return y.to_device(subject("array-api-strict").devices()[1])


def in_other_words(function):
    def refuses(layers):
        if not layers:
            raise ValueError("no")
        return function(layers)

    return refuses


def with_another_error(function):
    def refuses(layers):
        try:
            return function(layers)
        except ValueError as error:
            raise KeyError(str(error)) from None

    return refuses


def raising(function):
    def raises(*arguments, **options):
        raise ZeroDivisionError("division by zero")

    return raises


GOLDEN = ("golden-024_D_33x47",)
WRONG = {
    "output": (wrong("diff_stride", with_value(off)), CASES, {"output"}),
    "output-dtype": (
        wrong("diff_stride", with_value(lambda y: y.astype(np.float32))), CASES, {"output"}
    ),
    "output-shape": (wrong("diff_stride", with_value(lambda y: y[:, :-1])), CASES, {"output"}),
    "output-nan": (wrong("diff_stride", with_value(lambda y: y * np.nan)), CASES, {"output"}),
    "output-device": (
        wrong("diff_stride", with_value(moved), OnDevices), CASES, {"output", "on other devices"}
    ),
    "dx": (wrong("diff_stride", with_gradients(scaled(0))), CASES, {"dx"}),
    "dx-none": (wrong("diff_stride", with_gradients(nowhere)), CASES, {"dx"}),
    "dstrides": (wrong("diff_stride", with_gradients(scaled(1))), CASES, {"dstrides"}),
    "dstrides-missing": (
        wrong("diff_stride", with_gradients(lambda both: both[:1])), CASES, {"dstrides"}
    ),
    "sizes": (
        wrong("output_sizes", lambda f: lambda *a, **o: tuple(m + 2 for m in f(*a, **o))),
        CASES,
        {"output sizes"},
    ),
    "sizes-numpy": (
        wrong("output_sizes", lambda f: lambda *a, **o: tuple(map(np.int64, f(*a, **o)))),
        CASES,
        {"output sizes"},
    ),
    "resize": (
        wrong("spectral_resize", with_value(off)),
        CASES,
        {"spectral_resize output", "spectral_resize as scipy"},
    ),
    "resize-dx": (
        wrong("spectral_resize", with_gradients(scaled(0))), CASES, {"spectral_resize dx"}
    ),
    "pool": (wrong("spectral_pool", with_value(off)), CASES, {"spectral_pool output"}),
    "pool-dx": (wrong("spectral_pool", with_gradients(scaled(0))), CASES, {"spectral_pool dx"}),
    "complexity": (wrong("complexity", with_value(off)), CASES, {"complexity"}),
    "conv": (
        wrong("conv_diff_stride", with_value(off)), CASES, {"conv_diff_stride output"}
    ),
    **{
        f"conv-{name}": (
            wrong("conv_diff_stride", with_gradients(scaled(position))),
            CASES,
            {f"conv_diff_stride {name}"},
        )
        for position, name in enumerate(("dx", "dweight", "dstrides", "dbias"))
    },
    "conv-without-dbias": (
        wrong("conv_diff_stride", with_gradients(lambda all_four: all_four[:3])),
        CASES,
        {"conv_diff_stride dbias"},
    ),
    "complexity-gradient": (
        wrong("complexity", with_gradients(scaled(3))), CASES, {"complexity gradient"}
    ),
    "autodiff": (WithAutodiff, CASES, {"gradients as autodiff"}),
    "elsewhere": (
        wrong("diff_stride", with_value(lambda y: y.to_device(type(y.device)())), OnDevices),
        CASES,
        {"on other devices"},
    ),
    "raising": (wrong("diff_stride", raising), CASES, {"runs"}),
    "from-host": (
        wrong("from_host", lambda f: lambda array, *o: f(array * 1.001, *o)), (CASE,), {"runs"}
    ),
    "golden": (
        wrong("diff_stride", with_value(off)), GOLDEN, {"golden output"}
    ),
    "golden-gradients": (
        wrong("diff_stride", with_gradients(lambda both: scaled(0)(scaled(1)(both)))),
        GOLDEN,
        {"golden dx", "golden dstrides"},
    ),
    "golden-strides": (
        wrong("authors_strides", lambda f: lambda *a, **o: tuple(map(off, f(*a, **o)))),
        GOLDEN,
        {"golden strides"},
    ),
    "refusal-none": (
        wrong("complexity", lambda f: lambda layers: f(layers or [[2.0]])), (CALL,), {"refusals"}
    ),
    "refusal-error": (wrong("complexity", with_another_error), (CALL,), {"refusals"}),
    "refusal-words": (wrong("complexity", in_other_words), (CALL,), {"refusals"}),
}  # fmt: skip


@pytest.fixture
def install(monkeypatch):
    """Return what makes an implementation importable, and gives its place."""
    module = types.ModuleType(MODULE)
    monkeypatch.setitem(sys.modules, MODULE, module)

    def installed(implementation, name="Backend"):
        setattr(module, name, implementation)
        return f"{MODULE}:{name}"

    return installed


@pytest.fixture
def run(tmp_path, capsys):
    """Return what runs the command and gives its status, its data and what it printed."""

    def ran(*options, cases=CASES):
        report = tmp_path / "report.json"
        status = cli.main([*options, "--case", *cases, "--report", str(report)])
        return status, json.loads(report.read_text()), capsys.readouterr().out

    return ran


def test_a_correct_implementation_passes(install, run):
    options = ("--backends", "numpy", "--backend", install(Correct))
    status, data, printed = run(*options, cases=(*CASES, *GOLDEN, CALL, "golden-traj0"))
    assert status == 0
    assert data["passed"] is True
    assert data["missing"] == {}
    assert data["not_offered"]["third party"] == ["automatic differentiation"]
    of_subject = {}
    for each in data["comparisons"]:
        of_subject.setdefault(each["subject"], set()).add(each["quantity"])
        assert each["failure"] is None
        assert 0 <= each["units"] <= 1
    assert set(of_subject) == {"numpy", "third party", "numpy / third party"}
    assert of_subject["numpy"] == of_subject["third party"]
    own = set().union(*(quantities for _, _, quantities in WRONG.values()))
    assert own - of_subject["numpy"] == {"runs", "gradients as autodiff", "on other devices"}
    assert of_subject["numpy / third party"] >= {"output", "dx", "dstrides", "refusals"}
    assert "third party" in printed
    assert f"{len(data['comparisons'])} comparisons" in printed
    assert "0 failures: passed" in printed


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_implementation_fails(install, run, what):
    implementation, cases, quantities = WRONG[what]
    location = install(implementation)
    status, data, printed = run("--backend", location, "--dtype", "float64", cases=cases)
    assert status == 1
    assert data["passed"] is False
    failed = [each for each in data["comparisons"] if each["failure"] is not None]
    assert {each["quantity"] for each in failed} == quantities
    for each in failed:
        assert each["units"] is None or each["units"] > 1
        rerun = f"diffstride-verify --backend {location} --dtype float64 --case "
        assert rerun in printed
        assert each["failure"] in printed
    assert f"{len(failed)} failures: failed" in printed


def test_two_that_pass_can_differ_by_too_much(install, run):
    share = 0.9 * TOLERANCES["float64"].output

    class Other(Correct):
        def __init__(self):
            super().__init__()
            self.name = "other"

    def beside(sign):
        return with_value(lambda y: y + sign * share * np.abs(y).max())

    above = install(wrong("diff_stride", beside(1)), "Above")
    below = install(wrong("diff_stride", beside(-1), Other), "Below")
    status, data, _ = run("--backend", above, below, "--dtype", "float64", cases=(CASE,))
    assert status == 1
    failed = [each for each in data["comparisons"] if each["failure"] is not None]
    assert [(each["subject"], each["quantity"]) for each in failed] == [
        ("third party / other", "output")
    ]


def test_what_is_not_offered_is_no_pass(install, run):
    location = install(wrong("spectral_pool", lambda f: None))
    status, data, printed = run("--backend", location, "--dtype", "float64", "bfloat16")
    assert status == 0
    lacking = ["spectral_pool", "inputs of bfloat16", "automatic differentiation"]
    assert data["not_offered"]["third party"] == lacking
    assert f"third party: not offered: {', '.join(lacking)}" in printed
    assert {each["dtype"] for each in data["comparisons"]} == {"float64"}
    assert {each["case"] for each in data["comparisons"]} == {*CASES} - {CASES[2]}


SEPARATE = "kernel-2x3x13-4x3x3-1.7-convention=nominal-padding_mode=zeros-method=separate"


def test_a_method_that_is_not_offered_is_no_pass(run):
    status, data, printed = run("--backends", "numpy", "torch", cases=(SEPARATE, CONV_CASE))
    assert status == 0
    lacking = "conv_diff_stride by method 'separate'"
    assert lacking in data["not_offered"]["numpy"]
    assert f"numpy: not offered: {lacking}" in printed
    assert data["not_offered"]["torch"] == []
    compared = {(each["subject"], each["case"]) for each in data["comparisons"]}
    pair = {("numpy", CONV_CASE), ("torch", CONV_CASE), ("numpy / torch", CONV_CASE)}
    assert compared == {*pair, ("torch", SEPARATE)}
    status, data, _ = run("--backends", "numpy", cases=(SEPARATE,))
    assert (status, data["comparisons"]) == (1, [])


def test_methods_may_be_named_by_who_has_not_all(install, run):
    location = install(wrong("conv_methods", lambda methods: ("separate",)))
    status, data, _ = run("--backend", location, cases=(CASE, CONV_CASE))
    assert status == 0
    assert data["not_offered"]["third party"][0] == "conv_diff_stride by method 'fused'"
    assert {each["case"] for each in data["comparisons"]} == {CASE}


def test_what_is_not_owed_is_no_pass(run):
    options = ("--backends", "torch", "--dtype", "bfloat16", "float32")
    status, data, _ = run(*options, cases=(SEPARATE, CONV_CASE))
    assert status == 0
    compared = {(each["dtype"], each["case"]) for each in data["comparisons"]}
    assert compared == {
        ("bfloat16", CONV_CASE), ("float32", CONV_CASE), ("float32", SEPARATE)
    }  # fmt: skip
    status, data, _ = run("--backends", "torch", "--dtype", "float16", cases=(SEPARATE,))
    assert (status, data["comparisons"]) == (1, [])


def test_nothing_compared_is_no_pass(install, run):
    location = install(wrong("spectral_pool", lambda f: None))
    status, data, _ = run("--backend", location, cases=(CASES[2],))
    assert (status, data["comparisons"]) == (1, [])


def test_a_backend_asked_for_and_missing_is_a_failure(monkeypatch, run):
    monkeypatch.setattr(
        frameworks, "unavailable", lambda name: "not installed" if name == "jax" else None
    )
    status, data, printed = run("--backends", "numpy", "jax")
    assert (status, data["missing"]) == (1, {"jax": "not installed"})
    assert "jax: MISSING: not installed" in printed
    assert "0 failures: failed" in printed
    status, data, printed = run("--backend", "no.such:Backend")
    assert status == 1
    assert "no.such:Backend cannot be loaded: ModuleNotFoundError" in printed


def test_one_that_is_merely_absent_is_listed(monkeypatch, run):
    monkeypatch.setattr(
        frameworks, "unavailable", lambda name: None if name == "numpy" else "not installed"
    )
    status, data, printed = run()
    assert status == 0
    assert data["absent"] == dict.fromkeys(
        ("torch", "jax", "cupy", "array-api-strict"), "not installed"
    )
    assert "torch: absent: not installed" in printed


def test_one_that_cannot_be_imported_is_a_failure(monkeypatch, run):
    def broken(name):
        raise ImportError("libsomething.so is missing")

    monkeypatch.setattr(frameworks, "names", lambda: ("numpy",))
    monkeypatch.setattr(frameworks, "get", broken)
    status, data, _ = run()
    assert (status, data["missing"]) == (1, {"numpy": "ImportError: libsomething.so is missing"})


def test_two_of_one_name(install, run):
    location = install(wrong("name", lambda name: "numpy"))
    status, data, _ = run("--backends", "numpy", "--backend", location)
    assert (status, data["missing"]) == (
        1,
        {location: "the name 'numpy' is already taken"},
    )


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("no_colon", "is named package.module:Backend, got 'no_colon'"),
        (":Backend", "is named package.module:Backend, got ':Backend'"),
        ("no_such_package.module:Backend", "cannot be loaded: ModuleNotFoundError"),
        (f"{MODULE}:Missing", "cannot be loaded: AttributeError"),
        (f"{MODULE}:Broken", "cannot be loaded: ZeroDivisionError: no luck"),
        (f"{MODULE}:Number", "is no implementation: it lacks name, version"),
        (f"{MODULE}:Idle", "offers none of diff_stride, "),
    ],
)
def test_what_cannot_be_loaded(install, location, message):
    class Broken:
        def __init__(self):
            raise ZeroDivisionError("no luck")

    class Idle(Correct):
        def __init__(self):
            super().__init__()
            for operation in OPERATIONS:
                setattr(self, operation, None)

    install(Broken, "Broken")
    install(Idle, "Idle")
    install(3, "Number")
    with pytest.raises(ImplementationError) as error:
        load(location)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--report", "report.pdf"], "--report: must end in .html or .json, got 'report.pdf'"),
        (["--report", "no/such/folder/report.html"], "must be in a folder that exists"),
        (["--case", "size-2x48-nothing"], "there is no case 'size-2x48-nothing'; similar: size-"),
        (["--case", "mix0-1x2x1"], "similar: mix0-1x2x1x7x12x10"),
        (["--backends", "tensorly"], "invalid choice: 'tensorly'"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_wrong_options_are_refused_before_any_work(options, message, capsys, monkeypatch):
    monkeypatch.setattr(cli, "verify", None)
    with pytest.raises(SystemExit) as stopped:
        cli.main(options)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize("package", ["rich", "jinja2"])
def test_the_extra_that_is_missing_is_named(package):
    code = f"""
import sys
sys.modules[{package!r}] = None
from diffstride_conformance.cli import main
sys.exit(main([]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {package} is not installed: pip install 'diffstride[conformance]'\n"
    )


def test_report_that_cannot_be_written_is_an_error_of_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "verify", lambda *arguments: ())
    folder = tmp_path / "report.json"
    folder.mkdir()
    assert cli.main(["--backends", "numpy", "--case", "complexity-2", "--report", str(folder)]) == 1
    assert (
        capsys.readouterr().err == f"error: --report: {folder} cannot be written: Is a directory\n"
    )


def test_interruption_is_no_traceback(monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "verify", interrupt)
    assert cli.main(["--backends", "numpy", "--case", "complexity-2"]) == 130
    assert capsys.readouterr().err == "\nInterrupted.\n"


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "examples:" in printed
    assert "diffstride_conformance.examples" in printed


# --- the selection --------------------------------------------------------------------------


def test_selection_has_every_value_of_every_option():
    def values(cases):
        return {
            (case.operation, key, repr(value))
            for case in cases
            for key, value in case.options.items()
            if key not in ("axes", "sizes")
        }

    selected = representative_cases()
    assert len(selected) < len(all_cases()) / 12
    assert values(selected) == values(all_cases())
    assert any(0 in case.shape for case in selected)
    with_method = [case.options for case in selected if "method" in case.options]
    for key, count in (("convention", 2), ("norm", 4)):
        assert len({(each["method"], each.get(key)) for each in with_method}) >= 2 * count


def test_selection_is_enough_for_its_purposes():
    selected = representative()
    assert len(selected.autodiff) > 6
    assert len(selected.elsewhere) > 5
    attached = {"diff_stride", "conv_diff_stride", "complexity"}
    assert {case.operation for case in selected.autodiff} >= attached
    assert {case.method for case in selected.autodiff} >= {"fused", "separate"}
    assert selected.calls == everything().calls
    assert {case.layer for case in selected.recorded} == {"DiffStride", "FixedSpectralPooling"}


def test_method_leaves_out_the_other_engine(run):
    fft = CASE.replace("matmul", "fft")
    _, data, _ = run("--backends", "numpy", "--method", "fft", cases=(*CASES, fft))
    assert {each["case"] for each in data["comparisons"]} == {fft, *CASES[1:]}


def test_method_leaves_out_the_other_evaluation_of_a_convolution(run):
    cases = (CASE, CONV_CASE, SEPARATE)
    _, data, _ = run("--backends", "torch", "--method", "separate", cases=cases)
    assert {each["case"] for each in data["comparisons"]} == {CASE, SEPARATE}
    _, data, _ = run("--backends", "torch", "--method", "fft", "fused", cases=cases)
    assert {each["case"] for each in data["comparisons"]} == {CONV_CASE}
