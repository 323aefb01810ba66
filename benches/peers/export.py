"""Makes the networks that all engines are timed on: `export.py FOLDER MODEL...`

For every model, with the same random weights for everyone: `MODEL.safetensors` (the state dict), and for batches 1 and 8
`MODEL_bN.onnx` (static batch, batch norm folded by the exporter) and `MODEL_bN.reference.safetensors` with `input` and
`logits`, PyTorch's own answer in f64. What is there already is left alone.
"""

import json
import sys
from pathlib import Path

import timm
import torch
import torchvision
from safetensors.torch import save_file

BATCHES = (1, 8)
SIDES = {"efficientnet_b4": 380}


def side(name):
    return SIDES.get(name, 224)


def blank(name):
    """The network with freshly initialised weights, the same ones every time."""
    torch.manual_seed(7)
    if name in torchvision.models.list_models():
        own = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
        return torchvision.models.get_model(name, weights=None, **own)
    return timm.create_model(name, pretrained=False)


def images(name, count, seed):
    return torch.randn(count, 3, side(name), side(name), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def network(name):
    """The network in evaluation mode. Its statistics are those of random images, or signals would die or explode."""
    model = blank(name).train()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain average over all batches seen
    if norms:
        for seed in (11, 12):
            model(images(name, 4, seed))
    return model.eval()


@torch.no_grad()
def macs(model, image):
    """Multiply-accumulates of convolutions and linear layers for one image."""
    total = 0

    def count(layer, _, output):
        nonlocal total
        is_conv = isinstance(layer, torch.nn.Conv2d)
        total += output.numel() * (layer.weight[0].numel() if is_conv else layer.in_features)

    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, kinds)]
    model(image)
    for hook in hooks:
        hook.remove()
    return total


@torch.no_grad()
def export(name, folder):
    done = folder / f"{name}.json"
    if done.exists():
        return
    model = network(name)
    for batch in BATCHES:
        x = images(name, batch, 20 + batch)
        torch.onnx.export(
            model, (x,), str(folder / f"{name}_b{batch}.onnx"),
            input_names=["input"], output_names=["logits"], opset_version=17, dynamo=False,
        )
        logits = model.double()(x.double()).float()
        model.float()
        assert logits.isfinite().all() and logits.std() > 1e-4, f"{name}: the logits say nothing"
        save_file({"input": x, "logits": logits.contiguous()}, folder / f"{name}_b{batch}.reference.safetensors")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / f"{name}.safetensors")
    # Last, so that what was interrupted is made again.
    done.write_text(json.dumps({"macs": macs(model, images(name, 1, 1)), "side": side(name)}))
    print("exported", name, flush=True)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    where.mkdir(parents=True, exist_ok=True)
    for each in sys.argv[2:]:
        export(each, where)
