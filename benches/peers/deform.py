#!/usr/bin/env python3
"""Deformable convolution of convzoo against torchvision's on this machine: prints the table of benches/RESULTS.md.

    benches/peers/deform.py [--work FOLDER] [--threads 1 2] [--turns 5]

A layer of version 2, 3x3, one offset group, forward and both ways (the gradients of everything). Both take turns; ours is
held to the reference executor in f64 before any time is taken. Needs what `compare.py` needs.
"""

import argparse
import os
import statistics
import subprocess
from pathlib import Path

import compare
from compare import HERE, ROOT, Worker

OURS = ["cargo", "bench", "--quiet", "--manifest-path", str(ROOT / "Cargo.toml"), "--bench", "deform"]
CASES = [(64, 56, 1), (256, 28, 1), (256, 56, 1), (256, 28, 8)]


def measure(args, case, threads):
    """Median ms of torchvision and of convzoo, each forward and both ways, in one interleaved run."""
    channels, size, batch = (str(number) for number in case)
    ours = ["--channels", channels, "--size", size, "--batch", batch, "--threads", str(threads), "--worker"]
    commands = [
        [str(args.python), "-W", "ignore", str(HERE / "deform_worker.py"), channels, size, batch, str(threads)],
        [*OURS, "--", *ours],
    ]
    workers = [Worker(command, threads, args.work / f"deform{i}.err") for i, command in enumerate(commands)]
    for worker in workers:
        worker.burst(1)
    for _ in range(args.turns):
        for worker in workers:
            worker.times += worker.burst(args.burst)
    for worker in workers:
        worker.process.stdin.close()
        worker.process.wait()
    return [[statistics.median(worker.times[way::2]) for worker in workers] for way in range(2)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "convzoo-peers"
    parser.add_argument("--work", type=Path, default=cache, help=f"where everything made is kept [{cache}]")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--burst", type=int, default=3, help="runs of a turn")
    parser.add_argument("--python", type=Path, help="a Python with torch and torchvision [made in the work folder]")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if not args.python:
        compare.Setup(args.work, [], [])
        args.python = args.work / "venv" / "bin" / "python"
    os.environ.setdefault("CARGO_TARGET_DIR", str(args.work / "target" / "convzoo"))
    subprocess.run([*OURS, "--no-run"], check=True)
    print("| channels, map, batch | threads | forward: torchvision | convzoo | ratio | both ways: torchvision | convzoo | ratio |")
    print("|---|" + "---:|" * 7)
    for case in CASES:
        for threads in args.threads:
            cells = []
            for theirs, ours in measure(args, case, threads):
                cells += [f"{theirs:.1f}", f"{ours:.2f}", f"{theirs / ours:.1f}"]
            print("| {} @{}, {} |".format(*case), threads, "|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
