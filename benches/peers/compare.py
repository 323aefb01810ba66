#!/usr/bin/env python3
"""convzoo against other engines on this machine: prints the table of benches/RESULTS.md.

    benches/peers/compare.py [--work FOLDER] [--models NAME ...] [--batches 1 8] [--threads 1 2] [--engines NAME ...]

Needs Python 3.10 or newer, a Rust toolchain and the package registries; no other package. What it makes (a virtual
environment, the networks, the Rust engines: some 10 GB and half an hour the first time) goes into the work folder
outside the repository. See README.md beside this file.
"""

import argparse
import csv
import datetime
import json
import math
import os
import platform
import select
import statistics
import subprocess
import sys
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MODELS = (
    "alexnet vgg16 googlenet resnet18 resnet50 resnet152 densenet121 seresnet50 efficientnet_b0 efficientnet_b4".split()
)
PYTHON = ("pytorch", "pytorch_compiled", "onnxruntime", "openvino")
RUST = ("rten", "tract", "candle", "burn")
OURS = "convzoo"
WORST_ERROR = 1e-3
"""An engine further than this from the reference computes something else: no time is reported."""


class Failed(Exception):
    """An engine did not answer; its last words."""


class Setup:
    """What has to be there before anything can be timed."""

    def __init__(self, work, models, engines):
        self.work, self.networks = work, work / "networks"
        self.python = work / "venv" / "bin" / "python"
        work.mkdir(parents=True, exist_ok=True)
        if not self.python.exists():
            venv.create(work / "venv", with_pip=True)
            self.call(self.python, "-m", "pip", "install", "--quiet", "-r", HERE / "requirements.txt")
        self.call(self.python, HERE / "export.py", self.networks, *models)
        self.call("cargo", "build", "--release", "--example", "latency", folder=ROOT, target="convzoo")
        wanted = [engine for engine in engines if engine in RUST]
        if wanted:
            features = ["--no-default-features", "--features", ",".join(wanted)]
            self.call("cargo", "build", "--release", "--locked", *features, folder=HERE / "rust", target="rust")

    def call(self, *command, folder=None, target=None):
        env = dict(os.environ, PEERS_NETWORKS=str(self.networks))
        if target:
            env["CARGO_TARGET_DIR"] = str(self.work / "target" / target)
        print("+", *command, file=sys.stderr, flush=True)
        subprocess.run([str(word) for word in command], cwd=folder, env=env, check=True, stdout=sys.stderr)

    def command(self, engine, model, batch, threads):
        case = [str(self.networks), model, str(batch), str(threads)]
        built = self.work / "target"
        if engine in PYTHON:
            return [str(self.python), "-W", "ignore", str(HERE / "worker.py"), engine, *case]
        if engine in RUST:
            return [str(built / "rust" / "release" / "peers"), engine, *case]
        stem = self.networks / model
        files = ["--weights", f"{stem}.safetensors", "--reference", f"{stem}_b{batch}.reference.safetensors"]
        options = ["--model", model, "--batch", str(batch), "--threads", str(threads)]
        return [str(built / "convzoo" / "release" / "examples" / "latency"), "--worker", *options, *files]


class Worker:
    """An engine in a process of its own that sleeps on its input until it is asked for a burst of runs."""

    def __init__(self, command, threads, errors):
        count = str(threads)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS", "RTEN_NUM_THREADS")
        env = dict(os.environ, **{name: count for name in names})
        if threads == 1 and hasattr(os, "sched_setaffinity"):
            core = max(os.sched_getaffinity(0))
            command = ["taskset", "-c", str(core), *command]
        self.errors = open(errors, "w+")
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True, env=env)
        self.times = []
        self.load, self.error = (float(word) for word in self.answer("ready", 900)[:2])
        if not self.error <= WORST_ERROR:
            self.process.kill()
            raise Failed(f"off the reference by {self.error:.1e}")

    def answer(self, first, seconds):
        """The next line that begins with `first`, without it; or, if that is None, the next line of numbers."""
        until = time.monotonic() + seconds
        while True:
            if not select.select([self.process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                self.process.kill()
                raise Failed(f"no answer within {seconds} s")
            line = self.process.stdout.readline()
            if not line:
                self.process.wait()
                self.errors.seek(0)
                said = [text.strip() for text in self.errors if text.strip()]
                raise Failed(said[-1][:200] if said else "it died")
            words = line.split()
            if first is None and words and words[0].replace(".", "", 1).isdigit():
                return words
            if first is not None and words[:1] == [first]:
                return words[1:]

    def burst(self, runs):
        self.process.stdin.write(f"run {runs}\n")
        self.process.stdin.flush()
        return [float(word) for word in self.answer(None, 900)]

    def close(self):
        self.process.stdin.close()
        peak = float(self.answer("rss", 60)[0])
        self.process.wait()
        return peak


def cpu_seconds(processes):
    """Seconds of processor time that the machine has spent so far, and these processes of it. Linux only."""
    ticks = os.sysconf("SC_CLK_TCK")
    user, nice, system, _, _, *others = (int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    stats = [Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split() for process in processes]
    own = sum(int(stat[11]) + int(stat[12]) for stat in stats)
    return (user + nice + system + sum(others)) / ticks, own / ticks


def measure(setup, case, engines, rounds, burst_ms):
    """Median times in ms by engine, in one interleaved run; and rows for the log."""
    workers, rows = {}, []
    model, batch, threads = case
    for engine in engines:
        try:
            command = setup.command(engine, *case)
            workers[engine] = Worker(command, threads, setup.work / f"{engine}.err")
        except Failed as why:
            rows.append([*case, engine, *[""] * 7, str(why)])
    processes = [os.getpid(), *(worker.process.pid for worker in workers.values())]
    began, (all_before, own_before) = time.monotonic(), cpu_seconds(processes)
    for _ in range(rounds):
        for worker in workers.values():
            # The first run of a burst warms the caches that the others have emptied.
            (warm,) = worker.burst(1)
            worker.times += worker.burst(max(2, min(200, round(burst_ms / warm))))
    all_after, own_after = cpu_seconds(processes)
    foreign = (all_after - all_before - own_after + own_before) / (time.monotonic() - began)
    print("{:16} batch {} threads {}:".format(*case), f"{foreign:.2f} cores busy with other processes", file=sys.stderr)
    medians = {}
    for engine, worker in workers.items():
        medians[engine] = statistics.median(worker.times)
        figures = (medians[engine], min(worker.times), len(worker.times), worker.load, worker.close(), worker.error)
        rows.append([*case, engine, *(f"{figure:.4g}" for figure in figures), f"{foreign:.2f}", ""])
        print("{:16} batch {} threads {} {:16} {:9.2f} ms".format(*case, engine, medians[engine]), file=sys.stderr)
    return medians, rows


def table(results, engines):
    """Markdown: a row per case; the fastest other engine is bold."""
    others = [engine for engine in engines if engine != OURS]
    lines = ["| model | batch | threads | convzoo ms | " + " | ".join(others) + " | fastest / convzoo |"]
    lines.append("|---|" + "---:|" * (len(others) + 4))
    ratios = []
    for case, medians in results.items():
        rivals = {engine: ms for engine, ms in medians.items() if engine != OURS}
        if OURS not in medians or not rivals:
            continue
        fastest = min(rivals, key=rivals.get)
        ratios.append(rivals[fastest] / medians[OURS])
        cells = []
        for engine in others:
            text = f"{rivals[engine]:.1f}" if engine in rivals else "–"
            cells.append(f"**{text}**" if engine == fastest else text)
        lines.append("| {} | {} | {} |".format(*case) + f" {medians[OURS]:.1f} | {' | '.join(cells)} | {ratios[-1]:.2f} |")
    if ratios:
        mean = math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))
        lines += ["", f"Geometric mean of the ratios {mean:.2f}, least {min(ratios):.2f}, {len(ratios)} cases."]
    return "\n".join(lines)


def machine(setup, engines):
    """One paragraph: date, processor and versions."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    ask = [str(setup.python), "-c", "import importlib.metadata as m, sys; print(*(m.version(n) for n in sys.argv[1:]))"]
    packages = ["torch", "torchvision", "timm", "onnxruntime", "openvino"]
    versions = subprocess.run([*ask, *packages], capture_output=True, text=True, check=True).stdout.split()
    named = [f"{name} {version}" for name, version in zip(packages, versions)]
    lock = (HERE / "rust" / "Cargo.lock").read_text().split("[[package]]")
    crates = {"rten": "rten", "tract": "tract-onnx", "candle": "candle-core", "burn": "burn"}
    for engine in engines:
        for entry in lock:
            if engine in crates and f'name = "{crates[engine]}"\n' in entry:
                named.append(f"{crates[engine]} {entry.split('version = ')[1].splitlines()[0].strip(chr(34))}")
    rust = subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    commit = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(commit, capture_output=True, text=True).stdout.strip()
    day = datetime.date.today()
    return (
        f"{day}, {os.cpu_count()} × {cpu}, {platform.system()} {platform.release()}; convzoo {commit}, rustc {rust}; "
        f"{', '.join(named)}. fp32, random weights; median ms over interleaved bursts; the fastest other engine is bold."
    )


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "convzoo-peers"
    parser.add_argument("--work", type=Path, default=cache, help=f"where everything made is kept [{cache}]")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], choices=[1, 8])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--engines", nargs="+", default=[*PYTHON, *RUST], choices=[*PYTHON, *RUST])
    parser.add_argument("--rounds", type=int, default=7, help="bursts of each engine")
    parser.add_argument("--burst-ms", type=float, default=250.0)
    parser.add_argument("--setup-only", action="store_true", help="build everything, time nothing")
    return parser.parse_args()


def main():
    args = arguments()
    args.work = args.work.resolve()
    if args.work.is_relative_to(ROOT):
        sys.exit("--work must lie outside the repository")
    setup = Setup(args.work, args.models, args.engines)
    if args.setup_only:
        return
    engines, results = [OURS, *args.engines], {}
    with open(args.work / "times.csv", "w", newline="") as file:
        log = csv.writer(file)
        log.writerow("model batch threads engine median_ms min_ms runs load_ms peak_mib error foreign_cores failed".split())
        for case in [(m, b, t) for b in args.batches for t in args.threads for m in args.models]:
            results[case], rows = measure(setup, case, engines, args.rounds, args.burst_ms)
            log.writerows(rows)
            file.flush()
    text = f"{machine(setup, engines)}\n\n{table(results, engines)}\n"
    (args.work / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
