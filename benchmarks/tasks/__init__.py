"""What models are trained and tested on."""

from typing import Annotated

from pydantic import Field

from .base import IGNORE, Batch, Task
from .mqar import MqarTask
from .needle import NeedleTask
from .text import TextTask

RecallTask = Annotated[NeedleTask | MqarTask, Field(discriminator="task")]  # those that ask for what was read
AnyTask = Annotated[NeedleTask | MqarTask | TextTask, Field(discriminator="task")]

__all__ = ["IGNORE", "AnyTask", "Batch", "MqarTask", "NeedleTask", "RecallTask", "Task", "TextTask"]
