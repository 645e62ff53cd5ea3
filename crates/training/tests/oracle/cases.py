"""What the oracles and the test that reads them have in common: random rounds, and how they are written.

A case is a job of some rounds with one strategy. `cases.json` lists them; the numbers of case i are in `i.bin`, little
endian: the first model (f32), then the updates of each round (f32, update by update, plane by plane), then for each round the
expected model (f64) and, if the case has `state`, the expected first vector of server state (f64).
"""

import json
import pathlib
import sys

import numpy as np

LEARNING_RATE = 0.1
# Changes stay within the grid of the test, +-1.
LIMIT = 0.9


class Job:
    """Random rounds: `updates[round][node][plane]` is a flat vector, `facts[round][node]` what the node says of it."""

    def __init__(self, seed, shapes, nodes, rounds, planes=1, outliers=0, momentum=0.0, mu=0.0):
        rng = np.random.default_rng(seed)
        self.shapes, self.nodes, self.rounds, self.planes = shapes, nodes, rounds, planes
        self.momentum, self.mu, self.invited = momentum, mu, nodes + 2
        size = sum(int(np.prod(shape)) for shape in shapes)
        # Weights away from zero, so that a relative difference means something.
        sign = rng.choice([-1.0, 1.0], size)
        self.model = (sign * rng.uniform(0.5, 1.5, size)).astype(np.float32)
        spread = np.ones((nodes, 1, 1))
        spread[rng.permutation(nodes)[:outliers]] = 8.0
        drift = rng.normal(0.0, 0.02, size)
        self.updates = [
            np.clip((drift + rng.normal(0.0, 0.05, (nodes, planes, size))) * spread, -LIMIT, LIMIT).astype(np.float32)
            for _ in range(rounds)
        ]
        one = lambda: dict(
            weight=int(rng.integers(1, 1000)),
            steps=int(rng.integers(1, 60)),
            initial_loss=float(rng.uniform(0.05, 3.0)),
            staleness=int(rng.integers(0, 4)),
        )
        self.facts = [[one() for _ in range(nodes)] for _ in range(rounds)]

    def of(self, round, key):
        return np.array([node[key] for node in self.facts[round]], dtype=np.float64)

    def plane(self, round, plane=0):
        """Updates of a round as rows, in double precision."""
        return self.updates[round][:, plane, :].astype(np.float64)

    def tensors(self, flat):
        """A flat vector as a list of tensors."""
        out, at = [], 0
        for shape in self.shapes:
            size = int(np.prod(shape))
            out.append(flat[at : at + size].reshape(shape).copy())
            at += size
        return out


def flat(tensors):
    return np.concatenate([np.asarray(t).ravel() for t in tensors])


class Writer:
    def __init__(self):
        self.folder = pathlib.Path(sys.argv[1])
        self.shapes = [[int(n) for n in shape.split("x")] for shape in sys.argv[2].split(",")]
        self.cases = []

    def add(self, oracle, strategy, config, job, models, state=None):
        """`models[round]` and `state[round]` are what the oracle says."""
        parts = [job.model.astype("<f4").tobytes()]
        parts += [round.astype("<f4").tobytes() for round in job.updates]
        for round in range(job.rounds):
            parts.append(np.asarray(models[round]).astype("<f8").tobytes())
            if state is not None:
                parts.append(np.asarray(state[round]).astype("<f8").tobytes())
        (self.folder / f"{len(self.cases)}.bin").write_bytes(b"".join(parts))
        self.cases.append(
            dict(
                oracle=oracle,
                strategy=strategy,
                config=config,
                rounds=job.rounds,
                planes=job.planes,
                nodes=job.nodes,
                invited=job.invited,
                learning_rate=LEARNING_RATE,
                momentum=job.momentum,
                mu=job.mu,
                facts=job.facts,
                state=state is not None,
            )
        )

    def finish(self):
        (self.folder / "cases.json").write_text(json.dumps(self.cases))
