"""The papers' formulas for what Flower does not have, in a few lines of NumPy: numpy_oracle.py FOLDER SHAPES

Everything on explicit vectors in double precision. Strategies that train on the node too are here with their server's part.
"""

import numpy as np

from cases import LEARNING_RATE, Job, Writer


def scaffold(job, rate, population):
    """Karimireddy et al. 2020, algorithm 1, lines 16 and 17."""
    x, c = job.model.astype(np.float64), np.zeros(job.model.size)
    for r in range(job.rounds):
        x = x + rate * job.plane(r).mean(axis=0)
        c = c + job.nodes / population * job.plane(r, 1).mean(axis=0)
        yield x, c


def normaliser(steps, momentum, alpha):
    """1-norm of Wang et al. 2020's a: what each gradient contributes to the change, step by step."""
    gradients = np.eye(steps)
    u, v = np.zeros(steps), np.zeros(steps)
    for step in range(steps):
        v = momentum * v - alpha * u + gradients[step]
        u = u + v
    return np.abs(u).sum()


def fednova(job):
    """Wang et al. 2020, equation 9."""
    x = job.model.astype(np.float64)
    for r in range(job.rounds):
        p = job.of(r, "weight") / job.of(r, "weight").sum()
        a = np.array([normaliser(f["steps"], job.momentum, LEARNING_RATE * job.mu) for f in job.facts[r]])
        d = job.plane(r) / a[:, None]
        x = x + (p * a).sum() * (p[:, None] * d).sum(axis=0)
        yield x, None


def fedbuff(job, rate, exponent):
    """Nguyen et al. 2022, algorithm 1, with the staleness weights of its section 5."""
    x = job.model.astype(np.float64)
    for r in range(job.rounds):
        s = (1.0 + job.of(r, "staleness")) ** -exponent
        x = x + rate * (s[:, None] * job.plane(r)).sum(axis=0) / job.nodes
        yield x, None


def geometric_median(job, smoothing, iterations):
    """Pillutla et al. 2022, algorithm 2, from the weighted mean."""
    x = job.model.astype(np.float64)
    for r in range(job.rounds):
        alpha = job.of(r, "weight") / job.of(r, "weight").sum()
        d = job.plane(r)
        z = alpha @ d
        for _ in range(iterations):
            beta = alpha / np.maximum(smoothing, np.linalg.norm(d - z, axis=1))
            z = beta @ d / beta.sum()
        x = x + z
        yield x, None


def centered_clipping(job, tau, iterations):
    """Karimireddy et al. 2021, algorithm 2; tau None: the median distance from the centre."""
    x, v = job.model.astype(np.float64), np.zeros(job.model.size)
    for r in range(job.rounds):
        d = job.plane(r)
        radius = tau if tau is not None else np.median(np.linalg.norm(d - v, axis=1))
        for _ in range(iterations):
            short = np.minimum(1.0, radius / np.linalg.norm(d - v, axis=1))
            v = v + ((d - v) * short[:, None]).mean(axis=0)
        x = x + v
        yield x, v


def norm_clipping(job):
    """Sun et al. 2019, section 4, with the median of the norms as bound."""
    x = job.model.astype(np.float64)
    for r in range(job.rounds):
        d, n = job.plane(r), job.of(r, "weight")
        norms = np.linalg.norm(d, axis=1)
        short = np.minimum(1.0, np.median(norms) / norms)
        x = x + (n * short) @ d / n.sum()
        yield x, None


def mean(job):
    """The global objective of Ditto (Li et al. 2021) is that of federated averaging."""
    x = job.model.astype(np.float64)
    for r in range(job.rounds):
        n = job.of(r, "weight")
        x = x + n @ job.plane(r) / n.sum()
        yield x, None


def main():
    out = Writer()

    def add(strategy, config, formula, nodes, **job):
        job = Job(1000 + len(out.cases), out.shapes, nodes, 5, **job)
        models, states = zip(*formula(job))
        out.add("numpy", strategy, config, job, models, None if states[0] is None else states)

    # Absent: the number invited, two more than take part.
    add("scaffold", {}, lambda job: scaffold(job, 1.0, job.invited), 6, planes=2)
    config = {"server_learning_rate": 0.5, "population": 40}
    add("scaffold", config, lambda job: scaffold(job, 0.5, 40), 9, planes=2)
    for momentum, mu in [(0.0, 0.0), (0.9, 0.0), (0.0, 2.0), (0.3, 1.5)]:
        add("fednova", {"mu": mu}, fednova, 8, momentum=momentum, mu=mu)
    add("fedbuff", {"buffer_size": 10}, lambda job: fedbuff(job, 1.0, 0.5), 10)
    config = {"buffer_size": 5, "staleness_exponent": 1.3, "server_learning_rate": 0.4}
    add("fedbuff", config, lambda job: fedbuff(job, 0.4, 1.3), 5)
    for nodes, outliers in [(3, 1), (11, 4), (24, 8)]:
        config = {"tolerance": 0, "max_iterations": 60}
        add("geometric_median", config, lambda job: geometric_median(job, 1e-6, 60), nodes, outliers=outliers)
    config = {"tolerance": 0, "max_iterations": 3, "smoothing": 0.9}
    add("geometric_median", config, lambda job: geometric_median(job, 0.9, 3), 10, outliers=3)
    add("centered_clipping", {}, lambda job: centered_clipping(job, None, 1), 10, outliers=2)
    config = {"tau": 0.5, "iterations": 4}
    add("centered_clipping", config, lambda job: centered_clipping(job, 0.5, 4), 11, outliers=3)
    add("norm_clipping", {}, norm_clipping, 10, outliers=3)
    add("norm_clipping", {}, norm_clipping, 7, outliers=3)
    add("ditto", {"lambda": 0.5}, mean, 6)
    out.finish()


main()
