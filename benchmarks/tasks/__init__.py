"""What models are trained and tested on."""

from .base import IGNORE, Batch, Task
from .needle import NeedleTask

AnyTask = NeedleTask

__all__ = ["IGNORE", "AnyTask", "Batch", "NeedleTask", "Task"]
