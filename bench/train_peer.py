"""Training speed of PyTorch on one CPU thread, for comparison with `aivillage bench train --json`.

The same models (mlp 784-128-10; simple_cnn: conv 5x5x16, ReLU, pool 2, conv 5x5x32, ReLU, pool 2, dense, all convolutions
with padding that keeps the size), batch 32, plain SGD with rate 0.01, softmax cross-entropy, 8,192 random images of
28 x 28 in memory, batches gathered by shuffled row numbers. One slice to warm up, then as many as asked, of which the
median counts.

    python3 -m venv peer && peer/bin/pip install torch==2.15.0 --index-url https://download.pytorch.org/whl/cpu
    peer/bin/python bench/train_peer.py [--slices 7] [--slice-ms 500] [--channels-last] [--recipe mlp]

Prints one JSON document: {"peer", "version", "threads", "results": [{"recipe", "parameters", "batch", "samples_per_s"}]}.
"""

import argparse
import json
import statistics
import time

import torch
from torch import nn

ROWS, BATCH, CLASSES = 8192, 32, 10


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, CLASSES))


def simple_cnn():
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, CLASSES),
    )


def measure(make, slices, slice_ms, channels_last):
    torch.manual_seed(1)
    model = make()
    x = torch.rand(ROWS, 1, 28, 28)
    if channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    y = torch.randint(0, CLASSES, (ROWS,))
    loss_of = nn.CrossEntropyLoss()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    speeds = []
    for piece in range(slices + 1):
        started, rows, elapsed = time.perf_counter(), 0, 0.0
        while elapsed * 1000 < slice_ms:
            order = torch.randperm(ROWS)[: ROWS // 8]
            for batch in order.split(BATCH):
                optimiser.zero_grad(set_to_none=True)
                loss = loss_of(model(x[batch]), y[batch])
                loss.backward()
                optimiser.step()
                rows += len(batch)
            elapsed = time.perf_counter() - started
        if piece > 0:
            speeds.append(rows / elapsed)
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "batch": BATCH, "samples_per_s": statistics.median(speeds)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=7, help="measured slices, of which the median counts")
    parser.add_argument("--slice-ms", type=int, default=500, help="length of a slice in milliseconds")
    parser.add_argument("--channels-last", action="store_true", help="PyTorch's other memory order")
    parser.add_argument("--recipe", choices=["mlp", "simple_cnn"], help="one model instead of both")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for name, make in [("mlp", mlp), ("simple_cnn", simple_cnn)]:
        if args.recipe in (None, name):
            results.append({"recipe": name, **measure(make, args.slices, args.slice_ms, args.channels_last)})
    print(json.dumps({"peer": "pytorch", "version": torch.__version__, "threads": 1, "results": results}, indent=2))


if __name__ == "__main__":
    main()
