"""Log-mel spectrograms of audio files."""

import warnings
from dataclasses import dataclass

import numpy as np

from diffstride_experiments.data.sound_files import read_sound

__all__ = ["LogMel"]

# Added before the logarithm: silence is log(OFFSET).
OFFSET = 1e-6


@dataclass(frozen=True)
class LogMel:
    """Compute log-mel spectrograms, ``log(mel + 1e-6)``.

    Channels are averaged, samples are resampled to one rate, and clips are cut or padded with zeros
    at the end to one length. ``mel`` is librosa's mel power spectrogram: Hann windows centred on
    multiples of the hop, Slaney's mel scale and area norm.

    Attributes
    ----------
    sample_rate : int
        Sample rate in Hz.
    samples : int
        Length of the clips in samples.
    window, hop : int
        Length and distance of the windows in samples.
    bands : int
        Mel bands from 0 Hz to half the sample rate.
    """

    sample_rate: int
    samples: int
    window: int
    hop: int
    bands: int

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of bands and frames of a spectrogram."""
        # Half a window of zeros, rounded down, is added at both ends.
        return self.bands, 1 + (self.samples - self.window % 2) // self.hop

    def __call__(self, path: str) -> np.ndarray:
        """Return the spectrogram of a file.

        Parameters
        ----------
        path : str
            Audio file that soundfile can read.

        Returns
        -------
        ndarray of float32, shape (bands, frames)

        Raises
        ------
        ValueError
            If the file is not audio or is cut off, if the clip is shorter than a window, or if its
            values overflow.
        librosa.ParameterError
            If the clip has values that are not finite.
        """
        import librosa

        channels, rate = read_sound(path)
        clip = channels.mean(axis=1)
        if len(clip) < self.window * rate / self.sample_rate:
            raise ValueError(
                f"too short: {len(clip) / rate:g} s, less than a window of "
                f"{self.window / self.sample_rate:g} s"
            )
        if rate != self.sample_rate:
            clip = librosa.resample(clip, orig_sr=rate, target_sr=self.sample_rate)
        with np.errstate(over="ignore", invalid="ignore"):
            mel = librosa.feature.melspectrogram(
                y=librosa.util.fix_length(clip, size=self.samples),
                sr=self.sample_rate,
                n_fft=self.window,
                hop_length=self.hop,
                n_mels=self.bands,
            )
            result = np.log(mel + OFFSET)
        if not np.isfinite(result).all():
            raise ValueError("values are too large")
        return result

    def has_empty_bands(self) -> bool:
        """Return whether the windows are too short to tell some bands apart."""
        import librosa

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # librosa warns of the same
            filters = librosa.filters.mel(sr=self.sample_rate, n_fft=self.window, n_mels=self.bands)
        return not filters.any(axis=1).all()
