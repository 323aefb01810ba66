#!/usr/bin/env python3
"""Makes `tests/goldens/real.json`: what PyTorch answers with the real weights on the real images.

    python goldens/real.py DATA        # the folder DATA.md describes

Prints the accuracies and stores every image's top-1, so that the Rust test can tell a wrong pixel from a wrong network.
"""
import io
import json
import pathlib
import sys
import tarfile
import zipfile

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from safetensors.torch import load_file

import zoo

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "goldens" / "real.json"


def googlenet_name(name):
    """Caffe's name of a parameter of the paper's GoogLeNet (torchvision's)."""
    stem = {"conv1.conv": "conv1_7x7_s2", "conv2.conv": "conv2_3x3_reduce", "conv3.conv": "conv2_3x3",
            "fc": "loss3_classifier"}
    layer, kind = name.rsplit(".", 1)
    if layer in stem:
        return f"{stem[layer]}.{kind}"
    block, branch = layer.removesuffix(".conv").split(".", 1)
    part = {"branch1": "1x1", "branch2.0": "3x3_reduce", "branch2.1": "3x3", "branch3.0": "5x5_reduce",
            "branch3.1": "5x5", "branch4.1": "pool_proj"}[branch]
    return f"inception_{block.removeprefix('inception')}_{part}.{kind}"


def squeezenet_name(name):
    """Caffe's name of a parameter of torchvision's squeezenet1_0."""
    layer, kind = name.rsplit(".", 1)
    fire = {3: 2, 4: 3, 5: 4, 7: 5, 8: 6, 9: 7, 10: 8, 12: 9}
    if layer == "features.0":
        return f"conv1.{kind}"
    if layer == "classifier.1":
        return f"conv10.{kind}"
    _, index, part = layer.split(".")
    return f"fire{fire[int(index)]}_{'squeeze1x1' if part == 'squeeze' else part}.{kind}"


def caffe_googlenet(data):
    m = zoo.PaperGoogLeNet(norm=False).eval()
    m.aux1 = m.aux2 = None
    weights = load_file(data / "weights/googlenet_bvlc_imagenet.safetensors")
    m.load_state_dict({k: weights[googlenet_name(k)] for k in m.state_dict()})
    return m


def caffe_squeezenet(data):
    m = torchvision.models.squeezenet1_0(weights=None).eval()
    weights = load_file(data / "weights/squeezenet1_0_imagenet.safetensors")
    m.load_state_dict({k: weights[squeezenet_name(k)] for k in m.state_dict()})
    m.classifier[1].padding = (1, 1)
    return m


def reference_io(data, model, stem):
    io_ = load_file(data / f"weights/{stem}_caffe_reference_io.safetensors")
    with torch.no_grad():
        y = model.double()(io_["input_bgr_chw"].double()[None])[0]
    model.float()
    error = ((y - io_["logits"].double()).norm() / io_["logits"].double().norm()).item()
    print(f"{stem}: Caffe's logits within {error:.1e}")
    return error


def resize_shorter(image, size):
    w, h = image.size
    wanted = (size, int(size * h / w)) if w <= h else (int(size * w / h), size)
    return image.resize(wanted, Image.BILINEAR)


def centre_crop(image, size):
    w, h = image.size
    left, top = int(round((w - size) / 2.0)), int(round((h - size) / 2.0))
    return image.crop((left, top, left + size, top + size))


def caffe_input(file, resize, crop):
    image = centre_crop(resize_shorter(Image.open(file).convert("RGB"), resize), crop)
    x = torch.from_numpy(np.asarray(image)[:, :, ::-1].astype(np.float32) - np.float32([104, 117, 123]))
    return x.permute(2, 0, 1).contiguous()


def imagenet(data, model, resize, crop):
    ids = [line.split()[0] for line in (data / "imagenet_synset.txt").read_text().splitlines()]
    answers, top1, top5 = {}, 0, 0
    with tarfile.open(data / "imagenet-sample-200.tar") as tar, torch.no_grad():
        for member in sorted((m for m in tar if m.isfile()), key=lambda m: m.name):
            name = pathlib.Path(member.name).name
            label = ids.index(name[:9])
            y = model(caffe_input(tar.extractfile(member), resize, crop)[None])[0]
            best = y.topk(5).indices.tolist()
            answers[name] = best[0]
            top1, top5 = top1 + (best[0] == label), top5 + (label in best)
    print(f"  {top1} / {len(answers)} top-1, {top5} top-5")
    return {"top1": top1, "top5": top5, "answers": answers}


def photographs(data, model):
    """The bundled photographs: index and probability of the first three classes."""
    found = {}
    for file in sorted((data / "photos").iterdir()):
        with torch.no_grad():
            p = F.softmax(model(caffe_input(file, 256, 224)[None])[0], 0)
        best = p.topk(3)
        found[file.name] = [[i, round(v, 5)] for i, v in zip(best.indices.tolist(), best.values.tolist())]
        print("  ", file.name, found[file.name])
    return found


def cifar(data, depth, file):
    m = zoo.CifarResNet(depth).eval()
    state = torch.load(data / "weights" / file, map_location="cpu", weights_only=True)["state_dict"]
    m.load_state_dict({k.removeprefix("module.").replace("linear.", "fc."): v for k, v in state.items()})
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    answers, right = {}, 0
    with zipfile.ZipFile(data / "cifar10_test_subset_1000_png_RBswapped.zip") as archive, torch.no_grad():
        for name in sorted(n for n in archive.namelist() if n.endswith(".png")):
            rgb = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))[:, :, ::-1]
            x = torch.from_numpy((rgb / np.float32(255) - mean) / std).permute(2, 0, 1)
            base = pathlib.Path(name).name
            answers[base] = m(x[None])[0].argmax().item()
            right += base.startswith(CLASSES[answers[base]])
    print(f"resnet{depth} on CIFAR-10: {right} / {len(answers)}")
    return {"right": right, "answers": "".join(str(answers[k]) for k in sorted(answers))}


def main():
    data = pathlib.Path(sys.argv[1])
    torch.set_num_threads(1)
    real = {}
    for name, model, stem in [("googlenet_bvlc", caffe_googlenet(data), "googlenet"),
                              ("squeezenet_caffe", caffe_squeezenet(data), "squeezenet")]:
        error = reference_io(data, model, stem)
        real[name] = {"caffe_error": error}
        real[name] |= imagenet(data, model, 256, 224 if stem == "googlenet" else 227)
        real[name]["photos"] = photographs(data, model)
    real["resnet20"] = cifar(data, 20, "resnet20-12fca82f.th")
    real["resnet56"] = cifar(data, 56, "resnet56-4bfd9763.th")
    OUT.write_text(json.dumps(real, indent=0) + "\n")


if __name__ == "__main__":
    main()
