import shutil

import pytest
import torch
from diffstride_experiments.checkpoint import Checkpoints
from diffstride_experiments.errors import ExperimentError


@pytest.fixture
def checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path / "conv", "conv")
    for step in (1, 2, 3):
        checkpoints.save(step, {"weights": torch.full((300,), float(step)), "step": step})
    return checkpoints


def newest(tmp_path):
    return tmp_path / "conv" / "00000003.pt"


def test_no_checkpoint_is_no_error(tmp_path):
    assert Checkpoints(tmp_path / "none", "conv").load() == (None, [])


def test_the_newest_two_are_kept(checkpoints, tmp_path):
    names = sorted(path.name for path in (tmp_path / "conv").iterdir())
    assert names == ["00000002.pt", "00000003.pt"]
    state, refused = checkpoints.load()
    assert (state["step"], refused) == (3, [])
    assert torch.equal(state["weights"], torch.full((300,), 3.0))


def damage(content, how):
    if isinstance(how, float):
        return content[: int(how * len(content))]
    if how == "flipped":
        # One bit of a weight is flipped: only a checksum shows that.
        place = content.index(torch.full((4,), 3.0).numpy().tobytes())
        return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    return how


@pytest.mark.parametrize("how", [0.0, 0.1, 0.5, 0.99, "flipped", b"not a checkpoint"])
def test_damaged_checkpoint_is_refused_and_the_last_good_one_used(checkpoints, tmp_path, how):
    path = newest(tmp_path)
    path.write_bytes(damage(path.read_bytes(), how))
    state, (reason,) = checkpoints.load()
    assert state["step"] == 2
    assert reason.startswith(f"{path} is damaged or not a checkpoint (")
    assert reason.endswith("It is now 00000003.refused.")
    # It does not take the place of a valid checkpoint.
    checkpoints.save(4, {"step": 4})
    assert sorted(kept.name for kept in path.parent.iterdir()) == [
        "00000002.pt",
        "00000003.refused",
        "00000004.pt",
    ]


def test_files_of_other_names_are_left_alone(checkpoints, tmp_path):
    best = tmp_path / "conv" / "best.pt"
    best.write_bytes(b"mine")
    checkpoints.save(4, {"step": 4})
    assert checkpoints.load()[0]["step"] == 4
    assert best.read_bytes() == b"mine"


class Evil:
    def __reduce__(self):
        return print, ("code of the file was run",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"weights": torch.ones(3)}, "is not a checkpoint of this program"),
        ([1, 2], "is not a checkpoint of this program"),
        (Evil(), "is damaged or not a checkpoint"),
    ],
)
def test_foreign_file_is_refused(checkpoints, tmp_path, content, reason, capsys):
    torch.save(content, newest(tmp_path))
    state, (refused,) = checkpoints.load()
    assert state["step"] == 2
    assert reason in refused
    assert not capsys.readouterr().out


def test_checkpoint_of_another_training_is_refused(checkpoints, tmp_path):
    other = Checkpoints(tmp_path / "spectral", "spectral")
    other.save(1, {"step": 1})
    shutil.copy(tmp_path / "spectral" / "00000001.pt", newest(tmp_path))
    state, (refused,) = checkpoints.load()
    assert state["step"] == 2
    assert "is a checkpoint of spectral, not of conv" in refused


def test_nothing_but_damaged_checkpoints_is_an_error(checkpoints, tmp_path):
    for path in (tmp_path / "conv").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ExperimentError, match="starts again") as refused:
        checkpoints.load()
    assert str(refused.value).count("is damaged") == 2
    assert checkpoints.load() == (None, [])
