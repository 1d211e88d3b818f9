"""What models are trained and tested on."""

from typing import Annotated

from pydantic import Field

from .base import IGNORE, Batch, Task
from .copying import CopyTask
from .domain_shift import DomainShiftTask
from .induction import InductionTask
from .mad import (
    MadCompressionTask,
    MadFuzzyRecallTask,
    MadMemorizationTask,
    MadNoisyRecallTask,
    MadRecallTask,
    MadSelectiveCopyTask,
)
from .mqar import MqarTask, ZoologyMqarTask
from .needle import NeedleNumberTask, NeedleTask
from .phonebook import PhonebookTask
from .state_tracking import StateTrackingTask
from .text import TextTask

RecallTask = Annotated[  # those with scored answers
    CopyTask
    | DomainShiftTask
    | InductionTask
    | MadCompressionTask
    | MadFuzzyRecallTask
    | MadMemorizationTask
    | MadNoisyRecallTask
    | MadRecallTask
    | MadSelectiveCopyTask
    | MqarTask
    | NeedleNumberTask
    | NeedleTask
    | PhonebookTask
    | StateTrackingTask
    | ZoologyMqarTask,
    Field(discriminator="task"),
]

__all__ = [
    "IGNORE",
    "Batch",
    "CopyTask",
    "DomainShiftTask",
    "InductionTask",
    "MadCompressionTask",
    "MadFuzzyRecallTask",
    "MadMemorizationTask",
    "MadNoisyRecallTask",
    "MadRecallTask",
    "MadSelectiveCopyTask",
    "MqarTask",
    "NeedleNumberTask",
    "NeedleTask",
    "PhonebookTask",
    "RecallTask",
    "StateTrackingTask",
    "Task",
    "TextTask",
    "ZoologyMqarTask",
]
