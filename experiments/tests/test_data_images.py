import os

import numpy as np
import pytest
import torch
from diffstride_experiments.config import Config, fingerprint, read_recipe
from diffstride_experiments.data import ImageFolder, image_files
from diffstride_experiments.errors import ExperimentError
from PIL import Image
from pydantic import ValidationError
from torchvision.datasets.folder import default_loader

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def write(path, width=12, height=8, seed=None):
    """Write an image whose colours depend on the path. It is smooth, so JPEG preserves it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(list(path.as_posix().encode()) if seed is None else seed)
    corners = Image.fromarray(random.integers(0, 256, (2, 2, 3), dtype=np.uint8))
    corners.resize((width, height), Image.Resampling.BILINEAR).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for name in ("cat", "dog"):
        for index in range(5):
            write(root / "train" / name / f"{index}.jpg")
        for index in range(2):
            write(root / "test" / name / f"{index}.png")
    return root


@pytest.fixture
def options(folder, tmp_path):
    def make(**changes):
        return ImageFolder(**{"path": folder, "cache": tmp_path / "cache", **PLAIN, **changes})

    return make


def pixels(path):
    return torch.from_numpy(np.array(default_loader(path))).permute(2, 0, 1)


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_images_are_found_by_part_and_class(folder, options, in_memory, workers):
    data = options(in_memory=in_memory).load("test", workers)
    assert data.classes == ("cat", "dog")
    assert data.input_shape == (3, 8, 12)
    assert data.skipped == ()
    for samples, part, count in ((data.train, "train", 5), (data.evaluation, "test", 2)):
        assert [label for _, label in samples] == [0] * count + [1] * count
        paths = sorted(folder.glob(f"{part}/*/*"))
        for (image, _), path in zip(samples, paths, strict=True):
            assert image.dtype == torch.float32
            torch.testing.assert_close(image, pixels(path) / 255)


def test_colours_are_normalised_as_imagenets_by_default(folder, tmp_path):
    data = ImageFolder(path=folder, cache=tmp_path / "cache").load("test")
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).reshape(2, 3, 1, 1)
    expected = (pixels(folder / "train" / "cat" / "0.jpg") / 255 - mean) / std
    torch.testing.assert_close(data.train[0][0], expected)


def test_val_stands_in_for_test(folder, options):
    write(folder / "val" / "cat" / "0.jpg")
    write(folder / "val" / "dog" / "0.jpg")
    assert len(options().load("test").evaluation) == 4
    for path in sorted((folder / "test").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (folder / "test").rmdir()
    assert len(options().load("test").evaluation) == 2


def test_val_stands_in_for_a_test_folder_without_classes(folder, options):
    (folder / "test").rename(folder / "val")
    write(folder / "test" / "unlabelled.png")
    assert len(options().load("test").evaluation) == 4


def test_validation_holds_out_training_images_and_needs_no_test(folder, options):
    (folder / "test").rename(folder / "elsewhere")
    data = options(validation_fraction=0.4).load("validation")
    assert sorted(label for _, label in data.train) == [0, 0, 0, 1, 1, 1]
    assert sorted(label for _, label in data.evaluation) == [0, 0, 1, 1]
    images = {
        image.numpy().tobytes() for part in (data.train, data.evaluation) for image, _ in part
    }
    assert len(images) == 10


@pytest.mark.parametrize(
    "changes",
    [
        {"augmentation": "shift-flip", "pad": 2},
        {"augmentation": "shift-flip", "pad": 2, "in_memory": True},
        {"augmentation": "random-resized-crop", "size": 6},
    ],
)
def test_augmentation_repeats_with_the_seed(options, changes):
    data = options(**changes).load("test")
    assert data.train[0][0].shape == data.input_shape

    def draw(seed):
        torch.manual_seed(seed)
        return [data.train[index][0] for _ in range(2) for index in range(10)]

    first, second, other = draw(0), draw(0), draw(1)
    assert all(map(torch.equal, first, second))
    assert not all(map(torch.equal, first, other))
    assert not all(map(torch.equal, first[:10], first[10:]))
    assert torch.equal(data.evaluation[0][0], data.evaluation[0][0])


def test_shift_flip_starts_from_the_image_at_its_size(folder, options):
    in_memory = options(augmentation="shift-flip", in_memory=True).load("test")
    from_files = options(augmentation="shift-flip").load("test")
    torch.manual_seed(0)
    first = [in_memory.train[index][0] for index in range(10)]
    torch.manual_seed(0)
    second = [from_files.train[index][0] for index in range(10)]
    assert all(map(torch.equal, first, second))
    unmoved = options(augmentation="shift-flip", pad=0).load("test").train[0][0]
    image = pixels(folder / "train" / "cat" / "0.jpg") / 255
    assert any(torch.allclose(unmoved, wanted) for wanted in (image, image.flip(-1)))


@pytest.mark.parametrize("in_memory", [False, True])
def test_size_resizes_the_shorter_side_and_crops_the_centre(folder, options, in_memory):
    path = write(folder / "test" / "cat" / "0.png", width=40, height=20)
    data = options(size=4, in_memory=in_memory).load("test")
    assert data.input_shape == (3, 4, 4)
    resized = Image.open(path).resize((8, 4), Image.Resampling.BILINEAR).crop((2, 0, 6, 4))
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
    torch.testing.assert_close(data.evaluation[0][0], expected)


def test_random_resized_crop_evaluates_on_the_centre_of_a_larger_image(folder, options):
    path = write(folder / "test" / "cat" / "0.png", width=64, height=32)
    data = options(augmentation="random-resized-crop", size=14).load("test")
    assert data.input_shape == (3, 14, 14)
    resized = Image.open(path).resize((32, 16), Image.Resampling.BILINEAR).crop((9, 1, 23, 15))
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
    torch.testing.assert_close(data.evaluation[0][0], expected)


@pytest.mark.parametrize("in_memory", [False, True])
def test_other_size_is_named(folder, options, in_memory):
    path = write(folder / "train" / "dog" / "3.jpg", width=9)
    with pytest.raises(ExperimentError) as caught:
        options(in_memory=in_memory).load("test")
    assert str(caught.value) == (
        "data.size must be given if images differ in width and height: "
        f"{folder / 'train' / 'cat' / '0.jpg'} has 12x8, {path} 9x8."
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augmentation": "random-resized-crop"}, "size must be given for random-resized-crop"),
        (
            {"augmentation": "random-resized-crop", "size": 6, "in_memory": True},
            "in_memory must be left out for random-resized-crop",
        ),
        ({"augmentation": "rotate"}, "random-resized-crop"),
        ({"std": (1.0, 0.0, 1.0)}, "greater than 0"),
        ({"size": 0}, "greater than 0"),
        ({"pad": -1}, "greater than or equal to 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, changes, message):
    with pytest.raises(ValidationError, match=message):
        options(**changes)


def truncate(path):
    noise = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    Image.fromarray(noise).save(path, quality=100)
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("in_memory", [False, True])
def test_unreadable_images_end_the_run_or_are_skipped(folder, options, in_memory):
    cat, dog = folder / "train" / "cat" / "2.jpg", folder / "test" / "dog" / "1.png"
    truncate(cat)
    dog.write_bytes(b"no image")
    with pytest.raises(ExperimentError) as caught:
        options(in_memory=in_memory).load("test")
    first, *lines = str(caught.value).splitlines()
    assert first == (
        "data.path: 2 of 14 files cannot be read. Repair or remove them, or leave them out with "
        "--data.unreadable skip:"
    )
    assert lines[0].startswith(f"  {cat}: image file is truncated")
    assert lines[1].startswith(f"  {dog}: cannot identify image file")

    data = options(in_memory=in_memory, unreadable="skip").load("test")
    assert [f"  {line}" for line in data.skipped] == lines
    assert [label for _, label in data.train] == [0] * 4 + [1] * 5
    assert [label for _, label in data.evaluation] == [0, 0, 1]
    names = ("train/cat/0", "train/cat/1", "train/cat/3")
    for (image, _), name in zip(data.train, names, strict=False):
        torch.testing.assert_close(image, pixels(folder / f"{name}.jpg") / 255)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_image_whose_range_is_unknown_is_unreadable(folder, options, mode):
    path = folder / "train" / "cat" / "2.tiff"
    Image.new(mode, (12, 8), 1000).save(path)
    data = options(unreadable="skip").load("test")
    reason = f"it is unknown which values are black and white (Pillow's mode {mode})"
    assert data.skipped == (f"{path}: {reason}",)


def test_cache_that_cannot_be_written_is_refused_before_reading(folder, options, monkeypatch):
    cache = folder / "train" / "cat" / "0.jpg"
    with monkeypatch.context() as patch:
        patch.setattr(image_files, "_size", None)
        with pytest.raises(ExperimentError, match=r"data\.cache: .*0\.jpg must be a folder"):
            options(cache=cache).load("test")
    options().load("test")
    monkeypatch.setattr(image_files, "check_folder", None)
    options().load("test")  # a complete cache need not be written


def test_long_list_of_unreadable_images_is_cut(folder, options):
    for path in folder.glob("train/*/*"):
        path.write_bytes(b"")
    write(folder / "train" / "cat" / "0.jpg")
    (folder / "test" / "cat" / "0.png").write_bytes(b"")
    (folder / "test" / "dog" / "0.png").write_bytes(b"")
    with pytest.raises(ExperimentError) as caught:
        options().load("test")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("data.path: 11 of 14 files cannot be read.")
    assert len(lines) == 12
    assert lines[-1] == "  and 1 more"


@pytest.mark.parametrize("unreadable", ["fatal", "skip"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_class_without_an_image_is_named(folder, options, part, unreadable):
    for path in folder.glob(f"{part}/dog/*"):
        path.unlink()
    message = f"data.path: class dog has no readable file in {folder / part}"
    with pytest.raises(ExperimentError, match=message):
        options(unreadable=unreadable).load("test")


@pytest.mark.parametrize("in_memory", [False, True])
def test_class_of_unreadable_images_alone_is_named(folder, options, in_memory):
    for path in folder.glob("*/cat/*"):
        path.write_bytes(b"no image")
    message = f"class cat has no readable file in {folder / 'train'}"
    with pytest.raises(ExperimentError, match=message):
        options(unreadable="skip", in_memory=in_memory).load("test")


def test_different_classes_are_named(folder, options):
    (folder / "test" / "dog").rename(folder / "test" / "cow")
    with pytest.raises(ExperimentError) as caught:
        options().load("test")
    assert str(caught.value) == (
        f"data.path: the classes differ: {folder / 'train'} has no cow, "
        f"{folder / 'test'} has no dog."
    )


def test_unfit_folders_are_explained(folder, options, tmp_path):
    layout = "must hold train/CLASS/ and test/CLASS/ or val/CLASS/ with images"
    nowhere = tmp_path / "nowhere"
    message = f"data.path: {nowhere} {layout}, but there is no {nowhere / 'train'}"
    with pytest.raises(ExperimentError, match=message):
        options(path=nowhere).load("test")
    (folder / "test").rename(folder / "eval")
    message = f"{layout}, but there is no {folder / 'test'} or {folder / 'val'}"
    with pytest.raises(ExperimentError, match=message):
        options().load("test")
    (folder / "test").mkdir()
    message = f"data.path: there is no folder of a class in {folder / 'test'}"
    with pytest.raises(ExperimentError, match=message):
        options().load("test")


def test_only_changed_and_unreadable_images_are_checked_again(folder, options, monkeypatch):
    checked = []

    read_image = image_files.read_image_and_frames

    def read(path):
        checked.append(path)
        return read_image(path)

    monkeypatch.setattr(image_files, "read_image_and_frames", read)
    broken = folder / "train" / "dog" / "1.jpg"
    broken.write_bytes(b"no image")
    skip = options(unreadable="skip")
    assert len(skip.load("validation").skipped) == 1
    assert len(checked) == 10
    checked.clear()
    skip.load("test")
    assert sorted(checked) == sorted(map(str, [broken, *folder.glob("test/*/*")]))
    checked.clear()
    changed = write(folder / "train" / "cat" / "4.jpg", seed=5, height=9)
    assert skip.model_copy(update={"size": 4}).load("test").input_shape == (3, 4, 4)
    assert sorted(checked) == sorted(map(str, [broken, changed]))
    checked.clear()
    with pytest.raises(ExperimentError, match=f"{changed} 12x9"):
        skip.load("test")
    assert checked == [str(broken)]


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", None])
def test_damaged_cache_is_made_anew(options, damage):
    options().load("test")
    (file,) = options().cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-8] if damage is None else damage)
    assert options().load("test").input_shape == (3, 8, 12)
    assert file.read_bytes() == whole


@pytest.mark.parametrize("in_memory", [False, True])
def test_images_are_used_as_they_are_shown_in_memory_and_from_files(folder, options, in_memory):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = folder / "test" / "cat" / "0.png"
    stored = np.zeros((12, 8, 4), np.uint8)
    stored[:6, :, :] = (90, 60, 30, 255)
    Image.fromarray(stored).save(turned, exif=exif)
    data = options(in_memory=in_memory).load("test")
    assert data.input_shape == (3, 8, 12)
    image = data.evaluation[0][0] * 255
    assert image[:, 0, 0].tolist() == [255, 255, 255]
    assert image[:, 0, -1].tolist() == [90, 60, 30]


@pytest.mark.parametrize("in_memory", [False, True])
def test_every_file_is_used_or_accounted_for(folder, options, in_memory):
    train, test = folder / "train", folder / "test"
    for name in ("cat/5.GIF", "cat/below/6.jfif", "dog/5.webp"):
        write(train / name)
    for name in ("cat/.hidden.png", ".ipynb_checkpoints/0.png"):
        write(train / name)
    pages = [Image.new("RGB", (12, 8))] * 3
    pages[0].save(test / "cat" / "pages.tiff", save_all=True, append_images=pages[1:])
    (train / "cat" / "Thumbs.db").write_bytes(b"db")
    write(train / "stray.png")
    write(folder / "extra" / "0.png")
    (train / "latest").symlink_to(train)
    (test / "dog" / "same.png").symlink_to(test / "dog" / "0.png")
    data = options(in_memory=in_memory).load("test")
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.evaluation)) == (13, 5)
    assert sorted(data.left_out) == sorted(
        [
            f"{train}/cat/Thumbs.db: no image by its name",
            f"{train}/latest: a link to a folder above it, {train}",
            f"{train}/stray.png: in no folder of a class",
            f"{folder}/extra: beside the folders that are used",
            f"{test}/dog/same.png: the same file as {test}/dog/0.png",
            f"{test}/cat/pages.tiff: all of its 3 frames but the first",
        ]
    )
    assert data.remarks == ("Hidden files and folders, their names begin with a dot, skipped: 2.",)
    again = options(in_memory=in_memory).load("test")
    assert again.left_out == data.left_out


@pytest.mark.parametrize("in_memory", [False, True])
def test_what_is_no_regular_file_is_unreadable_and_not_waited_for(folder, options, in_memory):
    os.mkfifo(folder / "train" / "cat" / "pipe.png")
    (folder / "train" / "cat" / "lost.png").symlink_to(folder / "nowhere")
    (folder / "train" / "cat" / "empty.png").touch()
    data = options(in_memory=in_memory, unreadable="skip").load("test")
    assert len(data.train) == 10
    empty, lost, pipe = data.skipped
    assert "empty.png: cannot identify" in empty
    assert lost.endswith("lost.png: No such file or directory")
    assert pipe.endswith("pipe.png: not a regular file")


def test_folder_that_may_not_be_read_ends_the_run_or_is_skipped(folder, options, monkeypatch):
    (folder / "train" / "cat" / "closed").mkdir()
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ExperimentError, match=r"1 folders cannot be read(.|\n)*closed: Permission"):
        options().load("test")
    data = options(unreadable="skip").load("test")
    assert data.skipped == (f"{folder}/train/cat/closed: Permission denied",)


def test_missing_class_is_explained_by_what_was_left_out(folder, options):
    for path in folder.glob("test/dog/*"):
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(ExperimentError, match=r"class dog has no readable(.|\n)*0.heic: no image"):
        options().load("test")


def test_another_way_of_reading_reuses_nothing(folder, options, monkeypatch):
    data = options()
    data.load("test")
    before = fingerprint(Config(data=data))
    monkeypatch.setattr(image_files, "READING", image_files.READING + 1)
    monkeypatch.setattr(ImageFolder, "reading", ImageFolder.reading + 1)
    data.load("test")
    assert len(list(data.cache.iterdir())) == 2
    assert fingerprint(Config(data=data)) != before


@pytest.fixture
def classes(folder):
    """Folder that contains the classes directly."""
    return folder / "train"


def test_fraction_of_each_class_is_kept_for_testing(classes, options):
    data = options(path=classes, test_fraction=0.4).load("test")
    assert data.classes == ("cat", "dog")
    assert sorted(label for _, label in data.train) == [0, 0, 0, 1, 1, 1]
    assert sorted(label for _, label in data.evaluation) == [0, 0, 1, 1]
    assert data.remarks == (
        "Files kept for testing: 4 of 10, a share of 0.4 of each class (data.test_fraction), drawn "
        "at random but always the same.",
    )

    def contents(samples):
        return {image.numpy().tobytes() for image, _ in samples}

    again = options(path=classes, test_fraction=0.4, in_memory=True).load("test")
    assert contents(again.evaluation) == contents(data.evaluation)
    chosen = options(path=classes, test_fraction=0.4, validation_fraction=0.4).load("validation")
    assert len(chosen.train) == 4
    for part in (chosen.train, chosen.evaluation):
        assert contents(part) < contents(data.train)


def test_unreadable_images_do_not_change_who_is_tested(classes, options):
    def tested(**changes):
        data = options(path=classes, test_fraction=0.4, **changes).load("test")
        return {image.numpy().tobytes() for image, _ in data.evaluation}

    before = tested()
    (classes / "cat" / "0.jpg").write_bytes(b"no image")
    assert len(tested(unreadable="skip") - before) == 0


def test_class_without_a_readable_image_to_train_on_is_named(classes, options):
    pictures = sorted((classes / "cat").iterdir())
    for path in pictures[:-1]:
        path.write_bytes(b"no image")
    message = rf"class cat has no readable file in {classes} to (train|test) on\."
    with pytest.raises(ExperimentError, match=message):
        options(path=classes, test_fraction=0.4, unreadable="skip").load("test")


def test_classes_without_a_fraction_are_refused_by_its_name(classes, options):
    message = f"there is no {classes / 'train'}. Where .* give data.test_fraction, the share"
    with pytest.raises(ExperimentError, match=message):
        options(path=classes).load("test")


@pytest.mark.parametrize("parts", [("train", "test"), ("Training", "Validation"), ("train",)])
def test_fraction_of_what_is_split_already_is_refused(folder, options, parts):
    (folder / "test").rename(folder / "elsewhere")
    for name in parts[1:]:
        write(folder / name / "cat" / "0.png")
    if parts[0] != "train":
        (folder / "train").rename(folder / parts[0])
    message = r"data.test_fraction: 0.2 is not allowed, because .* is split already"
    with pytest.raises(ExperimentError, match=message):
        options(test_fraction=0.2).load("test")


def test_class_may_be_called_train(folder, options):
    for name in ("train", "car"):
        for index in range(4):
            write(folder / "vehicles" / name / f"{index}.png")
    data = options(path=folder / "vehicles", test_fraction=0.5).load("test")
    assert data.classes == ("car", "train")


@pytest.mark.parametrize(
    ("fraction", "message"),
    [
        (0.2, "holds out no sample of class rare"),
        (0.8, "keeps no sample of class rare"),
        (0.01, "0.01 holds out 0 of 42 samples"),
    ],
)
def test_fraction_that_leaves_a_class_out_is_refused_before_reading(
    tmp_path, options, monkeypatch, fraction, message
):
    for name, count in (("common", 40), ("rare", 2)):
        for index in range(count):
            (tmp_path / "few" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "few" / name / f"{index}.png").write_bytes(b"not looked at")
    with pytest.raises(ExperimentError, match=message) as caught:
        options(path=tmp_path / "few", test_fraction=fraction).load("test")
    assert str(caught.value).startswith("data.test_fraction: ")


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_fraction_out_of_range_is_refused(options, fraction):
    with pytest.raises(ValidationError, match="test_fraction"):
        options(test_fraction=fraction)


@pytest.mark.parametrize("in_memory", [False, True])
def test_names_that_are_not_utf8_are_used_and_can_be_told(folder, options, in_memory):
    cafe = os.fsdecode(b"caf\xe9")
    for part in ("train", "test"):
        (folder / part / "cat").rename(folder / part / cafe)
    (folder / "train" / cafe / f"{cafe}.png").write_bytes(b"no image")
    (folder / "train" / cafe / f"{cafe}.txt").write_bytes(b"no image")
    root = folder.rename(folder.with_name(cafe))
    given = options(path=root, in_memory=in_memory, unreadable="skip", cache=root / "cache")
    data = given.load("test")
    assert len(data.train) == 10
    told = "\n".join([*data.classes, *data.skipped, *data.left_out])
    assert told.isascii()
    config = Config(run_dir=root / "run", data=given)
    (folder.parent / "recipe.toml").write_text(config.to_toml(), encoding="utf-8")
    assert read_recipe(folder.parent / "recipe.toml") == config
