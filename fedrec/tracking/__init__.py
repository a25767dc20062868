"""Experiment trackers: what a run's server may know, shown in TensorBoard, MLflow or Weights & Biases.

A tracker is a class of three methods (`Tracker`), registered by name in `TRACKERS`. It gets the run's settings and, for each
round, the numbers that `round_values` takes from the line of `metrics.jsonl`: no merchant's name, and nothing that a merchant
computed without noise.
"""

from __future__ import annotations

from fedrec.tracking.rounds import TrackedRun, round_values
from fedrec.tracking.tracker import Memory, Run, Setting, Tracker
from fedrec.tracking.trackers import TRACKERS, open_tracker

__all__ = ["TRACKERS", "Memory", "Run", "Setting", "TrackedRun", "Tracker", "open_tracker", "round_values"]
