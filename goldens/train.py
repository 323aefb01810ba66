#!/usr/bin/env python3
"""Makes `tests/goldens/train.*`: what PyTorch's autograd answers, in f64, for one training step of whole networks.

    python goldens/train.py [--only NAME ...] [--cases full small]

Loss: cross entropy, auxiliary heads weighing 0.3; dropout and stochastic depth off. Weights and images follow
`recipe.py`. See README.md here for what is stored and why that is enough.
"""
import argparse
import copy
import json
import time
import warnings

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from safetensors.numpy import save_file

import make
import recipe
import zoo

NETWORKS = ["alexnet", "vgg11_bn", "googlenet", "resnet18", "resnet50", "densenet121", "efficientnet_b0", "seresnet50",
            "deform_resnet50_v1_c5", "deform_resnet50_v2_c3"]
FULL, SMALL = (2, 3, 224, 224), (3, 3, 72, 88)
# One image has half the kinks of two.
FULLER = dict.fromkeys(
    ["googlenet", "vgg11_bn", "resnet50", "deform_resnet50_v1_c5", "deform_resnet50_v2_c3"], (1, 3, 224, 224))
SMALLER = {"vgg11_bn": (2, 3, 40, 48), "densenet121": (2, 3, 128, 128), **dict.fromkeys(
    ["resnet50", "seresnet50", "deform_resnet50_v1_c5", "deform_resnet50_v2_c3"], (2, 3, 56, 72))}
IMAGES = 60     # tried
NUDGES = 5      # routes of f32 on images whose pixels are a last place off
CALM = 4e-4     # the largest relative error of f32 in a golden; beyond it some unit crossed its kink
# Where no image of IMAGES is that calm.
LIVELY = {("googlenet", "full"): 2e-3, ("vgg11_bn", "full"): 2e-3}
BUCKETS = 32
AUX = 0.3


def sketch(name, values):
    """Sums of the values under pseudo-random signs in pseudo-random buckets: the squared distance of two sketches is, on
    average, that of what they were made from."""
    flat = values.reshape(-1)
    sums = np.zeros(BUCKETS)
    step = 1 << 20
    for start in range(0, flat.size, step):
        part = flat[start:start + step]
        pick = (recipe.unit(name + ".sketch", np.arange(start, start + part.size)) * 2 * BUCKETS).astype(np.int64)
        sums += np.bincount(pick >> 1, np.where(pick & 1, part, -part), BUCKETS)
    return sums


def train_step(model, x, labels):
    """Loss, and by name every gradient, updated statistic and output, in f64."""
    model.zero_grad()
    x = x.clone().requires_grad_(True)
    out = model(x)
    heads = {"logits": out} if torch.is_tensor(out) else {
        "logits": out.logits, "aux1": out.aux_logits1, "aux2": out.aux_logits2}
    loss = sum(F.cross_entropy(y, labels) * (1.0 if name == "logits" else AUX) for name, y in heads.items())
    loss.backward()
    values = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    values |= {k: p.grad for k, p in model.named_parameters()}
    values |= {"input": x.grad, **heads}
    return loss.item(), {k: v.detach().double().contiguous().numpy() for k, v in values.items()}


def in_f32(model, x, labels):
    """PyTorch's f32 by several routes, which round differently: three ways to compute, and some pixels a last place off."""
    ways = [(torch.channels_last, True, x), (torch.contiguous_format, False, x), (torch.contiguous_format, True, x)]
    for i in range(NUDGES):
        coin = torch.from_numpy(recipe.unit(f"nudge{i}", np.arange(x.numel())) < 0.5).reshape(x.shape)
        ways.insert(1, (torch.contiguous_format, True, torch.where(coin, x, torch.nextafter(x, torch.zeros(())))))
    for layout, mkldnn, image in ways:
        with torch.backends.mkldnn.flags(enabled=mkldnn):
            yield train_step(copy.deepcopy(model).to(memory_format=layout), image.to(memory_format=layout), labels)[1]


def keep_from_kinks(model, knobs):
    """Norms that lift most of what they give over the corner of a ReLU, and offsets between whole pixels, where the bilinear
    image has corners: the fewer units lie within rounding of one, the more a comparison says."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("conv_offset.weight"):
                p.mul_(torch.tensor(0.02))
            elif name.endswith("conv_offset.bias"):
                p.mul_(torch.tensor(0.2)).add_(torch.tensor(0.5))
            elif isinstance(model.get_submodule(name.rpartition(".")[0]), torch.nn.BatchNorm2d) and name.endswith("bias"):
                p.add_(torch.tensor(2.5) * torch.tensor(knobs["gain"]))


def quiet(name, knobs):
    model = zoo.build(name)
    make.fill(model, knobs)
    keep_from_kinks(model, knobs)
    for module in model.modules():
        if isinstance(module, (torch.nn.Dropout, torchvision.ops.StochasticDepth)):
            module.p = 0.0
    return model.train()


def attempt(model, shape, scale, seed, calm):
    """How badly f32 fares with an image, and what is stored of it, if that is not too badly."""
    x = torch.from_numpy(recipe.image(shape, scale, seed))
    labels = torch.tensor([i * 137 % 1000 for i in range(shape[0])])
    loss, exact = train_step(copy.deepcopy(model).double(), x.double(), labels)
    error = {k: 0.0 for k in exact}
    norm = {k: float(np.linalg.norm(v)) for k, v in exact.items()}
    alive = 1e-6 * max(norm[k] for k, _ in model.named_parameters())     # a bias in front of a batch norm has no gradient
    for near in in_f32(model, x, labels):
        error = {k: max(e, float(np.linalg.norm(near[k] - exact[k]))) for k, e in error.items()}
        worst = max(error[k] / norm[k] for k in norm if norm[k] > alive)
        if worst > calm:
            return worst, None
    rows = [[norm[k], error[k], *sketch(k, v)] for k, v in exact.items()]
    entry = {"shape": list(shape), "image": seed, "labels": labels.tolist(), "loss": loss, "f32_error": worst}
    return worst, (entry, np.array(rows, np.float32))


def find(name, case, model, scale):
    """The first image on which f32 and f64 see every unit on the same side of its kink."""
    shape = FULLER.get(name, FULL) if case == "full" else SMALLER.get(name, SMALL)
    for i in range(IMAGES):
        worst, stored = attempt(model, shape, scale, f"input{i}", LIVELY.get((name, case), CALM))
        print(f"{name:24} {case:6} {shape} image {i}: f32 within {worst:.1e}", flush=True)
        if stored:
            return stored
    raise AssertionError(f"{name}/{case}: no image is calm")


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--only", nargs="*", default=NETWORKS)
    ap.add_argument("--cases", nargs="*", default=["full", "small"])
    ap.add_argument("--threads", type=int, default=1)
    a = ap.parse_args()
    warnings.filterwarnings("ignore", message="TF32")
    torch.set_num_threads(a.threads)
    manifest = json.loads((make.OUT / "manifest.json").read_text())
    path = make.OUT / "train.json"
    facts = json.loads(path.read_text()) if path.exists() else {}
    tables = dict(make.load(make.OUT / "train.safetensors", {}))
    for name in a.only:
        start = time.time()
        model = quiet(name, manifest[name])
        try:
            found = {case: find(name, case, model, manifest[name]["input_scale"]) for case in a.cases}
        except AssertionError as e:
            print("FAILED", e, flush=True)
            continue
        facts.setdefault(name, {}).update((case, entry) for case, (entry, _) in found.items())
        tables |= {f"{name}/{case}": rows for case, (_, rows) in found.items()}
        print(f"{name:24} {', '.join(found)}: {time.time() - start:.0f} s", flush=True)
        body = ",\n".join(f' "{k}": {json.dumps(v)}' for k, v in sorted(facts.items()))
        path.write_text("{\n" + body + "\n}\n")
        save_file(tables, make.OUT / "train.safetensors")


if __name__ == "__main__":
    main()
