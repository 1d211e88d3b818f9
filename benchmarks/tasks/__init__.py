"""What models are trained and tested on."""

from typing import Annotated

from pydantic import Field

from .base import IGNORE, Batch, Task
from .mqar import MqarTask
from .needle import NeedleTask
from .ruler import RULER
from .ruler_counts import RulerCommonWordsTask, RulerFrequentWordsTask
from .ruler_niah import RulerNiahTask
from .ruler_qa import RulerQaTask
from .ruler_variables import RulerVariablesTask
from .text import TextTask
from .tokenised import TextDataset

RecallTask = Annotated[  # those that ask for what was read
    NeedleTask
    | MqarTask
    | RulerCommonWordsTask
    | RulerFrequentWordsTask
    | RulerNiahTask
    | RulerQaTask
    | RulerVariablesTask,
    Field(discriminator="task"),
]

__all__ = [
    "IGNORE",
    "RULER",
    "Batch",
    "MqarTask",
    "NeedleTask",
    "RecallTask",
    "RulerCommonWordsTask",
    "RulerFrequentWordsTask",
    "RulerNiahTask",
    "RulerQaTask",
    "RulerVariablesTask",
    "Task",
    "TextDataset",
    "TextTask",
]
