"""Residual networks whose downsampling can be swapped: strided convolution, pooling, DiffStride.

A block that downsamples has one layer for both of its branches. By default, the layer comes before
the first convolution: it is called once, and all convolutions of the block work on the smaller map.
With ``placement="after"`` the block follows Fig. 3 of Riad et al. (2022): the main branch has a
stride-1 convolution and then the layer, and the shortcut has the same layer. Parameters and their
names are the same, so weights load across placements.

Notes
-----
**The order of strides.** A network may downsample at its stem and at the first block of each of
its stages. `strides` gives the strides of these places from the input to the output. If it has
fewer entries than there are places, the entries are for the last places, and the first places have
no layer. An entry is a number, a pair of height and width, or None for no layer at that place. A
DiffStride layer whose entry is 1 is still a layer: its stride can grow.

=========  =======  ============================  ====================================
network    entries  places                        whose order this is
=========  =======  ============================  ====================================
ResNet-18  5        stem, [stage 1], stages 2-4   the authors' code; the first stage has
                                                  no layer, so its entry must be 1 or None
ResNet-18  4        stages 1-4                    the paper on ImageNet
ResNet-18  3        stages 2-4                    the paper on CIFAR
ResNet-56  4        stem, stages 1-3              the authors' code
=========  =======  ============================  ====================================

The stem ``"imagenet"`` downsamples with strides of its own, which nothing replaces. Its entry must
be None. With 4 or 3 entries, ResNet-18 has no entry for the stem.

**Projections.** The shortcut of a block has a pointwise convolution if the number of channels
changes or the initial stride is not 1, as in torchvision. In ResNet-56, the first block of every
stage also has one. Neither depends on how the network downsamples. Networks with the same strides
therefore differ only in the strides of the DiffStride layers, and load each other's weights.
"""

from diffstride_torch.models.blocks import Stem as Stem
from diffstride_torch.models.pooling import NetworkOptions as NetworkOptions
from diffstride_torch.models.pooling import Placement as Placement
from diffstride_torch.models.pooling import Pooling as Pooling
from diffstride_torch.models.pooling import PoolingOptions as PoolingOptions
from diffstride_torch.models.preact import PreActBlock as PreActBlock
from diffstride_torch.models.preact import PreActResNet as PreActResNet
from diffstride_torch.models.preact import preact_resnet18 as preact_resnet18
from diffstride_torch.models.preact import preact_resnet56 as preact_resnet56
from diffstride_torch.models.preact import small_resnet as small_resnet
from diffstride_torch.models.resnet import BasicBlock as BasicBlock
from diffstride_torch.models.resnet import ResNet as ResNet
from diffstride_torch.models.resnet import resnet18 as resnet18
