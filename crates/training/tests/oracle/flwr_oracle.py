"""Flower's result for every strategy that both have, on random updates: flwr_oracle.py FOLDER SHAPES

SHAPES: the model's tensors, e.g. 20x16,16. Flower takes full models in double precision: model + change. Strategies go
through their own `aggregate_train` (message interface); Bulyan and clipped averaging, which differ or are missing there,
through `aggregate_fit`.
"""

import logging

import numpy as np
from flwr.app import Metadata
from flwr.common import (
    ArrayRecord,
    Code,
    FitRes,
    Message,
    MetricRecord,
    RecordDict,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.server import strategy as classic
from flwr.serverapp import strategy as current

from cases import LEARNING_RATE, Job, Writer, flat

logging.getLogger("flwr").setLevel(logging.ERROR)


def reply(tensors, facts):
    metadata = Metadata(
        run_id=1,
        message_id="",
        src_node_id=1,
        dst_node_id=1,
        reply_to_message_id="",
        group_id="",
        created_at=0.0,
        ttl=1.0,
        message_type="train",
    )
    metrics = MetricRecord({"num-examples": facts["weight"], "train_loss": facts["initial_loss"]})
    return Message(content=RecordDict({"arrays": ArrayRecord(tensors), "metrics": metrics}), metadata=metadata)


def by_messages(strategy, job):
    """The models of all rounds by the message interface."""
    model, models = job.model.astype(np.float64), []
    for round in range(job.rounds):
        start = ArrayRecord(job.tensors(model))
        # What `configure_train` would note; the adaptive optimisers keep plain arrays.
        adaptive = isinstance(strategy, current.fedopt.FedOpt)
        strategy.current_arrays = {k: v.numpy() for k, v in start.items()} if adaptive else start
        replies = [reply(job.tensors(model + u), f) for u, f in zip(job.plane(round), job.facts[round])]
        arrays, _ = strategy.aggregate_train(round + 1, replies)
        model = flat(arrays.to_numpy_ndarrays())
        models.append(model)
    return models


def by_results(strategy, job):
    """The models of all rounds by the classic interface."""
    model, models = job.model.astype(np.float64), []
    for round in range(job.rounds):
        strategy.current_round_params = job.tensors(model)
        results = [
            (
                None,
                FitRes(
                    status=Status(Code.OK, ""),
                    parameters=ndarrays_to_parameters(job.tensors(model + update)),
                    num_examples=facts["weight"],
                    metrics={},
                ),
            )
            for update, facts in zip(job.plane(round), job.facts[round])
        ]
        parameters, _ = strategy.aggregate_fit(round + 1, results, [])
        model = flat(parameters_to_ndarrays(parameters))
        models.append(model)
    return models


def main():
    out = Writer()

    def add(strategy, config, theirs, nodes, rounds=2, outliers=0, models=by_messages, **job):
        job = Job(len(out.cases), out.shapes, nodes, rounds, outliers=outliers, **job)
        out.add(f"flwr {type(theirs).__name__}", strategy, config, job, models(theirs, job))

    for nodes in [1, 2, 9, 24]:
        add("fedavg", {}, current.FedAvg(), nodes)
        add("median", {}, current.FedMedian(), nodes, outliers=nodes // 3)
    add("fedprox", {"mu": 0.1}, current.FedProx(proximal_mu=0.1), 7, mu=0.1)
    for rate, momentum in [(0.7, 0.9), (1.0, 0.0), (1.5, 0.5)]:
        theirs = current.FedAvgM(server_learning_rate=rate, server_momentum=momentum)
        add("fedavgm", {"server_learning_rate": rate, "server_momentum": momentum}, theirs, 8, rounds=5)
    add("fedadam", {}, current.FedAdam(), 9, rounds=5)
    add("fedyogi", {}, current.FedYogi(), 9, rounds=5)
    add("fedadagrad", {}, current.FedAdagrad(), 9, rounds=5)
    for eta, beta_1, beta_2, tau in [(0.05, 0.8, 0.95, 1e-2), (0.02, 0.0, 0.999, 1e-3), (0.3, 0.5, 0.0, 0.1)]:
        config = dict(eta=eta, beta_1=beta_1, beta_2=beta_2, tau=tau)
        add("fedadam", config, current.FedAdam(**config), 6, rounds=5)
        add("fedyogi", config, current.FedYogi(**config), 6, rounds=5)
        config = dict(eta=eta, beta_1=beta_1, tau=tau)
        # Its constructor does not take beta_1, which its formula has.
        theirs = current.FedAdagrad(eta=eta, tau=tau)
        theirs.beta_1 = beta_1
        add("fedadagrad", config, theirs, 6, rounds=5)
    for q in [0.0, 0.1, 1.0, 2.5]:
        add("qfedavg", {"q": q}, current.QFedAvg(client_learning_rate=LEARNING_RATE, q=q), 8, rounds=3)
    for nodes, beta in [(10, 0.1), (5, 0.2), (23, 0.2), (9, 0.34), (24, 0.45)]:
        add("trimmed_mean", {"beta": beta}, current.FedTrimmedAvg(beta=beta), nodes, outliers=int(beta * nodes))
    for nodes, byzantine in [(5, 1), (12, 3), (25, 7)]:
        theirs = current.Krum(num_malicious_nodes=byzantine)
        add("krum", {"byzantine": byzantine}, theirs, nodes, rounds=3, outliers=byzantine)
        for keep in [2, nodes - byzantine]:
            theirs = current.MultiKrum(num_malicious_nodes=byzantine, num_nodes_to_select=keep)
            config = {"byzantine": byzantine, "to_keep": keep}
            add("multi_krum", config, theirs, nodes, rounds=3, outliers=byzantine)
    theirs = current.MultiKrum(num_malicious_nodes=2, num_nodes_to_select=11 - 2 - 2)
    add("multi_krum", {"byzantine": 2}, theirs, 11, rounds=3, outliers=2)
    for nodes, byzantine in [(7, 1), (12, 2), (25, 5)]:
        theirs = classic.Bulyan(num_malicious_clients=byzantine, to_keep=0)
        config = {"byzantine": byzantine}
        add("bulyan", config, theirs, nodes, rounds=3, outliers=byzantine, models=by_results)
    for norm in [0.3, 1.0, 50.0]:
        clipped = classic.DifferentialPrivacyServerSideFixedClipping(
            classic.FedAvg(), noise_multiplier=0.0, clipping_norm=norm, num_sampled_clients=9
        )
        add("norm_clipping", {"clipping_norm": norm}, clipped, 9, outliers=2, models=by_results)
    out.finish()


main()
