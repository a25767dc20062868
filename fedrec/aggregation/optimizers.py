"""Server optimizers: how the mean update is applied (Reddi et al., ICLR 2021, algorithm 2).

The mean update stands for a negative gradient. State is arrays only, so that a checkpoint
is a file of arrays; heads and encoder, trained in different rounds, count their own steps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedrec.model.adapter import Arrays

__all__ = ["OPTIMIZERS", "apply_update"]

Optimizer = Callable[[Arrays, Arrays, Arrays, float, float], tuple[Arrays, Arrays]]
OPTIMIZERS: dict[str, Optimizer] = {}

BETA1, BETA2, EPSILON = 0.9, 0.99, 1e-8
TINY = 1e-300


def apply_update(
    name: str, current: Arrays, update: Arrays, state: Arrays, learning_rate: float, noise: float
) -> tuple[Arrays, Arrays]:
    """The next values of the arrays in `update`, and the next state.

    Args:
        noise: standard deviation of the noise in each number of `update`, which is public; 0 where there is none.

    Raises:
        KeyError: no optimizer of that name.
    """
    return OPTIMIZERS[name]({key: current[key] for key in update}, update, state, learning_rate, noise)


def _optimizer(name: str) -> Callable[[Optimizer], Optimizer]:
    def register(function: Optimizer) -> Optimizer:
        OPTIMIZERS[name] = function
        return function

    return register


@_optimizer("average")
def average(current: Arrays, update: Arrays, state: Arrays, learning_rate: float, noise: float) -> tuple[Arrays, Arrays]:
    """FedAvg: add the mean update; neither learning rate nor noise is used."""
    return {key: current[key] + value for key, value in update.items()}, state


@_optimizer("momentum")
def momentum(current: Arrays, update: Arrays, state: Arrays, learning_rate: float, noise: float) -> tuple[Arrays, Arrays]:
    """FedAvgM: v = beta1 v + update; x = x + lr v."""
    state = dict(state)
    for key, value in update.items():
        state[f"{key}/m"] = (BETA1 * state.get(f"{key}/m", 0) + value).astype(np.float32)
    return {key: (current[key] + learning_rate * state[f"{key}/m"]).astype(np.float32) for key in update}, state


@_optimizer("adam")
def adam(current: Arrays, update: Arrays, state: Arrays, learning_rate: float, noise: float) -> tuple[Arrays, Arrays]:
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


@_optimizer("wiener")
def wiener(current: Arrays, update: Arrays, state: Arrays, learning_rate: float, noise: float) -> tuple[Arrays, Arrays]:
    """Adam's step on the part of the mean update that stands out of the noise, which is known.

    Adam divides by the size that a number has with its noise, so that under privacy all move alike, most of them by
    noise. Here the energy of the mean `m` of the updates is taken row by row and column by column (a product of the
    two, as Adafactor has it: Shazeer and Stern, ICML 2018, algorithm 1), what the noise adds to a sum is subtracted,
    and the step m / sqrt(S) is multiplied by the Wiener filter S / (S + n), with `n` the variance of the noise in `m`.
    All of it is computed from what was released, so it costs no privacy.
    """
    state, out = dict(state), {}
    for key, value in update.items():
        step = state.get(f"{key}/t", np.zeros(1, np.float32)) + 1
        m = (BETA1 * state.get(f"{key}/m", 0) + (1 - BETA1) * value).astype(np.float32)
        n = (BETA1**2 * state.get(f"{key}/n", np.zeros(1)) + (1 - BETA1) ** 2 * noise**2).astype(np.float32)
        weight = 1 - BETA1 ** float(step[0])
        mean, variance = m.astype(np.float64).reshape(len(m), -1) / weight, float(n[0]) / weight**2
        signal = _signal(mean, variance)
        move = mean * np.sqrt(signal) / (signal + variance + EPSILON**2)
        out[key] = (current[key] + learning_rate * move.reshape(value.shape)).astype(np.float32)
        state |= {f"{key}/t": step, f"{key}/m": m, f"{key}/n": n}
    return out, state


def _signal(mean: np.ndarray, variance: float) -> np.ndarray:
    """The energy of each number of (rows, columns) without its noise, as a product of one number a row and one a column."""
    energy = np.square(mean)
    rows = np.maximum(energy.sum(1) - energy.shape[1] * variance, 0)
    columns = np.maximum(energy.sum(0) - energy.shape[0] * variance, 0)
    total = max(float(energy.sum()) - energy.size * variance, 0.0)
    found: np.ndarray = total * np.outer(rows / max(rows.sum(), TINY), columns / max(columns.sum(), TINY))
    return found
