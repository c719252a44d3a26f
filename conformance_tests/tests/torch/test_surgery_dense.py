"""Surgery on torchvision's networks for dense prediction."""

import copy

import pytest
import torch
import torchvision
from diffstride_torch import replace_downsampling
from support.torch_networks import images
from torch import nn
from torch.nn import functional

SEGMENTATION = ["fcn_resnet50", "deeplabv3_resnet50"]
WITHOUT = {"weights": None, "weights_backbone": None, "num_classes": 5}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::diffstride_torch.NothingToCropWarning")
@pytest.mark.parametrize("name", SEGMENTATION)
def test_segmentation_networks_need_no_change(name):
    torch.manual_seed(0)
    # Large enough that no window's ramp is cropped whole.
    model, x = getattr(torchvision.models.segmentation, name)(**WITHOUT), images(96)
    report = replace_downsampling(model, x)
    assert (len(report.replaced), len(report.layers)) == (4, 3)
    assert report.kept == report.breaks == ()
    with torch.no_grad():
        for layer in report.layers:
            layer.strides.copy_(torch.tensor([1.6, 2.3]))
    y = model(x)["out"]
    assert y.shape == (2, 5, 96, 96)
    y.square().mean().backward()
    assert all((layer.strides.grad != 0).all() for layer in report.layers)


class Fitting(nn.Module):
    """The backbone of a detector, whose maps are resized to the sizes that they had."""

    def __init__(self, backbone, strides):
        super().__init__()
        self.backbone, self.strides = backbone, strides
        self.out_channels = backbone.out_channels

    def forward(self, x):
        maps = zip(self.backbone(x).items(), self.strides, strict=True)
        return {
            name: functional.interpolate(y, size=[-(-n // stride) for n in x.shape[2:]])
            for (name, y), stride in maps
        }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::diffstride_torch.NothingToCropWarning")
def test_the_backbone_of_a_detector_is_replaced():
    torch.manual_seed(0)
    make = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_fpn
    model, x = make(**WITHOUT, min_size=64, max_size=64).eval(), images(64)
    with pytest.raises(ValueError, match=r"cannot be traced .* needs no trace: 'backbone\.body\."):
        replace_downsampling(model, x)
    sizes = [y.shape for y in model.backbone(x).values()]
    report = replace_downsampling(model.backbone, x)
    assert (len(report.replaced), len(report.layers)) == (5, 5)
    (kept,) = report.kept
    assert kept.name == "max_pool2d in fpn.extra_blocks"
    with torch.no_grad():
        for layer in report.layers:
            layer.strides.fill_(1.5)
    # Scales are read off the first maps, as powers of two.
    wrong = copy.deepcopy(model)
    wrong(list(x))
    assert wrong.roi_heads.box_roi_pool.scales != [1 / 32, 1 / 32]
    model.backbone = Fitting(model.backbone, [32, 32, 64])
    assert [y.shape for y in model.backbone(x).values()] == sizes
    model(list(x))
    assert model.roi_heads.box_roi_pool.scales == [1 / 32, 1 / 32]
    # It trains.
    boxes = torch.tensor([[4.0, 4.0, 40.0, 40.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1])} for _ in x]
    sum(model.train()(list(x), targets).values()).backward()
    assert any((layer.strides.grad != 0).any() for layer in report.layers)
