import hashlib
import pickle

import numpy as np
import pytest
import torch
from diffstride_experiments.data import Cifar
from diffstride_experiments.errors import ExperimentError
from pydantic import ValidationError
from torchvision import datasets

STATISTICS = {
    10: [(0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)],
    100: [(0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)],
}


def write(path, content):
    data = pickle.dumps(content)
    path.write_bytes(data)
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@pytest.fixture(params=[10, 100])
def cifar(request, tmp_path, monkeypatch):
    """Options and pixels of small batches in the real format, with matching checksums."""
    classes = request.param
    kind = {10: datasets.CIFAR10, 100: datasets.CIFAR100}[classes]
    folder = tmp_path / {10: "cifar-10-batches-py", 100: "cifar-100-python"}[classes]
    folder.mkdir()
    random = np.random.default_rng(0)
    pixels = {}
    for part, each in (("train_list", 4), ("test_list", 2)):
        names = [name for name, _ in getattr(kind, part)]
        label_key = {10: "labels", 100: "fine_labels"}[classes]
        labels = np.array_split(np.arange(classes * each) % classes, len(names))
        batches = [random.integers(0, 256, (len(some), 3072), np.uint8) for some in labels]
        sums = [
            write(folder / name, {"data": batch, label_key: some.tolist()})
            for name, batch, some in zip(names, batches, labels, strict=True)
        ]
        monkeypatch.setattr(kind, part, [list(pair) for pair in zip(names, sums, strict=True)])
        pixels[part] = np.concatenate(batches).reshape(-1, 3, 32, 32)
    names = {kind.meta["key"]: [f"class {index}" for index in range(classes)]}
    checksum = write(folder / kind.meta["filename"], names)
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": checksum})
    return Cifar(path=tmp_path, classes=classes), pixels["train_list"], pixels["test_list"]


def normalised(pixels, classes):
    mean, std = np.reshape(STATISTICS[classes], (2, 3, 1, 1))
    return torch.from_numpy((pixels / 255 - mean) / std).float()


def test_test_images_are_normalised_in_order(cifar):
    options, train, test = cifar
    data = options.load("test")
    images = torch.stack([image for image, _ in data.evaluation])
    torch.testing.assert_close(images, normalised(test, options.classes))
    assert [label for _, label in data.evaluation] == list(range(options.classes)) * 2
    assert [label for _, label in data.train] == list(range(options.classes)) * 4
    assert len(data.train) == len(train)
    assert data.classes == tuple(f"class {index}" for index in range(options.classes))
    assert data.input_shape == (3, 32, 32)


def test_training_images_are_shifted_and_flipped(cifar):
    options, train, _ = cifar
    data = options.load("test")
    torch.manual_seed(3)
    first = [data.train[index][0] for index in range(20)]
    torch.manual_seed(3)
    second = [data.train[index][0] for index in range(20)]
    third = [data.train[index][0] for index in range(20)]
    assert all(map(torch.equal, first, second))
    assert sum(map(torch.equal, first, third)) < 3

    padded = np.pad(train[0], ((0, 0), (4, 4), (4, 4)))
    possible = [
        normalised(image, options.classes)
        for top in range(9)
        for left in range(9)
        for image in [padded[:, top : top + 32, left : left + 32]]
        for image in (image, image[..., ::-1])
    ]
    assert any(torch.allclose(first[0], image, atol=1e-5) for image in possible)


def test_training_images_may_be_left_as_they_are(cifar):
    options, train, _ = cifar
    data = options.model_copy(update={"augmentation": "none"}).load("test")
    for (image, _), pixels in zip(data.train, train, strict=True):
        expected = normalised(pixels, options.classes).float()
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-5)


def test_validation_holds_out_training_images(cifar):
    options, train, _ = cifar
    data = options.model_copy(update={"pad": 0, "validation_fraction": 0.25}).load("validation")
    assert len(data.evaluation) == options.classes
    assert sorted(label for _, label in data.evaluation) == list(range(options.classes))
    assert len(data.train) == 3 * options.classes

    # Mirroring does not change the sum of an image.
    sums = normalised(train, options.classes).double().sum((1, 2, 3))
    found = [
        int((sums - image.double().sum()).abs().argmin())
        for part in (data.train, data.evaluation)
        for image, _ in part
    ]
    assert sorted(found) == list(range(len(train)))


@pytest.mark.parametrize("damage", ["missing", "incomplete", "changed"])
def test_unfit_folder_is_explained(cifar, damage):
    options, _, _ = cifar
    (folder,) = options.path.iterdir()
    batch = folder / {10: "data_batch_1", 100: "train"}[options.classes]
    if damage == "missing":
        folder.rename(options.path / "elsewhere")
    elif damage == "incomplete":
        batch.unlink()
    else:
        batch.write_bytes(batch.read_bytes() + b"more")
    with pytest.raises(ExperimentError) as caught:
        options.load("test")
    assert str(caught.value) == (
        f"data.path: {options.path} must hold the folder {folder.name}, complete and unchanged, "
        "from https://www.cs.toronto.edu/~kriz/cifar.html (Python version); nothing is downloaded."
    )


def test_only_10_and_100_classes_exist(tmp_path):
    with pytest.raises(ValidationError, match="10 or 100"):
        Cifar(path=tmp_path, classes=20)
