import json
import math
import tomllib
from dataclasses import asdict, replace
from typing import get_args

import numpy as np
import pytest
from changing import changed
from diffstride_experiments.config import Config
from diffstride_experiments.data import Cifar, ImageFolder
from diffstride_experiments.errors import ExperimentError
from diffstride_experiments.methods import METHODS
from diffstride_experiments.run import run
from diffstride_experiments.studies import execution, runner
from diffstride_experiments.studies.bases import INPUT_SHAPES, base, check_samples
from diffstride_experiments.studies.budget import fixed_grid
from diffstride_experiments.studies.execution import comparison, run_study
from diffstride_experiments.studies.options import StudyName, StudyOptions
from diffstride_experiments.studies.registry import STUDIES
from diffstride_experiments.studies.runner import run_cases
from diffstride_experiments.studies.study import Case, Outcome, Point, Report, Study
from diffstride_experiments.studies.summary import Difference, Spread, group, markdown_table
from diffstride_experiments.studies.width import cost, widened
from rich.console import Console
from support.amounts import quick_first

QUIET = Console(quiet=True)


def made_up(case, accuracy=None):
    """Return an outcome that a run of the case could have, without running it."""
    method = case.config.methods[0]
    pairs = tuple(s if isinstance(s, tuple) else (s, s) for s in case.config.model.strides)
    learnt = METHODS[method].learns_strides
    random = np.random.default_rng([case.config.seed, len(method)])
    return Outcome(
        labels=case.labels,
        method=method,
        seed=case.config.seed,
        accuracy=random.uniform(0.4, 0.6) if accuracy is None else accuracy,
        first_strides=pairs,
        strides=tuple((h + 0.1, w + 0.2) for h, w in pairs) if learnt else pairs,
        feature_maps=((8, 8),) * len(pairs),
        first_multiply_adds=3_000_000,
        multiply_adds=4_000_000 if learnt else 3_000_000,
        trained_multiply_adds=2_500_000_000_000,
        seconds=10.0,
        trajectory=(Point(0, pairs, 3_000_000), Point(9, pairs, 4_000_000)) if learnt else (),
    )


def base_of(study, tmp_path):
    """Return the options that a study starts from, with a folder that looks like its data."""
    (tmp_path / "train").mkdir(exist_ok=True)
    (tmp_path / "0_george_0.wav").touch()
    return base(study.data, None if study.data == "digits" else tmp_path)


def all_cases(study, tmp_path):
    config = base_of(study, tmp_path)
    cases = study.cases(config, range(3))
    if study.follow_up is not None:
        cases += study.follow_up(config, range(3), [made_up(case) for case in cases])
    return cases


def test_every_study_can_be_named():
    assert set(STUDIES) == set(get_args(StudyName))
    assert all(name == study.name for name, study in STUDIES.items())


@pytest.mark.parametrize("study", quick_first(2, STUDIES.values()), ids=STUDIES)
def test_runs_of_a_study_differ_and_each_row_has_every_seed(study, tmp_path):
    cases = all_cases(study, tmp_path)
    first = study.cases(base_of(study, tmp_path), range(3))
    assert len({case.config.model_dump_json() for case in first}) == len(first)
    for row in group(map(made_up, cases)).values():
        assert len(row.labels) == len(study.columns)
        assert [outcome.seed for outcome in row.outcomes] in ([0, 1, 2], [0, 1, 2, 3, 4])
    for case in cases:
        assert (case.config.threads, case.config.device) == (1, "cpu")
        assert len(case.config.methods) == 1


@pytest.mark.parametrize("study", quick_first(2, STUDIES.values()), ids=STUDIES)
def test_reports_have_all_rows_and_figures(study, tmp_path):
    outcomes = [made_up(case) for case in all_cases(study, tmp_path)]
    report = study.report(outcomes)
    lines = report.markdown.splitlines()
    for row in group(outcomes).values():
        head = f"| {' | '.join(row.labels)} | {row.accuracy:.1f} | {row.cost} |"
        assert any(line.startswith(head) for line in lines)
    assert report.figures
    assert all(png.startswith(b"\x89PNG") for png in report.figures.values())


def test_demo_says_in_words_whether_learnt_strides_won(tmp_path):
    study = STUDIES["demo"]

    def sentences(learnt):
        outcomes = [
            made_up(case, (learnt if "DiffStride" in case.labels[0] else 0.9) + 1e-3 * (index % 3))
            for index, case in enumerate(all_cases(study, tmp_path))
        ]
        return study.report(outcomes).sentences

    *ahead, learning = sentences(0.95)
    assert all(" was clearly ahead of both fixed methods: +5.0" in s for s in ahead)
    assert " changed DiffStride by +0.0 ± 0.1 points, at " in learning
    assert all(" was not clearly ahead of both: " in s for s in sentences(0.9)[:-1])


def test_reports_state_means_and_deviations(tmp_path):
    study = STUDIES["penalty"]
    outcomes = [
        made_up(case, accuracy=0.5 + 0.01 * case.config.seed) for case in all_cases(study, tmp_path)
    ]
    line = next(s for s in study.report(outcomes).markdown.splitlines() if "λ = 1 " in s)
    assert line == "| DiffStride (λJ) | λ = 1 | 51.0 ± 1.0 | 3.00 → 4.00 | 2.50 | 10 |"


@pytest.mark.slow
def test_robustness_states_the_spread_over_starts(tmp_path):
    study = STUDIES["robustness-digits"]
    starts = list(dict.fromkeys(case.labels[0] for case in all_cases(study, tmp_path)))
    outcomes = [
        made_up(case, accuracy=0.9 - 0.1 * starts.index(case.labels[0]))
        for case in all_cases(study, tmp_path)
    ]
    table = study.report(outcomes).markdown
    spread = f"{10 * (len(starts) - 1):.1f}"
    assert f"| best - worst start | {' | '.join([spread] * 4)} |" in table
    means = [90.0 - 10 * index for index in range(len(starts))]
    expected = f"{np.mean(means):.1f} ± {np.std(means, ddof=1):.1f}"
    assert f"| mean ± sd over starts | {' | '.join([expected] * 4)} |" in table


@pytest.mark.slow
def test_wider_networks_cost_what_the_learnt_one_ended_with(tmp_path):
    study = STUDIES["controls"]
    config = base_of(study, tmp_path)
    first = [replace(made_up(c), multiply_adds=8_000_000) for c in study.cases(config, (0,))]
    for case in study.follow_up(config, (0,), first):
        assert case.config.methods[0] in ("conv", "spectral")
        # One channel more or less in the narrowest layer is up to a quarter of the cost there.
        assert cost(case.config, INPUT_SHAPES["images"]) == pytest.approx(8e6, rel=0.13)


def test_width_is_the_one_that_has_the_cost():
    config = changed(Config(), methods=("conv",), model__channels=(4, 8, 8, 16))
    shape = INPUT_SHAPES["digits"]
    wide = changed(config, model__channels=(7, 14, 14, 28))
    assert widened(config, cost(wide, shape), shape) == wide
    assert widened(wide, cost(config, shape), shape).model.channels == (4, 8, 8, 16)


def test_grid_of_fixed_strides_costs_what_is_searched(tmp_path):
    config = base_of(STUDIES["budget"], tmp_path)
    grid = fixed_grid(config)
    assert (2.0, 2.0, 2.0) in grid
    held = changed(config, methods=("diffstride-held",))
    for strides in grid:
        price = cost(changed(held, model__strides=strides), INPUT_SHAPES["images"])
        assert price == pytest.approx(3e6, rel=0.101)


def test_differences_are_taken_seed_by_seed():
    reference = group(outcomes_with([0.50, 0.52, 0.54, 0.90]))["row",]
    row = group(outcomes_with([0.52, 0.55, 0.58]))["row",]
    # Differences of 2, 3 and 4 points. The seed that only one row has does not count.
    assert str(Difference.of(row, reference)) == "+3.0 ± 0.6"
    assert str(Difference.of(group(outcomes_with([0.4]))["row",], reference)) == "-10.0"


@pytest.mark.parametrize("method", ["diffstride", "diffstride-held"])
def test_held_strides_take_no_gradient(method):
    network = Config().model.build(METHODS[method], 1, 10)
    learns = [place.pool.strides.requires_grad for place in network.places]
    assert learns == [method == "diffstride"] * 3


def test_spread_of_seeds():
    assert f"{Spread.of([1.0, 2.0, 4.0]):.2f}" == "2.33 ± 1.53"
    assert f"{Spread.of([1.5]):.1f}" == "1.5"
    assert math.isnan(Spread.of([1.5]).deviation)


def test_table():
    assert markdown_table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |\n"


def test_runs_of_one_seed_on_several_splits_are_averaged():
    case = Case(("row",), Config(methods=("diffstride",)))
    first = made_up(case, 0.5)
    second = replace(
        first,
        accuracy=0.7,
        strides=tuple((h + 1, w + 3) for h, w in first.strides),
        multiply_adds=first.multiply_adds + 1000,
        seconds=30.0,
    )
    other_seed = replace(first, seed=1, accuracy=0.8)
    row = group([first, second, other_seed])["row",]
    mean, unchanged = row.outcomes
    assert unchanged is other_seed
    assert mean.accuracy == pytest.approx(0.6)
    np.testing.assert_allclose(mean.strides, np.add(first.strides, (0.5, 1.5)))
    assert mean.multiply_adds == first.multiply_adds + 500
    assert mean.seconds == 20.0
    assert row.accuracy.mean == pytest.approx(70.0)


def test_every_speaker_is_in_the_test_set_once(tmp_path):
    study = STUDIES["robustness-recordings"]
    splits = {
        (case.config.data.test_groups, case.config.data.validation_groups)
        for case in study.cases(base_of(study, tmp_path), range(3))
    }
    tested = sorted(speaker for test, _ in splits for speaker in test)
    assert tested == ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]
    assert all(not set(test) & set(validation) for test, validation in splits)


def outcomes_with(accuracies, label="row"):
    case = Case((label,), changed(Config(), methods=("conv",)))
    return [replace(made_up(case, accuracy), seed=seed) for seed, accuracy in enumerate(accuracies)]


def test_comparison_names_the_rows_that_differ():
    before = outcomes_with([0.50, 0.52, 0.54]) + outcomes_with([0.1, 0.2, 0.3], "wide")
    assert comparison(before, before) == "2 of 2 rows agree within both standard deviations."
    # Standard deviations of 2 and 2 points combine to 2.83.
    near = outcomes_with([0.528, 0.548, 0.568]) + before[3:]
    assert comparison(near, before).startswith("2 of 2 rows agree")
    far = outcomes_with([0.529, 0.549, 0.569]) + outcomes_with([0.5], "other")
    assert comparison(far, before) == (
        "0 of 1 rows agree within both standard deviations; 2 rows are in one of the two alone:\n"
        "  row: 54.9 ± 2.0 now, 52.0 ± 2.0 there"
    )


def test_images_may_be_in_either_form(tmp_path):
    (tmp_path / "train").mkdir()
    assert isinstance(base("images", tmp_path).data, ImageFolder)
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert isinstance(base("images", tmp_path).data, Cifar)


@pytest.mark.parametrize(
    ("name", "folder", "message"),
    [
        ("penalty", None, r"--data\.path must name the folder of the images\."),
        ("penalty", "absent", r"--data\.path must name the folder of the images; .* not a folder"),
        ("penalty", ".", r"--data\.path: .* must hold cifar-10-batches-py, or"),
        ("robustness-recordings", ".", r"--data\.path: .*must hold the recordings"),
        ("robustness-digits", ".", r"--data\.path must be left out for digits"),
    ],
)
def test_missing_data_are_refused_before_anything_is_run(tmp_path, name, folder, message):
    path = None if folder is None else tmp_path / folder
    options = StudyOptions(name=name, folder=tmp_path / "studies", data={"path": path})
    with pytest.raises(ExperimentError, match=message):
        run_study(options, QUIET)
    assert not (tmp_path / "studies").exists()


@pytest.mark.parametrize("text", [None, "{", "[]", '{"labels": []}'])
def test_unreadable_earlier_results_are_refused_before_anything_is_run(tmp_path, text):
    if text is not None:
        (tmp_path / "outcomes.jsonl").write_text(text)
    options = StudyOptions(name="robustness-digits", folder=tmp_path / "new", against=tmp_path)
    with pytest.raises(ExperimentError, match=r"--against: .*outcomes\.jsonl"):
        run_study(options, QUIET)
    assert not (tmp_path / "new").exists()


def test_samples_are_those_that_costs_are_counted_for(tmp_path):
    config = base("digits", None)
    check_samples(config, "digits")
    with pytest.raises(
        ExperimentError, match=r"--data\.path must hold images of .*\(3, 32, 32\) in 10"
    ):
        check_samples(config, "images")


def test_earlier_results_of_another_study_are_refused(tmp_path):
    outcome = outcomes_with([0.5])[0]
    (tmp_path / "outcomes.jsonl").write_text(json.dumps(asdict(outcome)) + "\n")
    options = StudyOptions(name="robustness-digits", folder=tmp_path / "new", against=tmp_path)
    with pytest.raises(ExperimentError, match="outcomes of another study"):
        run_study(options, QUIET)


def test_comparison_of_single_seeds():
    before, far = outcomes_with([0.5]), outcomes_with([0.6])
    assert comparison(before, before) == "1 of 1 rows agree within both standard deviations."
    assert comparison(far, before).startswith("0 of 1 rows agree")


def tiny_study(config):
    """Return a study of two methods and two seeds, with a follow-up run."""

    def cases(base, seeds):
        return [
            Case(("first", method), changed(base, methods=(method,), seed=seed))
            for method in ("conv", "diffstride")
            for seed in seeds
        ]

    def follow_up(base, seeds, outcomes):
        assert len(outcomes) == 2 * len(seeds)
        return [Case(("second", "conv"), changed(base, methods=("conv",), seed=7))]

    def report(outcomes):
        return Report(f"{len(outcomes)} outcomes\n", {"plot": b"\x89PNG"})

    return Study("robustness-digits", "Tiny", "digits", ("a", "b"), cases, report, follow_up)


@pytest.mark.slow
def test_study_runs_once_and_goes_on_where_it_was_stopped(
    tiny_config, tmp_path, monkeypatch, capfd
):
    monkeypatch.setitem(STUDIES, "robustness-digits", tiny_study(tiny_config))
    monkeypatch.setattr(execution, "base", lambda kind, path: tiny_config)
    options = StudyOptions(name="robustness-digits", folder=tmp_path / "studies", seeds=2, jobs=2)
    outcomes = run_study(options, QUIET)
    bars = capfd.readouterr().err
    assert "4/4" in bars
    assert "1/1" in bars
    assert "conv 100%" not in bars  # no progress bars of the runs
    folder = tmp_path / "studies" / "robustness-digits"
    assert {path.name for path in folder.iterdir()} == {
        "config.toml",
        "environment.json",
        "outcomes.jsonl",
        "plot.png",
        "results.md",
    }
    assert [outcome.labels[1] for outcome in outcomes] == [
        *["conv"] * 2,
        *["diffstride"] * 2,
        "conv",
    ]
    assert "5 outcomes" in (folder / "results.md").read_text()
    assert execution._read("against", folder) == outcomes
    shared = tomllib.loads((folder / "config.toml").read_text())
    assert "seed" not in shared
    assert "run_dir" not in shared
    assert shared["training"]["epochs"] == 2

    # The result is the same as that of diffstride-train.
    single = changed(tiny_config, methods=("diffstride",), seed=1)
    (result,) = run(single, QUIET)
    assert result.accuracy == outcomes[3].accuracy
    assert tuple(map(tuple, result.after.strides)) == outcomes[3].strides

    # After a stop in one of the runs, only that run is repeated, with the same result.
    stamps = {path: path.stat().st_mtime_ns for path in folder.parent.glob("runs/*/results.json")}
    assert len(stamps) == 5
    lost = next(path for path in stamps if path.parent.name.startswith("conv-1"))
    lost.unlink()
    for checkpoint in lost.parent.glob("checkpoints/*/*8.pt"):
        checkpoint.unlink()
    again = run_study(options.model_copy(update={"against": folder}), QUIET)
    assert [replace(o, seconds=0.0) for o in again] == [replace(o, seconds=0.0) for o in outcomes]
    changes = [path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp]
    assert changes == [lost]


def test_runs_of_an_earlier_execution_are_taken_from_it(tiny_config, tmp_path):
    cases = [Case(("row",), changed(tiny_config, methods=("conv",), seed=seed)) for seed in (1, 2)]
    names = [runner._run_folder(tmp_path, case).name for case in cases]
    old = [replace(made_up(case), labels=("old",)) for case in cases]
    earlier = [replace(outcome, run=name) for outcome, name in zip(old, names, strict=True)]
    found = run_cases(cases, tmp_path, 1, "tiny", earlier)
    assert found == [replace(outcome, labels=("row",)) for outcome in earlier]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_runs_that_fail_end_the_study(tiny_config, tmp_path):
    bad = changed(tiny_config, methods=("conv",), training__batch_size=1000)
    with pytest.raises(ExperimentError, match=r"row / seed 0 \(.*\): .* 1000 is not allowed"):
        run_cases([Case(("row",), bad)], tmp_path, 1, "tiny")
