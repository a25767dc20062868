"""Arrays on their way to a device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["moved"]


def moved(values: np.ndarray, device: torch.device) -> Tensor:
    """An array on a device; where that is a GPU nobody waits for it, which from memory that is not pinned one would."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
