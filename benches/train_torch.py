"""The recipe of `--example train` in PyTorch, to compare accuracies and seconds with.

    python benches/train_torch.py FOLDER --model resnet20 --epochs 15

FOLDER holds train/CLASS and test/CLASS with 32x32 images. Same network, initialisation scheme, loss, optimiser, groups,
one-cycle schedule (momentum left alone), augmentation and normalisation; another random generator.
"""

import argparse
import pathlib
import sys
import time

import numpy
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "goldens"))
import zoo  # noqa: E402


def load(folder):
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir())
    files = [(f, i) for i, c in enumerate(classes) for f in sorted((folder / c).iterdir())]
    images = numpy.stack([numpy.asarray(Image.open(f).convert("RGB")) for f, _ in files])
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor([i for _, i in files]), len(classes)


def main():
    args = argparse.ArgumentParser()
    args.add_argument("folder", type=pathlib.Path)
    args.add_argument("--model", default="resnet20")
    args.add_argument("--epochs", type=int, default=15)
    args.add_argument("--batch", type=int, default=128)
    args.add_argument("--rate", type=float, default=0.1)
    args.add_argument("--decay", type=float, default=5e-4)
    args.add_argument("--nesterov", action="store_true")
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--threads", type=int, default=2)
    args = args.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    train_x, train_y, classes = load(args.folder / "train")
    test_x, test_y, _ = load(args.folder / "test")
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1) * 255
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1) * 255
    model = zoo.build(args.model).to(memory_format=torch.channels_last)
    torch.manual_seed(args.seed)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    heads = [p for n, p in model.named_parameters() if p.ndim > 1]
    rest = [p for n, p in model.named_parameters() if p.ndim <= 1]
    groups = [{"params": heads, "weight_decay": args.decay}, {"params": rest, "weight_decay": 0.0}]
    opt = torch.optim.SGD(groups, lr=args.rate, momentum=0.9, nesterov=args.nesterov)
    steps = len(train_x) // args.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        opt, args.rate, total_steps=steps * args.epochs + 1, cycle_momentum=False)
    for epoch in range(args.epochs):
        model.train()
        started, order, total = time.time(), torch.randperm(len(train_x)), 0.0
        for step in range(steps):
            at = order[step * args.batch:(step + 1) * args.batch]
            x = F.pad(train_x[at], (4, 4, 4, 4))
            rows = torch.randint(0, 9, (len(at),))
            columns = torch.randint(0, 9, (len(at),))
            x = torch.stack([v[:, r:r + 32, c:c + 32] for v, r, c in zip(x, rows, columns)])
            flip = torch.rand(len(at)) < 0.5
            x[flip] = x[flip].flip(3)
            loss = F.cross_entropy(model((x - mean) / std), train_y[at])
            opt.zero_grad()
            loss.backward()
            opt.step()
            schedule.step()
            total += loss.item()
        model.eval()
        with torch.no_grad():
            right = sum((model((test_x[i:i + 250] - mean) / std).argmax(1) == test_y[i:i + 250]).sum().item()
                        for i in range(0, len(test_x), 250))
        print(f"epoch {epoch + 1}: train loss {total / steps:.4f}, test top-1 {100 * right / len(test_x):.2f} %, "
              f"{time.time() - started:.1f} s", flush=True)


main()
