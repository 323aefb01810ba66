"""PyTorch's training step as a process: `train_worker.py MODEL BATCH SIDE THREADS`

Forward in training mode, cross entropy on all heads, backward, SGD with momentum; eager, f32, channels-last. Speaks the
protocol of `worker.py`; the second number behind `rss` is what training added to the memory held before the first step.
"""

import resource
import sys
import time
from pathlib import Path

STARTED = time.perf_counter()
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "goldens"))

import torch
import torch.nn.functional as F
from torch import nn

import zoo


def network(name):
    """The registry's networks, and ResNet-18 in CIFAR form: a 3x3 stem without a pool, ten classes."""
    torch.manual_seed(0)
    if name == "googlenet":
        return zoo.torchvision.models.googlenet(weights=None, init_weights=False, transform_input=False, aux_logits=True)
    if name != "resnet18_cifar":
        return zoo.MODELS[name]()
    model = zoo.torchvision.models.resnet18(weights=None, num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return model


def resident_mib():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def main():
    name, (batch, side, threads) = sys.argv[1], (int(word) for word in sys.argv[2:5])
    torch.set_num_threads(threads)
    model = network(name).train().to(memory_format=torch.channels_last)
    x = torch.randn(batch, 3, side, side).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    y = torch.arange(batch) * 37 % (10 if side == 32 else 1000)
    before = resident_mib()

    def step():
        started = time.perf_counter()
        optimiser.zero_grad()
        out = model(x)
        heads = [out] if torch.is_tensor(out) else [out.logits, out.aux_logits1, out.aux_logits2]
        losses = [F.cross_entropy(head, y) for head in heads]
        loss = losses[0] + 0.3 * sum(losses[1:])
        loss.backward()
        optimiser.step()
        assert loss.isfinite(), f"the loss is {loss}"
        return (time.perf_counter() - started) * 1e3

    step()
    print(f"ready {(time.perf_counter() - STARTED) * 1e3:.1f} 0", flush=True)
    for line in sys.stdin:
        print(*(f"{step():.4f}" for _ in range(int(line.split()[1]))), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"rss {peak:.1f} {peak - before:.1f}", flush=True)


main()
