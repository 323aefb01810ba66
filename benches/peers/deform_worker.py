"""torchvision's deformable convolution as a process: `deform_worker.py CHANNELS SIZE BATCH THREADS`

Version 2, 3x3, padding 1, one offset group; both ways with the gradients of everything. For every line `run K`, K times
forward and both ways in turn, in ms.
"""

import sys
import time

import torch
from torchvision.ops import deform_conv2d


def main():
    channels, size, batch, threads = (int(word) for word in sys.argv[1:5])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x, dy = (torch.randn(batch, channels, size, size) for _ in range(2))
    weight = torch.randn(channels, channels, 3, 3) * 0.05
    offset, mask = torch.randn(batch, 18, size, size), torch.rand(batch, 9, size, size)
    learned = [t.clone().requires_grad_() for t in (x, offset, weight, mask)]

    def forward(x, offset, weight, mask):
        return deform_conv2d(x, offset, weight, padding=1, mask=mask)

    def step():
        started = time.perf_counter()
        with torch.no_grad():
            forward(x, offset, weight, mask)
        between = time.perf_counter()
        for tensor in learned:
            tensor.grad = None
        forward(*learned).backward(dy)
        return (between - started) * 1e3, (time.perf_counter() - between) * 1e3

    step()
    print("ready 0 0", flush=True)
    for line in sys.stdin:
        print(*(f"{ms:.4f}" for _ in range(int(line.split()[1])) for ms in step()), flush=True)


main()
