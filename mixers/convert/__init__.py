"""Mixers out of the layers of other libraries, with their weights."""

from .fla import from_fla
from .huggingface import from_huggingface

__all__ = ["from_fla", "from_huggingface"]
