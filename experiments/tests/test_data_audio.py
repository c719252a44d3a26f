import os
import re

import librosa
import numpy as np
import pytest
import soundfile
import torch
from diffstride_experiments.data import AudioFolder, audio_folder
from diffstride_experiments.data import log_mel as log_mel_module
from diffstride_experiments.data.log_mel import LogMel
from diffstride_experiments.data.sound_files import read_sound
from diffstride_experiments.errors import ExperimentError
from pydantic import ValidationError

BY_SPEAKER = r"(?P<label>[^/]+)/(?P<group>[a-z]+)_\d"


def sine(frequency, seconds=0.2, rate=4000):
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def write(path, samples=None, rate=4000):
    path.parent.mkdir(parents=True, exist_ok=True)
    if samples is None:
        seed = list(path.as_posix().encode())
        samples = 0.1 * np.random.default_rng(seed).standard_normal(rate // 5)
    soundfile.write(path, samples, rate)
    return path


@pytest.fixture
def folder(tmp_path):
    """Folder with two classes, three speakers and two clips each: class/speaker_index.wav."""
    root = tmp_path / "sounds"
    for label in ("no", "yes"):
        for speaker in ("ada", "bob", "cleo"):
            for index in range(2):
                write(root / label / f"{speaker}_{index}.wav")
    return root


@pytest.fixture
def options(folder, tmp_path):
    def make(**changes):
        small = {"sample_rate": 4000, "seconds": 0.2, "mel_bands": 10}
        return AudioFolder(**{"path": folder, "cache": tmp_path / "cache", **small, **changes})

    return make


@pytest.fixture
def reads(monkeypatch):
    """Paths of the files that are read."""
    paths, read = [], log_mel_module.read_sound

    def recording(path):
        paths.append(path)
        return read(path)

    monkeypatch.setattr(log_mel_module, "read_sound", recording)
    return paths


def log_mel(**changes):
    defaults = {"sample_rate": 8000, "samples": 8000, "window": 200, "hop": 80, "bands": 40}
    return LogMel(**defaults | changes)


def test_log_mel_is_what_its_definition_says(tmp_path):
    samples = np.random.default_rng(0).standard_normal(8000).astype(np.float32) / 10
    found = log_mel()(write(tmp_path / "a.wav", samples, 8000))
    samples = soundfile.read(tmp_path / "a.wav")[0]
    padded = np.pad(samples, 100)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(200) / 200)
    frames = [padded[start : start + 200] * window for start in range(0, 8001, 80)]
    power = np.abs(np.fft.rfft(frames)) ** 2
    mel = librosa.filters.mel(sr=8000, n_fft=200, n_mels=40) @ power.T
    assert found.shape == log_mel().shape == (40, 101)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.log(mel + 1e-6), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 16000])
def test_energy_of_a_sine_is_in_the_band_of_its_frequency(tmp_path, rate):
    centres = librosa.mel_frequencies(n_mels=42, fmin=0, fmax=4000)[1:-1]
    for band in (5, 17, 33):
        tone = sine(centres[band], 1.0, rate)
        found = log_mel()(write(tmp_path / "tone.wav", np.stack([tone, tone], axis=1), rate))
        assert (found[:, 10:-10].argmax(axis=0) == band).all()


def test_silence_and_padding_are_the_log_of_the_offset(tmp_path):
    silence = log_mel()(write(tmp_path / "silence.wav", np.zeros(8000), 8000))
    np.testing.assert_allclose(silence, np.log(1e-6), rtol=1e-6)
    half = log_mel()(write(tmp_path / "half.wav", sine(1000, 0.5, 8000), 8000))
    np.testing.assert_allclose(half[:, 53:], np.log(1e-6), rtol=1e-6)
    assert half[:, :48].max(axis=0).min() > -5


@pytest.mark.parametrize("samples", [799, 800, 801])
@pytest.mark.parametrize("window", [75, 76])
@pytest.mark.parametrize("hop", [25, 32])
def test_shape_is_that_of_the_spectrogram(tmp_path, samples, window, hop):
    odd = log_mel(samples=samples, window=window, hop=hop, bands=10)
    assert odd(write(tmp_path / "a.wav", np.zeros(900), 8000)).shape == odd.shape


def test_channels_are_averaged_and_long_clips_cut(tmp_path):
    left, right = np.random.default_rng(0).standard_normal((2, 9000)) / 10
    stereo = log_mel()(write(tmp_path / "stereo.flac", np.stack([left, right], axis=1), 8000))
    mono = log_mel()(write(tmp_path / "mono.flac", (left + right)[:8000] / 2, 8000))
    # Only the last window reaches beyond the end, where both are padded with zeros.
    np.testing.assert_allclose(stereo, mono, atol=0.02)


def test_cache_that_cannot_be_written_is_refused_before_reading(folder, options, reads):
    with pytest.raises(ExperimentError, match=r"data\.cache: .*ada_0\.wav must be a folder"):
        options(test_fraction=0.5, cache=folder / "no" / "ada_0.wav").load("test")
    assert not reads


def test_classes_and_clips_are_found_in_all_folders(folder, options):
    write(folder / "no" / "dora_0.flac")
    write(folder / "yes" / "dora_1.OGG", sine(500))
    (folder / "yes" / "notes.txt").write_text("no sound")
    data = options(test_fraction=0.5).load("test", workers=1)
    assert data.classes == ("no", "yes")
    assert data.input_shape == (1, 10, 21)
    assert data.skipped == ()
    labels = [label for part in (data.train, data.evaluation) for _, label in part]
    assert sorted(labels) == [0] * 7 + [1] * 7
    for part in (data.train, data.evaluation):
        assert all(clip.shape == (1, 10, 21) and clip.dtype == torch.float32 for clip, _ in part)
    assert (len(data.train), len(data.evaluation)) == (7, 7)


def test_bands_are_standardised_over_the_training_clips(options):
    data = options(test_fraction=0.5).load("test")
    train = torch.cat([clip for clip, _ in data.train]).double()
    torch.testing.assert_close(train.mean((0, 2)), torch.zeros(10).double(), atol=1e-5, rtol=0)
    std = train.std((0, 2), correction=0)
    torch.testing.assert_close(std, torch.ones(10).double(), atol=1e-5, rtol=0)
    evaluation = torch.cat([clip for clip, _ in data.evaluation])
    assert evaluation.mean((0, 2)).abs().min() > 1e-4


def contents(samples):
    return {clip.numpy().tobytes() for clip, _ in samples}


def test_fractions_are_held_out_stratified(options):
    test = options(test_fraction=0.5).load("test")
    again = options(test_fraction=0.5).load("test")
    assert [label for _, label in test.evaluation].count(0) == 3
    assert contents(test.evaluation) == contents(again.evaluation)
    assert contents(test.evaluation).isdisjoint(contents(test.train))
    validation = options(test_fraction=0.5, validation_fraction=0.34).load("validation")
    assert sorted(label for _, label in validation.train) == [0, 0, 1, 1]
    assert sorted(label for _, label in validation.evaluation) == [0, 1]


def speakers(folder, options, evaluate_on):
    """Return the speakers of the training and the evaluation part, told apart by loudness."""
    for level, speaker in enumerate(("ada", "bob", "cleo")):
        for path in folder.glob(f"*/{speaker}_*.wav"):
            write(path, sine(1000) * 100.0**-level)
    loudest = [
        [clip.max().item() for clip, _ in part]
        for data in [options.load(evaluate_on)]
        for part in (data.train, data.evaluation)
    ]
    levels = sorted({round(value, 2) for part in loudest for value in part}, reverse=True)
    return [sorted(levels.index(round(value, 2)) for value in part) for part in loudest]


def test_groups_are_held_out_whole(folder, options):
    grouped = options(pattern=BY_SPEAKER, test_groups=("bob",), validation_groups=("cleo",))
    # Test: training on Ada (loudest) and Cleo. Validation: training on Ada, and Bob is unseen.
    assert speakers(folder, grouped, "test") == [[0] * 4 + [2] * 4, [1] * 4]
    assert speakers(folder, grouped, "validation") == [[0] * 4, [1] * 4]


def test_counts_are_taken_from_groups(folder, options):
    grouped = options(pattern=BY_SPEAKER, test_groups=("bob",), train_count=4, evaluation_count=2)
    data = grouped.load("test")
    assert sorted(label for _, label in data.train) == [0, 0, 1, 1]
    assert sorted(label for _, label in data.evaluation) == [0, 1]
    with pytest.raises(ExperimentError, match=r"data.train_count: 9 is more than the 8 there are"):
        grouped.model_copy(update={"train_count": 9}).load("test")


@pytest.mark.parametrize(
    ("changes", "evaluate_on", "message"),
    [
        (
            {"test_groups": ("bob", "zoe")},
            "test",
            "data.test_groups: there is no zoe; groups are ada, bob, cleo.",
        ),
        (
            {"test_groups": ("bob",), "validation_groups": ("zoe",)},
            "test",
            "data.validation_groups: there is no zoe; groups are ada, bob, cleo.",
        ),
        (
            {"validation_groups": ("bob",)},
            "test",
            "data.test_groups must be given to evaluate on test; groups are ada, bob, cleo.",
        ),
        (
            {"test_groups": ("bob",)},
            "validation",
            "data.validation_groups must be given to evaluate on validation; "
            "groups are ada, bob, cleo.",
        ),
        (
            {"test_groups": ("ada", "bob", "cleo")},
            "test",
            "data: class no has none of the 0 training samples.",
        ),
    ],
)
def test_groups_that_do_not_fit_are_named(options, changes, evaluate_on, message):
    with pytest.raises(ExperimentError, match=re.escape(message)):
        options(pattern=BY_SPEAKER, **changes).load(evaluate_on)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": r"(?P<class>\d)_.*"}, r"must have a group \(\?P<label>...\)"),
        ({"pattern": r"(?P<label>\d"}, "must be a regular expression: missing"),
        ({"test_groups": ("bob",)}, r"need a \(\?P<group>...\) in pattern"),
        (
            {"pattern": BY_SPEAKER, "test_groups": ("a", "b"), "validation_groups": ("b", "c")},
            "test_groups and validation_groups both have b",
        ),
        ({"hop_ms": 0.1}, "hop_ms must be at least two samples long, got 0.1"),
        ({"window_ms": 0.1}, "window_ms must be at least two samples long, got 0.1"),
        ({"seconds": 0.02}, "seconds must be at least one window, 0.025, got 0.02"),
        ({"mel_bands": 0}, "greater than 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, changes, message):
    with pytest.raises(ValidationError, match=message):
        options(**changes)


def test_paths_that_do_not_match_are_listed(folder, options):
    with pytest.raises(ExperimentError) as caught:
        options(pattern=r"(?P<label>yes)/ada.*").load("test")
    assert str(caught.value) == (
        "data.pattern: (?P<label>yes)/ada.* does not match 10 of 12 paths: "
        "no/ada_0, no/ada_1, no/bob_0, no/bob_1, no/cleo_0, ..."
    )
    with pytest.raises(ExperimentError, match=r"match 2 of 12 paths: no/cleo_0, no/cleo_1\.$"):
        options(pattern=r"(?P<label>yes|no)/.*(?<!no/cleo_[01])").load("test")


def test_folder_without_sounds_is_explained(options, tmp_path):
    nowhere = tmp_path / "nowhere"
    message = f"data.path: there is no folder {nowhere}; it must hold .wav, .flac or .ogg files"
    with pytest.raises(ExperimentError, match=message):
        options(path=nowhere).load("test")
    nowhere.mkdir()
    message = f"data.path: there is no .wav, .flac or .ogg file in {nowhere}"
    with pytest.raises(ExperimentError, match=message):
        options(path=nowhere).load("test")


def test_more_bands_than_windows_can_tell_apart_are_refused(options):
    message = (
        "data.mel_bands: 128 are too many for windows of 25 ms at 4000 Hz; some would be empty."
    )
    with pytest.raises(ExperimentError, match=re.escape(message)):
        options(mel_bands=128).load("test")


@pytest.mark.parametrize("cached", [False, True])
def test_unreadable_clips_end_the_run_or_are_skipped(folder, options, cached):
    broken = folder / "no" / "bob_1.wav"
    broken.write_bytes(b"RIFF no sound")
    odd = folder / "no" / "cleo_0.wav"
    soundfile.write(odd, np.full(800, np.nan), 4000, subtype="FLOAT")
    short = write(folder / "yes" / "ada_0.wav", sine(500, 0.024))
    if cached:
        options(unreadable="skip").load("test")
    with pytest.raises(ExperimentError) as caught:
        options().load("test")
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("data.path: 3 of 12 files cannot be read.")
    assert lines[0].startswith(f"  {broken}: Format not recognised")
    assert lines[1] == f"  {odd}: Audio buffer is not finite everywhere"
    assert lines[2] == f"  {short}: too short: 0.024 s, less than a window of 0.025 s"

    data = options(unreadable="skip").load("test")
    assert [f"  {line}" for line in data.skipped] == lines
    labels = [label for part in (data.train, data.evaluation) for _, label in part]
    assert sorted(labels) == [0] * 4 + [1] * 5
    assert all(clip.isfinite().all() for part in (data.train, data.evaluation) for clip, _ in part)


def test_class_of_unreadable_clips_alone_is_named(folder, options):
    for path in folder.glob("yes/*"):
        path.write_bytes(b"no sound")
    message = f"data.path: class yes has no readable file in {folder}"
    with pytest.raises(ExperimentError, match=message):
        options(unreadable="skip").load("test")


def test_held_out_group_of_unreadable_clips_alone_is_an_error(folder, options):
    for path in folder.glob("*/bob_*"):
        path.write_bytes(b"no sound")
    with pytest.raises(ExperimentError, match="there are no samples to evaluate on"):
        options(unreadable="skip", pattern=BY_SPEAKER, test_groups=("bob",)).load("test")


def test_cached_spectrograms_are_read_again_only_if_files_or_features_change(
    folder, options, reads
):
    first = options().load("test")
    assert len(reads) == 12
    reads.clear()
    # The spectrograms depend neither on the split nor on the pattern.
    again = options(test_groups=("bob",), pattern=BY_SPEAKER).load("test")
    assert reads == []
    assert (len(again.train), again.input_shape) == (8, first.input_shape)
    cached = options().load("test")
    assert reads == []
    assert contents(cached.train) == contents(first.train)

    changes = [
        {"sample_rate": 3000},
        {"seconds": 0.21},
        {"window_ms": 26},
        {"hop_ms": 11},
        {"mel_bands": 9},
    ]
    for change in changes:
        options(**change).load("test")
        assert len(reads) == 12, change
        reads.clear()

    path = folder / "no" / "ada_0.wav"
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1_000_000_000))
    options().load("test")
    assert len(reads) == 12


def test_mended_clip_is_read_though_nothing_says_that_it_changed(folder, options, reads):
    path = folder / "no" / "ada_0.wav"
    status, sound = path.stat(), path.read_bytes()
    path.write_bytes(bytes(len(sound)))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(options(unreadable="skip").load("test").skipped) == 1
    path.write_bytes(sound)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    reads.clear()
    assert options().load("test").skipped == ()
    assert reads == [str(path)]
    reads.clear()
    options().load("test")
    assert reads == []


@pytest.mark.parametrize("damage", ["empty", "cut", "other"])
def test_damaged_cache_is_computed_anew(options, reads, damage):
    data = options().load("test")
    (file,) = options().cache.iterdir()
    whole = file.read_bytes()
    if damage == "other":
        with file.open("wb") as content:
            np.save(content, np.zeros((12, 10, 20), np.float32))
    else:
        file.write_bytes(b"" if damage == "empty" else whole[:-4])
    reads.clear()
    again = options().load("test")
    assert len(reads) == 12
    assert contents(again.train) == contents(data.train)
    assert file.read_bytes() == whole


def test_clip_whose_spectrogram_overflows_is_unreadable(folder, options):
    path = folder / "no" / "ada_0.wav"
    samples = np.full((800, 1), 1e30, np.float32)
    soundfile.write(path, samples, 4000, subtype="FLOAT")
    data = options(unreadable="skip").load("test")
    assert data.skipped == (f"{path}: values are too large",)


def test_empty_class_folder_is_named(folder, options):
    (folder / "maybe").mkdir()
    with pytest.raises(ExperimentError, match=f"class maybe has no .* file in {folder}"):
        options().load("test")
    # With a pattern other than the default, folders need not be classes and may be empty.
    by_speaker = options(pattern=BY_SPEAKER, test_groups=("ada",))
    assert by_speaker.load("test").classes == ("no", "yes")


def test_one_class_is_refused(folder, options):
    for path in (folder / "yes").iterdir():
        path.unlink()
    (folder / "yes").rmdir()
    with pytest.raises(ExperimentError, match="at least two classes, found no"):
        options().load("test")


def test_empty_class_name_is_no_match(options):
    with pytest.raises(ExperimentError, match="does not match 12 of 12 paths"):
        options(pattern=r"(?P<label>x?).*").load("test")


FORMATS = [
    ("WAV", "PCM_16"),
    ("WAV", "IMA_ADPCM"),
    ("WAVEX", "PCM_24"),
    ("RF64", "PCM_16"),
    ("FLAC", None),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
]


@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
def test_sound_that_is_cut_off_anywhere_is_unreadable(tmp_path, kind, subtype):
    path = tmp_path / "a"
    noise = 0.1 * np.random.default_rng(0).standard_normal(16_000)
    soundfile.write(path, noise, 16_000, format=kind, subtype=subtype)
    samples, rate = read_sound(str(path))
    assert (len(samples) >= 16_000, rate) == (True, 16_000)
    whole = path.read_bytes()
    for kept in (len(whole) // 3, len(whole) * 2 // 3, len(whole) - 2):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=r"."):
            read_sound(str(path))


@pytest.mark.parametrize("byteorder", ["LITTLE", "BIG"])
def test_wave_file_may_have_other_chunks_and_no_known_length(tmp_path, byteorder):
    path = tmp_path / "a.wav"
    soundfile.write(
        path,
        np.zeros(999),
        8000,
        subtype="PCM_U8" if byteorder == "LITTLE" else None,
        endian=byteorder,
    )
    whole = path.read_bytes()
    path.write_bytes(whole + b"LIST")
    assert len(read_sound(str(path))[0]) == 999
    start = whole.index(b"data") + 4
    path.write_bytes(whole[:start] + b"\xff" * 4 + whole[start + 4 :])
    assert len(read_sound(str(path))[0]) >= 999


def test_sound_that_ends_between_pages_or_after_others_is_told_apart(tmp_path):
    path = tmp_path / "a.ogg"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(64_000), 16_000)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"OggS")])
    with pytest.raises(ValueError, match="cut off in the middle"):
        read_sound(str(path))
    path.write_bytes(whole + b"TAG")
    assert len(read_sound(str(path))[0]) == 64_000


@pytest.mark.parametrize("channels", [1, 2])
def test_sphere_file_that_is_cut_off_is_unreadable(tmp_path, channels):
    path = tmp_path / "a.wav"  # the suffix that speech corpora use
    soundfile.write(path, np.zeros((999, channels)), 8000, format="NIST", subtype="PCM_16")
    assert read_sound(str(path))[0].shape == (999, channels)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="of 999 samples can be decoded"):
        read_sound(str(path))


def test_sounds_cut_off_are_listed_and_others_accounted_for(folder, options):
    path = folder / "no" / "ada_0.wav"
    path.write_bytes(path.read_bytes()[:-200])
    (folder / "no" / "up").symlink_to(folder)
    (folder / "no" / "song.mp3").touch()
    (folder / ".cache").mkdir()
    data = options(unreadable="skip").load("test")
    assert data.skipped == (f"{path}: cut off in the middle of its data",)
    assert data.left_out == (
        f"{folder}/no/song.mp3: no .wav, .flac or .ogg file by its name",
        f"{folder}/no/up: a link to a folder above it, {folder}",
    )
    assert len(data.train) + len(data.evaluation) == 11
    assert data.remarks == (
        "Files kept for testing: 2 of 12, a share of 0.2 of each class (data.test_fraction), drawn "
        "at random but always the same.",
        "Hidden files and folders, their names begin with a dot, skipped: 1.",
    )


def test_names_that_are_not_utf8_are_read_and_can_be_told(folder, options):
    cafe = os.fsdecode(b"caf\xe9")
    (folder / "no").rename(folder / cafe)
    write(folder / "yes" / "a.wav").rename(folder / "yes" / f"{cafe}.wav")
    data = options(path=folder).load("test")
    assert data.classes == (r"caf\udce9", "yes")
    assert len(data.train) + len(data.evaluation) == 13
    pattern = r"(?P<group>[^/]+)/(?P<label>ada|bob|cleo|a|caf).*"
    grouped = options(pattern=pattern, test_groups=(r"caf\udce9",)).load("test")
    assert len(grouped.evaluation) == 6


def test_fraction_that_leaves_a_class_out_is_refused_before_reading(folder, options, reads):
    for index in range(40):
        (folder / "no" / f"more_{index}.wav").write_bytes(b"not looked at")
    for path in sorted((folder / "yes").iterdir())[2:]:
        path.unlink()
    with pytest.raises(ExperimentError, match=r"test_fraction: 0.2 holds out no .* class yes"):
        options().load("test")
    assert reads == []


def test_another_way_of_reading_reuses_no_spectrogram(options, reads, monkeypatch):
    options().load("test")
    reads.clear()
    monkeypatch.setattr(audio_folder, "READING", audio_folder.READING + 1)
    options().load("test")
    assert len(reads) == 12


def test_clips_are_standardised_on_their_own(options):
    speakers = {"pattern": BY_SPEAKER, "test_groups": ("ada",)}
    data = options(**speakers, standardise="clips").load("test")
    for clip, _ in (data.train[0], data.evaluation[0]):
        assert clip.dtype == torch.float32
        torch.testing.assert_close(clip.mean(-1), torch.zeros(1, 10), rtol=0, atol=1e-5)
        assert clip.std(correction=0).item() == pytest.approx(1, rel=1e-4)


def test_training_spectrograms_are_masked_within_bounds(options):
    speakers = {"pattern": BY_SPEAKER, "test_groups": ("ada",)}
    plain, masked = options(**speakers).load("test"), options(**speakers, mask=0.3).load("test")
    assert torch.equal(masked.evaluation[0][0], plain.evaluation[0][0])
    clip, seen = plain.train[0][0][0], set()
    for seed in range(400):
        torch.manual_seed(seed)
        found = masked.train[0][0][0]
        hidden = found != clip
        assert (found[hidden] == 0).all()
        bands, frames = (int(hidden.all(axis).sum()) for axis in (1, 0))
        assert torch.equal(hidden, hidden.all(1)[:, None] | hidden.all(0))
        seen.add((bands, frames))
    assert {bands for bands, _ in seen} == set(range(4))  # of 10
    assert {frames for _, frames in seen} == set(range(7))  # of 21


def test_training_spectrograms_are_shifted_within_bounds(options):
    speakers = {"pattern": BY_SPEAKER, "test_groups": ("ada",)}
    plain, shifted = options(**speakers).load("test"), options(**speakers, shift=0.2).load("test")
    assert torch.equal(shifted.evaluation[0][0], plain.evaluation[0][0])
    (clip, _), most = plain.train[0], (2, 4)  # of 10 bands and 21 frames
    assert clip.shape == (1, 10, 21)
    padded = np.pad(clip[0].numpy(), [(m, m) for m in most], mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, clip.shape[1:])
    seen = set()
    for seed in range(400):
        torch.manual_seed(seed)
        equal = (windows == shifted.train[0][0][0].numpy()).all(axis=(-2, -1))
        assert equal.sum() == 1
        seen.add(tuple(np.argwhere(equal)[0].tolist()))
    assert seen == set(np.ndindex(5, 9))
