"""What is measured of a model, or of an op."""

from typing import Annotated

from pydantic import Field

from .base import Measure
from .decode_speed import DecodeSpeed
from .library_overhead import LibraryOverhead
from .memory import Memory
from .mixer_speed import MixerSpeed
from .op_speed import OpSpeed
from .overhead import Overhead
from .perplexity import Perplexity
from .recall import Recall
from .speed import Speed
from .trained import Sweep, Trained, Training, Tuning, apply_choice

AnyMeasure = Annotated[
    Speed
    | Memory
    | Tuning
    | Training
    | Recall
    | Perplexity
    | OpSpeed
    | Overhead
    | MixerSpeed
    | LibraryOverhead
    | DecodeSpeed,
    Field(discriminator="measure"),
]
"""Every measure, as a suite names them."""
MEASURES: dict[str, type[Measure]] = {
    "speed": Speed,
    "memory": Memory,
    "tuning": Tuning,
    "training": Training,
    "recall": Recall,
    "perplexity": Perplexity,
    "op_speed": OpSpeed,
    "overhead": Overhead,
    "mixer_speed": MixerSpeed,
    "library_overhead": LibraryOverhead,
    "decode_speed": DecodeSpeed,
}
"""The measures by their names."""

__all__ = [
    "MEASURES",
    "AnyMeasure",
    "DecodeSpeed",
    "LibraryOverhead",
    "Measure",
    "Memory",
    "MixerSpeed",
    "OpSpeed",
    "Overhead",
    "Perplexity",
    "Recall",
    "Speed",
    "Sweep",
    "Trained",
    "Training",
    "Tuning",
    "apply_choice",
]
