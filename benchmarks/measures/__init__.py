"""What is measured of a model."""

from typing import Annotated

from pydantic import Field

from .base import Measure
from .memory import Memory
from .perplexity import Perplexity
from .recall import Recall
from .speed import Speed

AnyMeasure = Annotated[Speed | Memory | Recall | Perplexity, Field(discriminator="measure")]
MEASURES: dict[str, type[Measure]] = {
    "speed": Speed,
    "memory": Memory,
    "recall": Recall,
    "perplexity": Perplexity,
}

__all__ = ["MEASURES", "AnyMeasure", "Measure", "Memory", "Perplexity", "Recall", "Speed"]
