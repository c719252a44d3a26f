"""Kinds of data to train on."""

from typing import Annotated

from pydantic import Field

from diffstride_experiments.data.audio_folder import AudioFolder
from diffstride_experiments.data.cifar import Cifar
from diffstride_experiments.data.digits import Digits
from diffstride_experiments.data.image_folder import ImageFolder
from diffstride_experiments.data.source import Data, EvaluateOn

__all__ = [
    "AudioFolder",
    "Cifar",
    "Data",
    "DataOptions",
    "Digits",
    "EvaluateOn",
    "ImageFolder",
]

DataOptions = Annotated[
    Digits | Cifar | ImageFolder | AudioFolder,
    Field(discriminator="name"),
]
"""Options of one kind of data. The field ``name`` tells the kinds apart."""
