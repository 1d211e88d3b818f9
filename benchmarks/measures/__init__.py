"""What is measured of a model, or of an op."""

from typing import Annotated

from pydantic import Field

from .base import Measure
from .memory import Memory
from .op_speed import OpSpeed
from .overhead import Overhead
from .perplexity import Perplexity
from .recall import Recall
from .speed import Speed

AnyMeasure = Annotated[Speed | Memory | Recall | Perplexity | OpSpeed | Overhead, Field(discriminator="measure")]
MEASURES: dict[str, type[Measure]] = {
    "speed": Speed,
    "memory": Memory,
    "recall": Recall,
    "perplexity": Perplexity,
    "op_speed": OpSpeed,
    "overhead": Overhead,
}

__all__ = ["MEASURES", "AnyMeasure", "Measure", "Memory", "OpSpeed", "Overhead", "Perplexity", "Recall", "Speed"]
