#!/usr/bin/env python3
"""Makes `tests/goldens/`: what PyTorch answers, in f64, for weights and inputs that follow `recipe.py`.

    python goldens/make.py [--only NAME ...] [--missing]

`--only` replaces those models' entries and keeps the rest; `--missing` leaves out what is there already. See README.md here.
"""
import argparse
import copy
import json
import pathlib
import time

import numpy as np
import torch
import torchvision
from safetensors.numpy import load_file, save_file

import recipe
import zoo

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "goldens"
LAYERS = {
    "alexnet": 127, "alexnet_paper": 131, "vgg11_bn": 96, "googlenet": 101, "googlenet_paper": 101, "resnet18": 97,
    "resnet20": 32, "resnext50_32x4d": 97, "densenet121": 97, "seresnet50": 97, "legacy_senet154": 97,
    "efficientnet_b0": 97, "efficientnet_v2_s": 97, "mobilenet_v2": 97, "squeezenet1_0": 97,
    "deform_resnet50_v2_c3": 97}     # side of the image
FULL_LISTS = ["googlenet", "googlenet_paper", "resnet50", "densenet121", "legacy_senet154", "efficientnet_b0",
              "deform_resnet50_v2_c3", "densenet_bc_100_12"]
BATCH2 = ["alexnet", "googlenet_paper", "resnet18", "densenet121", "legacy_seresnext50_32x4d", "efficientnet_b0",
          "squeezenet1_1", "deform_resnet50_v1_c5", "resnet20"]
SAMPLES = 16
# Gated and clipped networks are easily chaotic: these keep f32 within 1e-5 of f64, so that 1e-4 judges the code alone.
DAMPING = {"efficientnet_b": 0.2, "efficientnet_v": 0.6, "mobilenet_v2": 0.5}
TARGET = {"efficientnet_v": 1.0, "mobilenet_v2": 1.0}


def damped(model, net):
    """Suffixes of the norm weights that close a residual branch."""
    if model in ("resnet18", "resnet34") or model.startswith("resnet") and zoo.is_cifar(model):
        return [".bn2.weight"]
    if not model.startswith(("resn", "wide", "ser", "legacy", "deform", "eff", "mobile")):
        return []
    if model.startswith("efficientnet_b"):     # sums, and gates, which saturated would turn f32 noise into other answers
        sums = [n for n, m in net.named_modules() if getattr(m, "use_res_connect", False)]
        last = {n: [k for k, p in net.get_submodule(n).named_parameters() if p.dim() == 1][-2] for n in sums}
        return [".fc2.weight"] + [f"{n}.{k}" for n, k in last.items()]
    if model.startswith("efficientnet_v2"):     # `.block.1.1` closes a fused block but sits inside an unfused one
        fused = [n for n, m in net.named_modules() if isinstance(m, torchvision.models.efficientnet.FusedMBConv)]
        return [".block.3.1.weight", ".block.2.1.weight"] + [n + ".block.1.1.weight" for n in fused]
    if model.startswith("mobile"):
        return [".conv.3.weight"]
    return [".bn3.weight"]


def fill(model, knobs):
    """Gives every parameter and statistic its recipe value, in f64; returns [(name, shape)] in order."""
    state = model.state_dict()
    listing = [(k, list(v.shape)) for k, v in state.items() if not k.endswith("num_batches_tracked")]
    with torch.no_grad():
        for name, shape in listing:
            state[name].copy_(torch.from_numpy(recipe.parameter(name, shape, knobs)))
    return listing


def run(model, x):
    with torch.no_grad():
        return model(torch.from_numpy(x).to(next(model.parameters()).dtype)).double().numpy()


def relative(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def rms(y):
    return float(np.sqrt(np.mean(y * y)))


def find_gain(name, model, knobs, target=3.0):
    """The norm gain, to two decimals, that brings small-image logits near an rms of `target`."""
    if name.startswith("efficientnet_b"):
        return 1.15     # below 1.05 the signal dies in the deepest of them, beyond 1.25 it turns chaotic
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    if not norms:
        return 1.0
    side = 32 if zoo.is_cifar(name) else 97
    x = recipe.image((1, 3, side, side), knobs["input_scale"])
    base = [m.weight.detach().clone() for m in norms]      # at gain 1

    def spread(gain):
        with torch.no_grad():
            for m, w in zip(norms, base):
                m.weight.copy_(w * gain)
        return rms(run(model, x))

    low, high = 0.3, 4.0
    for _ in range(8):
        mid = (low * high) ** 0.5
        if spread(mid) > target:
            high = mid
        else:
            low = mid
    return round((low * high) ** 0.5, 2)


def layer_stats(model, x):
    """Per module that runs exactly once and yields one tensor: norm, mean and strided samples of its output."""
    seen, order = {}, []

    def hook(name):
        def inner(_, __, y):
            order.append(name)
            if torch.is_tensor(y):
                flat = y.detach().reshape(-1).double().numpy()
                picks = [flat[i * flat.size // SAMPLES] for i in range(SAMPLES)]
                row = [np.linalg.norm(flat), flat.mean(), *picks]
                seen[name] = (list(y.shape), row)
        return inner

    handles = [m.register_forward_hook(hook(n)) for n, m in model.named_modules() if n]
    run(model, x)
    for h in handles:
        h.remove()
    once = [n for n in order if n in seen and order.count(n) == 1]
    listing = [{"name": n, "shape": seen[n][0]} for n in once]
    return listing, np.array([seen[n][1] for n in once], np.float32)


def cases(name):
    own = zoo.size(name)
    odd = (37, 29) if zoo.is_cifar(name) else (227, 203)
    found = {"own": (1, 3, own, own), "odd": (1, 3, *odd)}
    if name in BATCH2:
        found["batch2"] = (2, 3, *((29, 37) if zoo.is_cifar(name) else (129, 97)))
    return found


def make(name, logits, layers):
    knobs = {"gain": 1.0, "damped": [], "damping": DAMPING.get(name[:14], 0.3),
             "input_scale": 64.0 if name.endswith("net_paper") else 1.0}
    single = zoo.build(name)
    knobs["damped"] = damped(name, single)
    fill(single, knobs)
    knobs["gain"] = find_gain(name, single, knobs, TARGET.get(name[:14], 3.0))
    listing = fill(single, knobs)
    model = copy.deepcopy(single).double()
    lines = "\n".join(" ".join([n, *map(str, s)]) for n, s in listing)
    entry = {**knobs, "tensors": len(listing), "names_fnv": f"{recipe.fnv1a(lines.encode()):016x}",
             "params": sum(p.numel() for p in model.parameters()), "cases": {}}
    for case, shape in cases(name).items():
        x = recipe.image(shape, knobs["input_scale"])
        y = run(model, x)
        near, count = zoo.counting_macs(single, lambda: run(single, x))
        entry["cases"][case] = {"shape": list(shape), "rms": round(rms(y), 4), "f32_error": relative(near, y)}
        if case == "own":
            entry["macs"] = count
        if case == "odd":
            entry["moved"] = round(relative(run(single, recipe.image(shape, knobs["input_scale"], "other")), y), 4)
            assert entry["moved"] > 0.03, f"{name}: a different input moves the logits by only {entry['moved']}"
        assert 0.1 < rms(y) < 1000, f"{name}: logits have rms {rms(y)}"
        assert entry["cases"][case]["f32_error"] < 1e-5, f"{name}: chaotic, f32 is off by {entry['cases'][case]}"
        logits[f"{name}/{case}"] = y.astype(np.float32)
    if name in LAYERS:
        side = LAYERS[name]
        shape = (1, 3, side, side + 16)
        entry["layers"], rows = layer_stats(model, recipe.image(shape, knobs["input_scale"]))
        entry["layers_shape"] = list(shape)
        layers[name] = rows
    if name in FULL_LISTS:
        (OUT / "names").mkdir(exist_ok=True)
        (OUT / "names" / f"{name}.txt").write_text(lines + "\n")
    return entry


def checksums():
    """The recipe's own values, for the test that Rust follows it bit for bit."""
    knobs = {"gain": 1.37, "damped": [".bn2.weight"], "damping": 0.3}
    wanted = [("layer1.0.conv1.weight", [64, 32, 3, 3]), ("fc.weight", [300, 1001]), ("fc.bias", [1001]),
              ("bn1.weight", [640]), ("layer1.0.bn2.weight", [640]), ("bn1.running_mean", [640]),
              ("bn1.running_var", [640]), ("conv_offset.weight", [18, 64, 3, 3]), ("conv_offset.bias", [18])]
    found = [{"name": n, "shape": s, "fnv": f"{recipe.fnv1a(recipe.parameter(n, s, knobs).tobytes()):016x}"}
             for n, s in wanted]
    x = recipe.image((2, 3, 37, 29), 64.0)
    return {**knobs, "parameters": found, "image_fnv": f"{recipe.fnv1a(x.tobytes()):016x}"}


def load(path, empty):
    return load_file(path) if path.exists() else empty


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--only", nargs="*", default=list(zoo.MODELS))
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--missing", action="store_true")
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "recipe.json").write_text(json.dumps(checksums(), indent=1) + "\n")
    path = OUT / "manifest.json"
    manifest = json.loads(path.read_text()) if path.exists() else {}
    structure = OUT / "layers.json"
    names = json.loads(structure.read_text()) if structure.exists() else {}
    logits = dict(load(OUT / "logits.safetensors", {}))
    layers = dict(load(OUT / "layers.safetensors", {}))
    for name in (n for n in a.only if not (a.missing and n in manifest)):
        start = time.time()
        try:
            entry = make(name, logits, layers)
        except AssertionError as e:
            print("FAILED", e, flush=True)
            continue
        if "layers" in entry:
            names[name] = {"shape": entry.pop("layers_shape"), "layers": entry.pop("layers")}
        manifest[name] = entry
        own = entry["cases"]["own"]
        print(f"{name:28} {entry['params']:>11} {entry['macs'] / 1e9:7.3f} G  gain {entry['gain']:.2f}  rms {own['rms']:8.3f}"
              f"  moved {entry['moved']:.3f}  f32 {own['f32_error']:.1e}  {time.time() - start:.0f} s", flush=True)
        body = ",\n".join(f' "{k}": {json.dumps(v)}' for k, v in sorted(manifest.items()))
        path.write_text("{\n" + body + "\n}\n")
        body = ",\n".join(f' "{k}": {json.dumps(v, separators=(",", ":"))}' for k, v in sorted(names.items()))
        structure.write_text("{\n" + body + "\n}\n")
        save_file(logits, OUT / "logits.safetensors")
        save_file(layers, OUT / "layers.safetensors")


if __name__ == "__main__":
    main()
