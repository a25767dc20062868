"""A trained model as files that other programs open: a Hugging Face folder, or ONNX, measured against the original.

What is written is what was delivered to everybody: the encoder with its LoRA folded in, heads, centre and scoring. A merchant's
own layer, its popularity, its catalogue and its metrics are in none of it.
"""

from fedrec.export.folders import FORMATS, export
from fedrec.export.measuring import measure_export, write_figures

__all__ = ["FORMATS", "export", "measure_export", "write_figures"]
