"""One Python engine as a process: `worker.py ENGINE FOLDER MODEL BATCH THREADS`

Answers `ready LOAD_MS ERROR` after the first inference, for every line `run K` the times of K runs in ms, and
`rss PEAK_MIB` when its input ends. ERROR: the largest difference from the reference over its largest magnitude.
"""

import json
import resource
import struct
import sys
import time
from pathlib import Path

STARTED = time.perf_counter()

import numpy as np


def tensors(path):
    """What a safetensors file of f32 holds. (Engines that do without PyTorch shall not pay for importing it.)"""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    found = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            found[name] = np.frombuffer(data[begin:end], np.float32).reshape(entry["shape"]).copy()
    return found


def pytorch(folder, model, batch, x, threads, compiled):
    import torch
    from safetensors.torch import load_file

    import export

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    network = export.blank(model).eval()
    network.load_state_dict(load_file(folder / f"{model}.safetensors"))
    network, image = (t.to(memory_format=torch.channels_last) for t in (network, torch.from_numpy(x)))
    if compiled:
        import torch._inductor.config

        torch._inductor.config.freezing = True
        network = torch.compile(network)
    return lambda: network(image).numpy()


def onnxruntime(folder, model, batch, x, threads):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    path = str(folder / f"{model}_b{batch}.onnx")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"input": x})[0]


def openvino(folder, model, batch, x, threads):
    import openvino

    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    network = openvino.Core().compile_model(str(folder / f"{model}_b{batch}.onnx"), "CPU", options)
    request = network.create_infer_request()
    request.set_input_tensor(openvino.Tensor(x))

    def run():
        request.infer()
        return request.get_output_tensor(0).data

    return run


ENGINES = {
    "pytorch": lambda *case: pytorch(*case, compiled=False),
    "pytorch_compiled": lambda *case: pytorch(*case, compiled=True),
    "onnxruntime": onnxruntime,
    "openvino": openvino,
}


def main():
    engine, folder, model = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    batch, threads = int(sys.argv[4]), int(sys.argv[5])
    reference = tensors(folder / f"{model}_b{batch}.reference.safetensors")
    run = ENGINES[engine](folder, model, batch, reference["input"], threads)
    wanted, found = reference["logits"], np.asarray(run())
    assert found.shape == wanted.shape, f"logits {found.shape}, not {wanted.shape}"
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    print(f"ready {(time.perf_counter() - STARTED) * 1e3:.1f} {error:.3e}", flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line.split()[1])):
            started = time.perf_counter()
            run()
            times.append(f"{(time.perf_counter() - started) * 1e3:.4f}")
        print(*times, flush=True)
    print(f"rss {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.1f}", flush=True)


main()
