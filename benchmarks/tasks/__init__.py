"""What models are trained and tested on."""

from typing import Annotated

from pydantic import Field

from .base import IGNORE, Batch, Split, Task
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
from .ruler import RULER
from .ruler_counts import RulerCommonWordsTask, RulerFrequentWordsTask
from .ruler_niah import RulerNiahTask
from .ruler_qa import RulerQaTask
from .ruler_variables import RulerVariablesTask
from .state_tracking import StateTrackingTask
from .text import TextTask
from .tokenised import TextDataset

_Recall = (
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
    | RulerCommonWordsTask
    | RulerFrequentWordsTask
    | RulerNiahTask
    | RulerQaTask
    | RulerVariablesTask
    | StateTrackingTask
    | ZoologyMqarTask
)
RecallTask = Annotated[_Recall, Field(discriminator="task")]
"""The tasks with answers that are right or wrong, as a suite names them."""
AnyTask = Annotated[_Recall | TextTask, Field(discriminator="task")]
"""Every task, as a suite names them."""

__all__ = [
    "IGNORE",
    "RULER",
    "AnyTask",
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
    "RulerCommonWordsTask",
    "RulerFrequentWordsTask",
    "RulerNiahTask",
    "RulerQaTask",
    "RulerVariablesTask",
    "Split",
    "StateTrackingTask",
    "Task",
    "TextDataset",
    "TextTask",
    "ZoologyMqarTask",
]
