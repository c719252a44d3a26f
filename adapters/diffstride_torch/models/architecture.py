"""Architectures of residual networks: number of blocks, places of downsampling, argument checks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, Unpack

from torch import nn

from diffstride_core.arguments import in_order, integers, option
from diffstride_core.convolution.checks import PLACEMENTS
from diffstride_torch.models.blocks import STEM_KINDS, ResidualBlock, Stem
from diffstride_torch.models.pooling import (
    Pair,
    Placement,
    PoolingOptions,
    StemKind,
    Stride,
    check_pooling,
    stride_pair,
)

Block = TypeVar("Block", bound=ResidualBlock)
Strides = Sequence[Stride | None]


def stride_entries(strides: Strides) -> list[Pair | None]:
    """Return each entry as strides of height and width, or as None if it is None.

    Raises
    ------
    TypeError, ValueError
        Unless `strides` is a sequence whose entries are None or valid for `stride_pair`.
    """
    return [
        None if entry is None else stride_pair(entry, f"strides[{i}]")
        for i, entry in enumerate(in_order("strides", strides, "one entry per place"))
    ]


@dataclass(frozen=True)
class Design:
    """The checked arguments of a network, and its parts made from them.

    Attributes
    ----------
    layers : int
        Blocks in each stage.
    projects : bool
        Whether the first block of every stage projects.
    strides : tuple of pair of float or None
        Strides of the stem and of each stage; None where there is no layer.
    channels : tuple of int
        Channels of the stem and of each stage.
    in_channels, num_classes : int
    stem_kind : str
    placement : {"before", "after"}
        Placement of the blocks' layers. The stem's layer is always after its convolution.
    options : PoolingOptions
        Options of the stem and the blocks.
    """

    layers: int
    projects: bool
    strides: tuple[Pair | None, ...]
    channels: tuple[int, ...]
    in_channels: int
    num_classes: int
    stem_kind: StemKind
    placement: Placement
    options: PoolingOptions

    def stem(self) -> Stem:
        """Return the network's first convolution."""
        return Stem(
            self.in_channels,
            self.channels[0],
            self.strides[0],
            kind=self.stem_kind,
            **self.options,
        )

    def max_pool(self) -> nn.Module:
        """Return the pooling that ends the stem, or an identity."""
        return nn.MaxPool2d(3, 2, padding=1) if self.stem_kind == "imagenet" else nn.Identity()

    def stages(self, block: type[Block]) -> list[list[Block]]:
        """Return the blocks of each stage. The first block of a stage downsamples."""
        make = partial(block, placement=self.placement, **self.options)
        return [
            [
                make(inputs, outputs, stride, project=self.projects),
                *(make(outputs, outputs) for _ in range(self.layers - 1)),
            ]
            for inputs, outputs, stride in zip(
                self.channels[:-1], self.channels[1:], self.strides[1:], strict=True
            )
        ]


@dataclass(frozen=True)
class Architecture:
    """A kind of network, with the arguments that it allows; see `diffstride_torch.models`.

    Attributes
    ----------
    stages : int
    layers : int
        Blocks in each stage.
    counts : tuple of int
        Numbers of entries that `strides` may have.
    default_strides : mapping from kind of stem to sequence
        Default strides.
    channels : tuple of int
        Default channels.
    projects : bool
        Whether the first block of every stage projects, regardless of its channels and stride.
    first_stage_is_plain : bool
        Whether the first stage has no layer if the stem has an entry.
    """

    stages: int
    layers: int
    counts: tuple[int, ...]
    default_strides: Mapping[StemKind, Strides]
    channels: tuple[int, ...]
    projects: bool = False
    first_stage_is_plain: bool = False

    def design(
        self,
        *,
        placement: Placement = "before",
        strides: Strides | None = None,
        stem: StemKind = "small",
        channels: Sequence[int] | None = None,
        in_channels: int = 3,
        num_classes: int = 10,
        **options: Unpack[PoolingOptions],
    ) -> Design:
        """Check the arguments of a network; see `NetworkOptions`.

        Raises
        ------
        TypeError, ValueError
            If an argument is not allowed. The message names it, its value, and what is allowed.
        """
        check_pooling(**options)
        option("placement", placement, PLACEMENTS)
        option("stem", stem, STEM_KINDS)
        return Design(
            layers=self.layers,
            projects=self.projects,
            strides=self._places(self.default_strides[stem] if strides is None else strides, stem),
            channels=_positive(
                "channels", self.channels if channels is None else channels, self.stages + 1
            ),
            in_channels=_positive("in_channels", in_channels)[0],
            num_classes=_positive("num_classes", num_classes)[0],
            stem_kind=stem,
            placement=placement,
            options=options,
        )

    def _places(self, strides: Strides, stem: StemKind) -> tuple[Pair | None, ...]:
        """Return the strides of the stem and of each stage."""
        entries = stride_entries(strides)
        if len(entries) not in self.counts:
            orders = " or ".join(f"{count} ({self._order(count)})" for count in self.counts)
            raise ValueError(f"strides must have {orders} entries, got {len(entries)}: {strides}")
        if len(entries) > self.stages:
            if stem == "imagenet" and entries[0] is not None:
                raise ValueError(
                    "strides[0] must be None for stem='imagenet', which has its own strides, "
                    f"got {strides[0]!r}"
                )
            if self.first_stage_is_plain:
                if entries[1] not in (None, (1.0, 1.0)):
                    raise ValueError(
                        "strides[1] must be 1 or None if the stem has an entry, because the first "
                        f"stage then has no layer, got {strides[1]!r}"
                    )
                entries[1] = None
        return (*[None] * (self.stages + 1 - len(entries)), *entries)

    def _order(self, count: int) -> str:
        if count > self.stages:
            return f"stem, stages 1-{self.stages}"
        return f"stages {self.stages + 1 - count}-{self.stages}"


def _positive(name: str, value: Any, count: int = 1) -> tuple[int, ...]:
    result = integers(name, value)
    if len(result) != count:
        of = ", one for the stem and one for each stage" if count > 1 else ""
        raise ValueError(f"{name} must have {count} entries{of}, got {len(result)}: {value}")
    if min(result) < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return result


RESNET18 = Architecture(
    stages=4,
    layers=2,
    counts=(5, 4, 3),
    default_strides={"small": (1.0, None, 2.0, 2.0, 2.0), "imagenet": (1.0, 2.0, 2.0, 2.0)},
    channels=(64, 64, 128, 256, 512),
    first_stage_is_plain=True,
)
RESNET56 = Architecture(
    stages=3,
    layers=9,
    counts=(4,),
    default_strides={"small": (1.0, 1.0, 2.0, 2.0), "imagenet": (None, 1.0, 2.0, 2.0)},
    channels=(16, 16, 32, 64),
    projects=True,
)
