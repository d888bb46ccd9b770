"""Rounds of a federated mean: each data node contributes an array, the aggregator sends the sum back. Times at the aggregator."""

import time

import numpy as np

import flame

with flame.connect() as federation:
    chosen = federation.parameters
    size, rounds = chosen["size"], chosen["rounds"]
    dtype = np.float32 if size > 1 else np.float64
    value = np.ones(size, dtype=dtype)
    times = []
    for number in range(rounds):
        started = time.perf_counter()
        if federation.is_aggregator:
            total, contributors = federation.total("update", number)
            federation.broadcast({"mean": total["update"] / contributors}, "model")
            times.append(time.perf_counter() - started)
        else:
            federation.contribute("update", {"update": value}, number)
            value = federation.receive("model").value["mean"]
    if federation.is_aggregator:
        federation.submit({"seconds": times})
