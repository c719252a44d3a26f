"""The tables of the performance page are those of the committed results."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/performance.md").read_text("utf-8")


def results(name):
    return json.loads((ROOT / f"benchmarks/results/{name}.json").read_text("utf-8"))


def line(*cells):
    return f"| {' | '.join(cells)} |"


def name_of(shape):
    return "x".join(map(str, shape))


def rows_of_layers():
    wanted = {"stride": 2.0, "convention": "nominal", "dtype": "float32", "backward": True}
    for row in results("layers")["rows"]:
        if not wanted.items() <= row["case"].items():
            continue
        seconds = row["seconds"]
        ours = seconds["ours, auto"]
        ratios = [seconds["fft autodiff"] / ours]
        ratios += [
            ours / seconds[other] if other in seconds else None
            for other in ("interpolate", "avg_pool", "conv")
        ]
        ratios += [seconds["jax, auto"] / ours, seconds["numpy, auto"] / ours]
        cells = ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        share = row["share"].get("of the GEMM rate")
        cells.append("" if share is None else f"{share:.0%}")
        yield line(name_of(row["case"]["shape"]), *cells)


def rows_of_training_steps():
    networks = list(results("training_steps")["networks"].values())
    for name in networks[0]:
        cells = []
        for network in networks:
            strided = network["strided convolution"]
            cells += [network[name][key] / strided[key] for key in ("seconds", "peak bytes")]
        ratios = ["1"] * 4 if name == "strided convolution" else [f"{cell:.2f}" for cell in cells]
        yield line(name, *ratios)


def rows_of_small_calls():
    for passes, seconds in results("small_calls")["seconds"].items():
        reference = seconds.get("two products") or seconds["fft autodiff"]
        cells = [f"{1e6 * seconds[name]:.0f}" for name in ("function", "layer")]
        cells += [f"{seconds[name] / reference:.1f}" for name in ("function", "layer")]
        yield line(passes, *cells)


def rows_of_frozen():
    for row in results("frozen")["rows"]:
        ours, pool, conv = row["seconds"].values()
        yield line(
            name_of(row["shape"]), f"{1e3 * ours:.2f}", f"{ours / pool:.1f}", f"{ours / conv:.1f}"
        )


def rows_of_large():
    for row in results("scale")["large"]:
        seconds, peak = row["seconds"], row["peak bytes"]
        cells = [f"{seconds[name]:.2g}" for name in ("ours", "fft autodiff")]
        cells += [f"{peak[name] / row['input bytes']:.1f}" for name in ("ours", "fft autodiff")]
        yield line(name_of(row["shape"]), *cells)


def rows_of_first_call():
    for case, row in results("first_call")["first call"].items():
        shape, passes = case.removeprefix("(").split("), ")
        yield line(shape.replace(", ", "x"), passes, f"{row['seconds']:.2f}")


def rows_of_imports():
    for name, seconds in results("imports")["seconds"].items():
        yield line(f"`{name}`", f"{seconds:.2f}")


TABLES = {
    "layers": rows_of_layers,
    "training_steps": rows_of_training_steps,
    "small_calls": rows_of_small_calls,
    "frozen": rows_of_frozen,
    "large": rows_of_large,
    "first_call": rows_of_first_call,
    "imports": rows_of_imports,
}


@pytest.mark.parametrize("table", TABLES)
def test_rows_are_those_of_the_results(table):
    expected = list(TABLES[table]())
    assert len(expected) >= 2
    assert [row for row in expected if row not in PAGE] == []
