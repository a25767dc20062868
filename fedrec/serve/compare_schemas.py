"""What is asked of another version of the model."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from fedrec.serve.schemas import RecommendRequest

__all__ = ["CompareRequest"]


class CompareRequest(RecommendRequest):
    """A list for a person by a version of the model that need not be the one that answers."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False,
        json_schema_extra={"examples": [{"history": ["p8d386587b1"], "k": 5, "version": "untrained"}]},
    )  # fmt: skip

    version: Annotated[str, StringConstraints(min_length=1, max_length=100)] = Field(
        description="One of those that `/info` names to the staff's key."
    )
