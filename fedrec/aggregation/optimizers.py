"""Server optimizers: how the mean update is applied (Reddi et al., ICLR 2021, algorithm 2).

The mean update stands for a negative gradient. State is arrays only, so that a checkpoint
is a file of arrays; heads and encoder, trained in different rounds, count their own steps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedrec.model.adapter import Arrays

__all__ = ["OPTIMIZERS", "apply_update"]

Optimizer = Callable[[Arrays, Arrays, Arrays, float], tuple[Arrays, Arrays]]
OPTIMIZERS: dict[str, Optimizer] = {}

BETA1, BETA2, EPSILON = 0.9, 0.99, 1e-8


def apply_update(name: str, current: Arrays, update: Arrays, state: Arrays, learning_rate: float) -> tuple[Arrays, Arrays]:
    """The next values of the arrays in `update`, and the next state.

    Raises:
        KeyError: no optimizer of that name.
    """
    return OPTIMIZERS[name]({key: current[key] for key in update}, update, state, learning_rate)


def _optimizer(name: str) -> Callable[[Optimizer], Optimizer]:
    def register(function: Optimizer) -> Optimizer:
        OPTIMIZERS[name] = function
        return function

    return register


@_optimizer("average")
def average(current: Arrays, update: Arrays, state: Arrays, learning_rate: float) -> tuple[Arrays, Arrays]:
    """FedAvg: add the mean update; the learning rate is not used."""
    return {key: current[key] + value for key, value in update.items()}, state


@_optimizer("momentum")
def momentum(current: Arrays, update: Arrays, state: Arrays, learning_rate: float) -> tuple[Arrays, Arrays]:
    """FedAvgM: v = beta1 v + update; x = x + lr v."""
    state = dict(state)
    for key, value in update.items():
        state[f"{key}/m"] = (BETA1 * state.get(f"{key}/m", 0) + value).astype(np.float32)
    return {key: (current[key] + learning_rate * state[f"{key}/m"]).astype(np.float32) for key in update}, state


@_optimizer("adam")
def adam(current: Arrays, update: Arrays, state: Arrays, learning_rate: float) -> tuple[Arrays, Arrays]:
    """FedAdam with bias correction (Kingma and Ba, ICLR 2015, algorithm 1)."""
    state, out = dict(state), {}
    for key, value in update.items():
        step = state.get(f"{key}/t", np.zeros(1, np.float32)) + 1
        m = BETA1 * state.get(f"{key}/m", 0) + (1 - BETA1) * value
        v = BETA2 * state.get(f"{key}/v", 0) + (1 - BETA2) * np.square(value)
        move = m / (1 - BETA1 ** float(step[0])) / (np.sqrt(v / (1 - BETA2 ** float(step[0]))) + EPSILON)
        out[key] = (current[key] + learning_rate * move).astype(np.float32)
        state |= {f"{key}/t": step, f"{key}/m": m.astype(np.float32), f"{key}/v": v.astype(np.float32)}
    return out, state
