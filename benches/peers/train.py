#!/usr/bin/env python3
"""A training step of convzoo against PyTorch's on this machine: prints the training table of benches/RESULTS.md.

    benches/peers/train.py [--work FOLDER] [--models NAME ...] [--threads 1 2] [--turns 5]

A step is forward in training mode, cross entropy on all heads, backward, and SGD with momentum, on a random batch. PyTorch
runs eagerly on channels-last data, once with glibc's allocator as it is and once told to keep freed memory; the faster of
the two counts. convzoo's first step is held to the reference executor in f64 before any time is taken. Engines take turns,
a few steps each. Needs what `compare.py` needs, whose work folder and virtual environment it shares.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

import compare
from compare import HERE, OURS, ROOT, Failed, Worker

CASES = {name: (16, 224) for name in "resnet18 resnet50 googlenet densenet121 efficientnet_b0 seresnet50 vgg16".split()}
CASES = {"resnet20": (128, 32), "resnet18_cifar": (128, 32)} | CASES
KEEPS = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=20000000000:glibc.malloc.top_pad=268435456"
PEERS = {"pytorch": {}, "pytorch, memory kept": {"GLIBC_TUNABLES": KEEPS}}


class Trained(Worker):
    """A worker that also tells how much memory training took."""

    def close(self):
        self.process.stdin.close()
        _, grown = self.answer("rss", 60)[:2]
        self.process.wait()
        return float(grown)


def command(args, engine, model, threads):
    batch, side = CASES[model]
    if engine != OURS:
        settings = [f"{name}={value}" for name, value in PEERS[engine].items()]
        case = [model, str(batch), str(side), str(threads)]
        return ["env", *settings, str(args.python), "-W", "ignore", str(HERE / "train_worker.py"), *case]
    config = ROOT / "examples" / "configs" / f"{model}.json"
    name = str(config) if config.exists() else model
    case = ["--model", name, "--batch", str(batch), "--size", str(side), "--threads", str(threads)]
    return [str(args.latency), "--train", "--worker", *case]


def measure(args, model, threads):
    """Median ms and MiB grown by engine, in one interleaved run."""
    workers, found = {}, {}
    for engine in [OURS, *PEERS]:
        errors = args.work / f"{engine.split(',')[0]}.err"
        workers[engine] = Trained(command(args, engine, model, threads), threads, errors)
    for worker in workers.values():
        worker.burst(1)
    for _ in range(args.turns):
        for worker in workers.values():
            worker.times += worker.burst(args.burst)
    for engine, worker in workers.items():
        found[engine] = statistics.median(worker.times), worker.close(), min(worker.times)
        print(f"{model:16} threads {threads} {engine:22} median {found[engine][0]:9.1f} ms, least {found[engine][2]:9.1f}, "
              f"grown {found[engine][1]:6.0f} MiB", file=sys.stderr, flush=True)
    return found


def table(results):
    lines = ["| model | batch | threads | convzoo ms | pytorch | memory kept | fastest / convzoo | convzoo MiB | pytorch MiB | of it |"]
    lines.append("|---|" + "---:|" * 9)
    ratios = []
    for (model, threads), found in results.items():
        batch, side = CASES[model]
        fastest = min(PEERS, key=lambda engine: found[engine][0])
        ratios.append(found[fastest][0] / found[OURS][0])
        # Kept memory is not what PyTorch needs: the smaller of the two.
        ours, theirs = found[OURS][1], min(found[engine][1] for engine in PEERS)
        times = " | ".join(f"**{found[e][0]:.0f}**" if e == fastest else f"{found[e][0]:.0f}" for e in PEERS)
        lines.append(f"| {model} | {batch}×{side}² | {threads} | {found[OURS][0]:.0f} | {times} | {ratios[-1]:.2f} | "
                     f"{ours:.0f} | {theirs:.0f} | {100 * ours / theirs:.0f} % |")
    mean = math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))
    lines += ["", f"Geometric mean of the ratios {mean:.2f}, least {min(ratios):.2f}, {len(ratios)} cases."]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "convzoo-peers"
    parser.add_argument("--work", type=Path, default=cache, help=f"where everything made is kept [{cache}]")
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES), metavar="NAME")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--turns", type=int, default=5, help="turns of each engine, after one step that is not counted")
    parser.add_argument("--burst", type=int, default=1, help="steps of a turn")
    parser.add_argument("--python", type=Path, help="a Python with torch, torchvision and timm [made in the work folder]")
    parser.add_argument("--latency", type=Path, help="the built example `latency` [built in the work folder]")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if not args.python:
        compare.Setup(args.work, [], [])
        args.python = args.work / "venv" / "bin" / "python"
    if not args.latency:
        target = args.work / "target" / "convzoo"
        build = ["cargo", "build", "--release", "--example", "latency"]
        subprocess.run(build, cwd=ROOT, env=dict(os.environ, CARGO_TARGET_DIR=str(target)), check=True)
        args.latency = target / "release" / "examples" / "latency"
    results = {}
    for threads in args.threads:
        for model in args.models:
            try:
                results[model, threads] = measure(args, model, threads)
            except Failed as why:
                print(f"{model}: {why}", file=sys.stderr)
    if results:
        print(table(results))


if __name__ == "__main__":
    main()
