#!/usr/bin/env python3
"""CPU time of one round of Flower's SecAgg+, all sides in one process: its JSON stands beside `aivillage bench secure`.

The real workflow (`flwr.server.workflow.SecAggPlusWorkflow`) runs against a grid in memory that hands its messages to the
real client modifier (`flwr.client.mod.secaggplus_mod`). What is timed is what these two do; not the making of updates, nor
the copies that this grid makes of messages in place of a network. A share of the clients leaves between its shares and its
vector. The result is compared with the plain mean.

Needs PyPI flwr==1.42.0 and numpy; see bench/README.md for the environment.
"""

import argparse
import json
import logging
import statistics
import sys
import time
from importlib.metadata import version

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.common.typing import Code
from flwr.compat.common import recorddict_compat as compat
from flwr.server.client_manager import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.supercore.task_identity import TaskIdentity

logging.getLogger("flwr").setLevel(logging.ERROR)
# Whoever sends messages says who it is.
TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID


class Proxy(ClientProxy):
    """A client as its manager knows it; messages go through the grid."""

    def __init__(self, node_id):
        super().__init__(str(node_id))
        self.node_id = node_id

    def get_properties(self, *_):
        raise NotImplementedError

    def get_parameters(self, *_):
        raise NotImplementedError

    def fit(self, *_):
        raise NotImplementedError

    def evaluate(self, *_):
        raise NotImplementedError

    def reconnect(self, *_):
        raise NotImplementedError


class Stopwatch:
    """CPU seconds of this process, all threads, user and system; stands still while another one runs."""

    def __init__(self):
        self.seconds, self.since = 0.0, None

    def start(self):
        self.since = time.process_time()

    def stop(self):
        self.seconds += time.process_time() - self.since


def update(node_id, params):
    """A change of the model: normal with standard deviation 0.01."""
    return np.random.default_rng(node_id).standard_normal(params, dtype=np.float32) * np.float32(0.01)


class Grid:
    """Hands messages to clients in this process and their replies back."""

    def __init__(self, clients, params, leavers):
        self.params, self.leavers = params, leavers
        self.contexts = {nid: Context(1, nid, {}, RecordDict(), {}) for nid in clients}
        self.coordinator, self.participants = Stopwatch(), Stopwatch()
        self.upload = 0

    def send_and_receive(self, messages, timeout=None):
        self.coordinator.stop()
        replies = [reply for message in messages if (reply := self.answer(message))]
        self.coordinator.start()
        return replies

    def answer(self, message):
        configs = message.content.config_records[RECORD_KEY_CONFIGS]
        node_id, stage = message.metadata.dst_node_id, configs[Key.STAGE]
        if node_id in self.leavers and stage in (Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK):
            return None
        # One record serves all clients, and the modifier takes it apart; a network would have made copies.
        content = RecordDict({RECORD_KEY_CONFIGS: ConfigRecord(dict(configs))})
        message = Message(content, dst_node_id=node_id, message_type=message.metadata.message_type)

        def train(received, _):
            self.participants.stop()
            arrays = ndarrays_to_parameters([update(node_id, self.params)])
            result = FitRes(Status(Code.OK, ""), arrays, 1, {})
            reply = Message(compat.fitres_to_recorddict(result, keep_input=False), reply_to=received)
            self.participants.start()
            return reply

        self.participants.start()
        reply = secaggplus_mod(message, self.contexts[node_id], train)
        self.participants.stop()
        if stage == Stage.COLLECT_MASKED_VECTORS:
            vector = reply.content.config_records[RECORD_KEY_CONFIGS][Key.MASKED_PARAMETERS]
            self.upload += sum(len(part) for part in vector)
        return reply


def run(args):
    """One round; its figures."""
    clients = list(range(1, args.participants + 1))
    step = int(1 / args.dropout) if args.dropout else args.participants + 1
    leavers = set(clients[step - 1::step])
    shares = (args.neighbours or args.participants - 1) + 1
    manager = SimpleClientManager()
    for node_id in clients:
        manager.register(Proxy(node_id))
    strategy = FedAvg(min_fit_clients=len(clients), min_available_clients=len(clients))
    context = LegacyContext(Context(1, SUPERLINK_NODE_ID, {}, RecordDict(), {}), None, strategy, manager)
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    # Clients here need no model: what is sent down is one value, the vectors that come up are whole.
    model = compat.parameters_to_arrayrecord(ndarrays_to_parameters([np.zeros(1, np.float32)]), False)
    context.state.array_records[MAIN_PARAMS_RECORD] = model
    workflow = SecAggPlusWorkflow(shares, args.threshold, max_weight=1.0)
    grid = Grid(clients, args.params, leavers)
    started = time.perf_counter()
    grid.coordinator.start()
    workflow(grid, context)
    grid.coordinator.stop()
    wall = time.perf_counter() - started
    found = parameters_to_ndarrays(compat.arrayrecord_to_parameters(context.state.array_records[MAIN_PARAMS_RECORD], True))[0]
    survivors = [nid for nid in clients if nid not in leavers]
    plain = sum(update(nid, args.params).astype(np.float64) for nid in survivors) / len(survivors)
    if found.shape != plain.shape or not np.allclose(found, plain, atol=1e-5):
        sys.exit("the result is not the mean of the updates")
    participants, coordinator = grid.participants.seconds, grid.coordinator.seconds
    return {
        "cpu_s_total": participants + coordinator,
        "cpu_s_participant": participants / len(clients),
        "cpu_s_coordinator": coordinator,
        "wall_s": wall,
        "survivors": len(survivors),
        "upload_bytes_per_value": grid.upload / len(survivors) / args.params,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--participants", type=int, default=64)
    parser.add_argument("--params", type=int, default=1_000_000)
    parser.add_argument("--neighbours", type=int, help="default: all others")
    parser.add_argument("--threshold", type=int, required=True, help="as the other side's round has it")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--repeat", type=int, default=1)
    args = parser.parse_args()
    runs = [run(args) for _ in range(args.repeat)]
    medians = {key: statistics.median(one[key] for one in runs) for key in runs[0]}
    names = {"peer": "flwr", "version": version("flwr"), "numpy": np.__version__}
    shape = {key: getattr(args, key) for key in ("participants", "params", "neighbours", "threshold", "dropout")}
    print(json.dumps(names | shape | medians))


if __name__ == "__main__":
    main()
