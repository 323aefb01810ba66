"""Every model of the registry as PyTorch has it: torchvision's and timm's own, and short independent definitions of
the ones they lack. Used by `make.py`; nothing here is read by the Rust tests."""
import math
from functools import partial

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models import densenet
from torchvision.models.googlenet import BasicConv2d, GoogLeNet, Inception
from torchvision.ops import deform_conv2d


# --- CIFAR ResNets (He et al. 2015, section 4.2), shortcut A: subsample and pad with zero channels -------------------

class CifarBlock(nn.Module):
    def __init__(self, cin, cout, stride, skip):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.stride, self.pad, self.skip = stride, (cout - cin) // 2, skip

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.skip:
            y = y + F.pad(x[:, :, ::self.stride, ::self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y)


class CifarResNet(nn.Module):
    def __init__(self, depth, skip=True, classes=10):
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        cin = 16
        for stage, width in enumerate((16, 32, 64)):
            layers = []
            for i in range(blocks):
                layers.append(CifarBlock(cin, width, 2 if stage and not i else 1, skip))
                cin = width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(64, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


# --- CIFAR DenseNet-BC (Huang et al. 2016): torchvision's pieces behind a plain 3x3 stem ------------------------------

def cifar_densenet(depth, growth):
    per_block = (depth - 4) // 6
    m = densenet.DenseNet(growth, (per_block,) * 3, 2 * growth, num_classes=10)
    m.features.conv0 = nn.Conv2d(3, 2 * growth, 3, 1, 1, bias=False)
    for name in ("norm0", "relu0", "pool0"):
        delattr(m.features, name)
    return m


# --- GoogLeNet as printed: 5x5 branches, and either LRN with biases or batch norm -------------------------------------

class ConvRelu(nn.Module):
    def __init__(self, cin, cout, **kw):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, bias=True, **kw)

    def forward(self, x):
        return F.relu(self.conv(x))


class Inception5(Inception):
    """torchvision's block with the 5x5 it should have had."""

    def __init__(self, cin, c1, c3r, c3, c5r, c5, pool, conv_block=None):
        super().__init__(cin, c1, c3r, c3, c5r, c5, pool, conv_block=conv_block)
        self.branch3[1] = conv_block(c5r, c5, kernel_size=5, padding=2)


class PaperAux(nn.Module):
    def __init__(self, cin, classes, conv_block=None, dropout=0.7):
        super().__init__()
        self.conv = conv_block(cin, 128, kernel_size=1)
        self.fc1, self.fc2 = nn.Linear(2048, 1024), nn.Linear(1024, classes)

    def forward(self, x):
        x = self.conv(F.avg_pool2d(x, 5, 3)).flatten(1)
        return self.fc2(F.dropout(F.relu(self.fc1(x)), 0.7, self.training))


class PaperGoogLeNet(GoogLeNet):
    def __init__(self, norm):
        conv = BasicConv2d if norm else ConvRelu
        super().__init__(init_weights=False, transform_input=False, blocks=[
            conv, partial(Inception5, conv_block=conv), partial(PaperAux, conv_block=conv)])
        self.maxpool4 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.lrn = nn.Identity() if norm else nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)

    def forward(self, x):
        x = self.lrn(self.maxpool1(self.conv1(x)))
        x = self.maxpool2(self.lrn(self.conv3(self.conv2(x))))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        for name in "abcde":
            x = getattr(self, f"inception4{name}")(x)
        x = self.inception5b(self.inception5a(self.maxpool4(x)))
        return self.fc(x.mean((2, 3)))


# --- AlexNet as printed: two groups, LRN, no padding in front ---------------------------------------------------------

class PaperAlexNet(nn.Module):
    def __init__(self):
        super().__init__()
        pool, relu, lrn = nn.MaxPool2d(3, 2), nn.ReLU(), nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0)
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 11, 4), relu, lrn, pool,
            nn.Conv2d(96, 256, 5, padding=2, groups=2), relu, lrn, pool,
            nn.Conv2d(256, 384, 3, padding=1), relu,
            nn.Conv2d(384, 384, 3, padding=1, groups=2), relu,
            nn.Conv2d(384, 256, 3, padding=1, groups=2), relu, pool)
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(nn.Linear(9216, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096),
                                        nn.ReLU(), nn.Dropout(), nn.Linear(4096, 1000))

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


# --- ResNet-50, the paper's strides and the deformable forms ----------------------------------------------------------

def resnet_v1(name):
    m = getattr(torchvision.models, name)(weights=None)
    for block in m.modules():
        if isinstance(block, torchvision.models.resnet.Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    return m


class DeformConv(nn.Module):
    """3x3 deformable convolution with its offset branch inside (mmcv's names). v2 adds a sigmoid mask."""

    def __init__(self, conv, modulated):
        super().__init__()
        self.weight, self.stride, self.modulated = conv.weight, conv.stride, modulated
        self.conv_offset = nn.Conv2d(conv.in_channels, 27 if modulated else 18, 3, conv.stride, 1)

    def forward(self, x):
        o = self.conv_offset(x)
        mask = o[:, 18:].sigmoid() if self.modulated else None
        return deform_conv2d(x, o[:, :18].contiguous(), self.weight, None, self.stride, 1, 1, mask)


def deform_resnet50(first_stage, modulated):
    m = torchvision.models.resnet50(weights=None)
    for stage in range(first_stage - 1, 5):
        for block in getattr(m, f"layer{stage}"):
            block.conv2 = DeformConv(block.conv2, modulated)
    return m


# --- The registry -----------------------------------------------------------------------------------------------------

SIZE = {"alexnet_paper": 227, "efficientnet_b1": 240, "efficientnet_b2": 288, "efficientnet_b3": 300,
        "efficientnet_b4": 380, "efficientnet_b5": 456, "efficientnet_b6": 528, "efficientnet_b7": 600, "efficientnet_v2_s": 384,
        "efficientnet_v2_m": 480, "efficientnet_v2_l": 480}

TORCHVISION = """alexnet vgg11 vgg13 vgg16 vgg19 vgg11_bn vgg13_bn vgg16_bn vgg19_bn
resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d resnext101_64x4d wide_resnet50_2
wide_resnet101_2 densenet121 densenet161 densenet169 densenet201 squeezenet1_0 squeezenet1_1 mobilenet_v2
efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6
efficientnet_b7 efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l""".split()
TIMM = """seresnet50 legacy_seresnet50 legacy_seresnet101 legacy_seresnet152 legacy_seresnext50_32x4d
legacy_seresnext101_32x4d legacy_senet154""".split()

MODELS = {name: (lambda name=name: getattr(torchvision.models, name)(weights=None)) for name in TORCHVISION}
MODELS |= {name: (lambda name=name: timm.create_model(name, pretrained=False)) for name in TIMM}
MODELS |= {
    "googlenet": lambda: torchvision.models.googlenet(weights=None, init_weights=False, transform_input=False),
    "googlenet_paper": lambda: PaperGoogLeNet(norm=False),
    "googlenet_paper_bn": lambda: PaperGoogLeNet(norm=True),
    "resnet50_v1": lambda: resnet_v1("resnet50"),
    "densenet264": lambda: densenet.DenseNet(32, (6, 12, 64, 48), 64),
    "deform_resnet50_v1_c5": lambda: deform_resnet50(5, modulated=False),
    "deform_resnet50_v1_c3": lambda: deform_resnet50(3, modulated=False),
    "deform_resnet50_v2_c3": lambda: deform_resnet50(3, modulated=True),
    "alexnet_paper": PaperAlexNet,
    "resnet101_v1": lambda: resnet_v1("resnet101"),
    "resnet152_v1": lambda: resnet_v1("resnet152"),
}
CIFAR = {f"resnet{d}": (lambda d=d: CifarResNet(d)) for d in (20, 32, 44, 56, 110)}
CIFAR |= {f"plain{d}": (lambda d=d: CifarResNet(d, skip=False)) for d in (20, 32, 44, 56, 110)}
CIFAR |= {f"densenet_bc_{d}_{k}": (lambda d=d, k=k: cifar_densenet(d, k)) for d, k in ((100, 12), (250, 24), (190, 40))}
MODELS |= CIFAR


def is_cifar(name):
    return name in CIFAR


def size(name):
    return 32 if is_cifar(name) else SIZE.get(name, 224)


def build(name):
    torch.manual_seed(0)
    return MODELS[name]().eval()


def counting_macs(model, forward):
    """Calls `forward` and counts multiply-adds of convolutions and linear layers (torchvision's convention)."""
    total, handles = [0], []

    def hook(m, _, y):
        if isinstance(m, nn.Linear):
            total[0] += y.numel() * m.in_features
        else:
            total[0] += y.numel() * math.prod(m.weight.shape[1:])

    for m in model.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear, DeformConv)):
            handles.append(m.register_forward_hook(hook))
    y = forward()
    for h in handles:
        h.remove()
    return y, total[0]
