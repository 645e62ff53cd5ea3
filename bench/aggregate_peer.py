#!/usr/bin/env python3
"""Times Flower's aggregation functions on random updates; the other side of `aivillage bench aggregate`.

    python aggregate_peer.py --strategy fedavg --clients 100 --params 1000000 --repeat 5

Prints one JSON document: seconds of every run, their median, and gb_per_s = clients * params * 4 bytes / median / 1e9.
What is timed starts from updates as Flower holds them when they have arrived (records of serialised f32 arrays for
fedavg, NumPy arrays for the robust rules) and ends with the aggregated arrays. Every update is a distinct buffer. Nothing of
the network, of TLS or of a disk is in it, so the comparison favours Flower.

Needs PyPI flwr==1.42.0 and numpy; see bench/README.md for the environment.
"""

import argparse
import json
import os
import statistics
import sys
import time

import numpy as np

# Some images pin OpenBLAS to an old core type, which would slow NumPy down: the peer runs as it would for a user.
os.environ.pop("OPENBLAS_CORETYPE", None)


def updates(clients: int, params: int, seed: int) -> list[np.ndarray]:
    """Distinct f32 vectors, normal with standard deviation 0.01: what a round's changes of weights look like."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(params, dtype=np.float32) * np.float32(0.01) for _ in range(clients)]


def examples(clients: int) -> list[int]:
    """Weights of the updates: 1, 2, 3 ... in turn, as the other side has them."""
    return [1 + i % 100 for i in range(clients)]


def fedavg(arrays: list[np.ndarray], weights: list[int]):
    """The function that FedAvg of `flwr.serverapp` calls, on messages as they arrive."""
    from flwr.app import ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    replies = [
        RecordDict({"arrays": ArrayRecord([a]), "metrics": MetricRecord({"num-examples": w})})
        for a, w in zip(arrays, weights, strict=True)
    ]
    return lambda: aggregate_arrayrecords(replies, "num-examples")


def fedavg_in_memory(arrays: list[np.ndarray], weights: list[int]):
    """The older function `flwr.server.strategy.aggregate.aggregate`, on arrays that need no decoding."""
    from flwr.server.strategy.aggregate import aggregate

    results = [([a], w) for a, w in zip(arrays, weights, strict=True)]
    return lambda: aggregate(results)


def robust(strategy: str, byzantine: int, beta: float):
    """A maker of the timed call for one robust rule."""
    from flwr.server.strategy import aggregate as rules

    def make(arrays: list[np.ndarray], weights: list[int]):
        def call():
            # Bulyan takes its list apart.
            results = [([a], w) for a, w in zip(arrays, weights, strict=True)]
            match strategy:
                case "median":
                    return rules.aggregate_median(results)
                case "trimmed_mean":
                    return rules.aggregate_trimmed_avg(results, beta)
                case "krum":
                    return rules.aggregate_krum(results, byzantine, 0)
                case "multi_krum":
                    return rules.aggregate_krum(results, byzantine, len(results) - byzantine)
                case "bulyan":
                    return rules.aggregate_bulyan(results, byzantine, rules.aggregate_krum, to_keep=0)
        return call

    return make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["fedavg", "fedavg_in_memory", "median", "trimmed_mean", "krum", "multi_krum", "bulyan"]
    parser.add_argument("--strategy", choices=names, required=True)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--params", type=int, default=1_000_000)
    parser.add_argument("--byzantine", type=int, default=10)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    makers = {"fedavg": fedavg, "fedavg_in_memory": fedavg_in_memory}
    make = makers.get(args.strategy) or robust(args.strategy, args.byzantine, args.beta)
    call = make(updates(args.clients, args.params, args.seed), examples(args.clients))
    seconds = []
    for run in range(args.repeat + 1):
        start = time.perf_counter()
        call()
        took = time.perf_counter() - start
        # The first run warms caches and allocator; a slow rule needs no warming.
        if run > 0 or took > 20:
            seconds.append(took)
        print(f"{args.strategy} {args.clients} x {args.params}: {took:.3f} s", file=sys.stderr)
        if took > 20 and len(seconds) >= min(args.repeat, 2):
            break
    median = statistics.median(seconds)
    from importlib.metadata import version

    print(
        json.dumps(
            {
                "peer": "flwr",
                "version": version("flwr"),
                "numpy": np.__version__,
                "strategy": args.strategy,
                "clients": args.clients,
                "params": args.params,
                "seconds": seconds,
                "median_s": median,
                "gb_per_s": args.clients * args.params * 4 / median / 1e9,
            }
        )
    )


if __name__ == "__main__":
    main()
