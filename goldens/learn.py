"""Optimisers, losses, schedules and changes of colour as PyTorch, timm and Pillow have them: tests/goldens/learn.json.

    python goldens/learn.py
"""

import json
import pathlib

import torch
import torch.nn.functional as F
from timm.optim import RMSpropTF


def pattern(n, salt):
    """The same numbers as `pattern` in tests/learn_golden.rs."""
    return torch.tensor([((i * 7919 + salt * 104729 + 13) % 1000) / 500.0 - 1.0 for i in range(n)], dtype=torch.float32)


def optimiser(make, rates):
    weight = torch.nn.Parameter(pattern(12, 1).reshape(3, 4))
    bias = torch.nn.Parameter(pattern(3, 2))
    steps = []
    opt = make([{"params": [weight]}, {"params": [bias], "weight_decay": 0.0}])
    for step, rate in enumerate(rates):
        for group in opt.param_groups:
            group["lr"] = rate
        weight.grad = (pattern(12, 10 + step).reshape(3, 4) + 0.1 * weight).detach()
        bias.grad = (pattern(3, 30 + step) + 0.1 * bias).detach()
        opt.step()
        steps.append({"weight": weight.detach().flatten().tolist(), "bias": bias.detach().tolist()})
    return steps


def loss(function):
    x = (pattern(12, 5) * 3).reshape(3, 4).double().requires_grad_()
    value = function(x)
    value.backward()
    return {"value": value.item(), "gradient": x.grad.flatten().tolist()}


def schedule(make, steps, rate):
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler = make(opt)
    rates = []
    for _ in range(steps):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step()
    return rates


def colors():
    """What Pillow makes of the pixels of `cases` in src/vision/augment/color.rs."""
    import numpy
    from PIL import Image
    from torchvision.transforms import functional as T

    pixels = numpy.array([(i * 7919 + i * i * 31 + 13) % 256 for i in range(64 * 3)], dtype=numpy.uint8)
    image = Image.fromarray(pixels.reshape(8, 8, 3))
    changes = {"brightness": (T.adjust_brightness, [0.6, 1.7]), "contrast": (T.adjust_contrast, [0.3, 1.4]),
               "saturation": (T.adjust_saturation, [0.0, 1.9]), "hue": (T.adjust_hue, [0.11, -0.4])}
    return {name: {repr(f): numpy.asarray(change(image, f)).flatten().tolist() for f in factors}
            for name, (change, factors) in changes.items()}


def main():
    rates = [0.1 * (step + 1) / 10 for step in range(10)]
    labels = torch.tensor([2, 0, 3])
    shares = (pattern(12, 7).reshape(3, 4).double() + 1.0)
    shares = shares / shares.sum(1, keepdim=True)
    weights = torch.tensor([0.5, 2.0, 1.0, 1.5], dtype=torch.float64)
    binary = (pattern(12, 9).reshape(3, 4) > 0).double()
    S = torch.optim.lr_scheduler
    golden = {
        "optimisers": {
            "sgd": optimiser(lambda g: torch.optim.SGD(g, lr=0.1, momentum=0.0, weight_decay=0.05), rates),
            "momentum": optimiser(
                lambda g: torch.optim.SGD(g, lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.05), rates),
            "nesterov": optimiser(
                lambda g: torch.optim.SGD(g, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.05), rates),
            "adamw": optimiser(lambda g: torch.optim.AdamW(g, lr=0.1, weight_decay=0.05), rates),
            "rmsprop_tf": optimiser(
                lambda g: RMSpropTF(g, lr=0.1, alpha=0.9, eps=1e-3, momentum=0.9, weight_decay=0.05), rates),
        },
        "colors": colors(),
        "shares": shares.flatten().tolist(),
        "losses": {
            "plain": loss(lambda x: F.cross_entropy(x, labels)),
            "smooth": loss(lambda x: F.cross_entropy(x, labels, label_smoothing=0.1)),
            "weighted": loss(lambda x: F.cross_entropy(x, labels, weight=weights, label_smoothing=0.1)),
            "shares": loss(lambda x: F.cross_entropy(x, shares, weight=weights, label_smoothing=0.1)),
            "binary": loss(lambda x: F.binary_cross_entropy_with_logits(x, binary)),
            "binary_weighted": loss(
                lambda x: F.binary_cross_entropy_with_logits(x, binary, pos_weight=weights)),
        },
        "schedules": {
            "one_cycle": schedule(lambda o: S.OneCycleLR(o, 0.2, total_steps=50), 49, 0.2),
            "cosine": schedule(lambda o: S.CosineAnnealingLR(o, 30, eta_min=0.02), 31, 0.2),
            "multi_step": schedule(lambda o: S.MultiStepLR(o, [5, 9], 0.1), 15, 0.2),
            "step": schedule(lambda o: S.StepLR(o, 4, 0.5), 15, 0.2),
            "exponential": schedule(lambda o: S.ExponentialLR(o, 0.9), 15, 0.2),
            "warm_up": schedule(
                lambda o: S.SequentialLR(
                    o, [S.LinearLR(o, 0.1, total_iters=5), S.CosineAnnealingLR(o, 20, eta_min=0.0)], [5]), 25, 0.2),
        },
    }
    path = pathlib.Path(__file__).parent.parent / "tests/goldens/learn.json"
    path.write_text(json.dumps(golden, separators=(",", ":")) + "\n")


main()
