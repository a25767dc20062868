"""fedrec: merchants train one recommender together without showing what their customers do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedrec.recommender import Recommender

__all__ = ["Recommender", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # Importing torch takes seconds, and most commands do not need it.
    if name == "Recommender":
        from fedrec.recommender import Recommender

        return Recommender
    raise AttributeError(f"module 'fedrec' has no attribute {name!r}")
