#!/usr/bin/env python3
"""Runs the benchmarks of this house and of its peers in turns, and keeps the raw results.

    python bench/run.py [--list] [--turns 5] [--binary target/release/aivillage] [WORD ...]

Each case has our command and perhaps a peer's; a turn runs one after the other. `results/CASE.json` holds every document
that was printed, the machine, and what others took of its processors in the second before the case. Run it with the Python of the peers' environment (README.md).
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"


def aggregate(strategy, clients, params, runs=3, peer=None, peer_clients=None, peer_params=None, extra=()):
    """A case of `bench aggregate` beside Flower; the peer's shape is ours unless it would take minutes."""
    ours = ["bench", "aggregate", "--strategy", strategy, "--clients", str(clients), "--params", str(params)]
    ours += ["--runs", str(runs), "--json", *extra]
    theirs = ["aggregate_peer.py", "--strategy", peer or strategy, "--repeat", "1"]
    theirs += ["--clients", str(peer_clients or clients), "--params", str(peer_params or params)]
    return {"ours": ours, "peer": theirs}


def secure(participants, params, *more, peer=None, **case):
    """A case of `bench secure`, on one thread beside Flower's SecAgg+, whose `peer` arguments say the rest of the shape."""
    shape = ["--participants", str(participants), "--params", str(params)]
    case["ours"] = ["bench", "secure", *shape, *more, "--runs", "1", "--json"]
    if peer:
        case["ours"] += ["--threads", "1"]
        case["peer"] = ["secure_peer.py", *shape, *peer]
    return case


# Robust rules are measured at 100 x 100 k: Flower's Bulyan would need minutes a turn at 1 M.
CASES = {
    "aggregate-fedavg-100x1M": aggregate("fedavg", 100, 1_000_000),
    "aggregate-fedavg-1000x100k": aggregate("fedavg", 1000, 100_000),
    "aggregate-median-100x1M": aggregate("median", 100, 1_000_000),
    "aggregate-trimmed_mean-100x1M": aggregate("trimmed_mean", 100, 1_000_000),
    "aggregate-krum-100x100k": aggregate("krum", 100, 100_000),
    "aggregate-multi_krum-100x100k": aggregate("multi_krum", 100, 100_000),
    "aggregate-bulyan-100x100k": aggregate("bulyan", 100, 100_000),
    "train": {"ours": ["bench", "train", "--json", "--slices", "3"], "peer": ["train_peer.py", "--slices", "3"]},
    "train-clipping": {"ours": ["bench", "train", "--per-sample-clipping", "--json", "--slices", "3"]},
    "ingest": {"ours": ["bench", "ingest", "--json"]},
    "round-2x100M": {"ours": ["bench", "round", "--nodes", "2", "--params", "100000000", "--rounds", "1", "--json"], "turns": 3},
    "round-1000x256": {"ours": ["bench", "updates", "--json"]},
    "round-10x1k": {"ours": ["bench", "round", "--json"]},
    # A tenth corrupt, a tenth leaves: the peer is given the threshold that this asks for.
    "secure-full": secure(64, 1_000_000, peer=["--threshold", "36"], turns=3),
    "secure-sparse": secure(64, 1_000_000, "--neighbours", "20", peer=["--neighbours", "20", "--threshold", "14"], turns=3),
    "secure-100x1M": secure(100, 1_000_000, "--threads", "1"),
    "secure-100x1M-24": secure(100, 1_000_000, "--bits", "24", "--threads", "1"),
    "secure-1000x100k": secure(1000, 100_000, turns=3),
    "robust": {"ours": ["bench", "robust", "--json"], "turns": 1},
}


def machine():
    """What a reader needs to judge the figures."""
    model = "unknown"
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    memory = next(l for l in pathlib.Path("/proc/meminfo").read_text().splitlines() if l.startswith("MemTotal"))
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    rustc = subprocess.run(["rustc", "--version"], capture_output=True, text=True)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gb": round(int(memory.split()[1]) / 1e6, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "rustc": rustc.stdout.strip(),
        "commit": commit.stdout.strip(),
    }


def busy():
    """Share of the processors, 0 to 1, that other programs take in one second in which this one sleeps."""
    def times():
        fields = [int(f) for f in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(fields), fields[3] + fields[4]
    before = times()
    time.sleep(1)
    total, idle = (b - a for a, b in zip(before, times()))
    return round(1 - idle / total, 3)


def document(command):
    """Runs a command that prints one JSON document; its failure ends the case."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr.strip()}")
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="run the cases whose names hold one of these")
    parser.add_argument("--list", action="store_true", help="list the cases")
    parser.add_argument("--turns", type=int, default=5, help="turns of each case")
    parser.add_argument("--binary", default=str(ROOT / "target/release/aivillage"))
    args = parser.parse_args()
    chosen = {n: c for n, c in CASES.items() if not args.words or any(w in n for w in args.words)}
    if args.list:
        print("\n".join(chosen))
        return
    RESULTS.mkdir(exist_ok=True)
    failed = []
    for name, case in chosen.items():
        others = busy()
        ours, peer = [], []
        print(f"{name} (others take {others:.0%})", file=sys.stderr, flush=True)
        try:
            for _ in range(case.get("turns", args.turns)):
                ours.append(document([args.binary, *case["ours"]]))
                if "peer" in case:
                    script, *rest = case["peer"]
                    peer.append(document([sys.executable, str(HERE / script), *rest]))
        except RuntimeError as error:
            print(f"  failed: {error}", file=sys.stderr, flush=True)
            failed.append(name)
            continue
        result = {
            "case": name,
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
            "busy_before": others,
            "command": ["aivillage", *case["ours"]],
            "peer_command": case.get("peer"),
            "ours": ours,
            "peer": peer,
        }
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
