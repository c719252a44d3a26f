"""Every recipe parses, builds its networks and takes its first steps on generated data."""

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from changing import changed
from diffstride_experiments.config import RECIPES, Config, read_recipe
from diffstride_experiments.methods import METHODS
from diffstride_experiments.processes import Processes
from diffstride_experiments.trainer import Trainer
from PIL import Image

PATHS = sorted(RECIPES.glob("*.toml"))


def test_digits_is_what_no_recipe_does():
    digits = read_recipe(RECIPES / "digits.toml")
    assert changed(digits, run_dir=Config().run_dir) == Config()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_recipe_has_its_own_folder_and_full_size_is_said(path):
    config = read_recipe(path)
    assert config.run_dir == Path("runs") / path.stem
    full_size = config.model.name != "small_resnet"
    assert ("FULL SIZE" in path.read_text()) == full_size


def write_cifar(folder, classes, monkeypatch):
    random = np.random.default_rng(0)
    folder = folder / ("cifar-10-batches-py" if classes == 10 else "cifar-100-python")
    folder.mkdir(parents=True)
    names = (
        ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5",
         "test_batch"]
        if classes == 10
        else ["train", "test"]
    )  # fmt: skip
    count = 2 * classes // len(names) if classes == 10 else 2 * classes
    for name in names:
        labels = [index % classes for index in range(max(count, 2 * classes))]
        batch = {
            "data": random.integers(0, 256, (len(labels), 3072), dtype=np.uint8),
            "labels" if classes == 10 else "fine_labels": labels,
        }
        (folder / name).write_bytes(pickle.dumps(batch))
    key = "label_names" if classes == 10 else "fine_label_names"
    meta = "batches.meta" if classes == 10 else "meta"
    (folder / meta).write_bytes(pickle.dumps({key: [f"class {i}" for i in range(classes)]}))
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)


def write_images(folder, size):
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (folder / part / name).mkdir(parents=True)
            for index in range(4):
                pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{index}.jpg")


def write_speech(folder):
    folder.mkdir()
    random = np.random.default_rng(0)
    for speaker in ("theo", "lucas", "jackson"):
        for digit in range(2):
            for index in range(2):
                samples = random.standard_normal(4000) * 0.1
                soundfile.write(folder / f"{digit}_{speaker}_{index}.wav", samples, 8000)


def on_made_up_data(config, folder, monkeypatch):
    """Return the configuration for tiny data, for which the first steps run the same code."""
    options = {}
    if config.data.name == "cifar":
        write_cifar(folder / "data", config.data.classes, monkeypatch)
    elif config.data.name == "images":
        write_images(folder / "data", 256 if config.data.size else 32)
    elif config.data.name == "audio":
        write_speech(folder / "data")
    if config.data.name != "digits":
        options["data__path"] = folder / "data"
    if hasattr(config.data, "cache"):
        options["data__cache"] = folder / "cache"
    return changed(
        config,
        run_dir=folder / "run",
        training__batch_size=4,
        training__workers=0,
        # A step in bfloat16 takes a minute on a CPU without such arithmetic.
        training__precision="float32",
        threads=1,
        device="cpu",
        **options,
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_recipe_takes_its_first_steps(path, tmp_path, monkeypatch):
    config = on_made_up_data(read_recipe(path), tmp_path, monkeypatch)
    data = config.data.load(config.evaluate_on)
    torch.set_num_threads(config.threads)
    with Processes.joined(config.device) as processes:
        for name in config.methods:
            trainer = Trainer(METHODS[name], config, data, processes)
            weight = next(trainer.network.parameters())
            before = weight.detach().clone(), trainer.network.strides
            for _ in itertools.islice(trainer.steps(), 2):
                pass
            assert trainer.step == 2
            assert not torch.equal(weight, before[0])
            learnt = METHODS[name].pooling == "diffstride"
            assert (trainer.network.strides != before[1]) == learnt
