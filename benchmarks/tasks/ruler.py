"""RULER's thirteen tasks by the names of the paper."""

from __future__ import annotations

from .base import Task
from .ruler_counts import RulerCommonWordsTask, RulerFrequentWordsTask
from .ruler_niah import RulerNiahTask
from .ruler_qa import RulerQaTask
from .ruler_variables import RulerVariablesTask

# With the settings of the paper. The two of questions need a file: give it by `model_copy(update={"qa_file": path})`.
RULER: dict[str, Task] = {
    "niah_single_1": RulerNiahTask(variant="single_1"),
    "niah_single_2": RulerNiahTask(variant="single_2"),
    "niah_single_3": RulerNiahTask(variant="single_3"),
    "niah_multikey_1": RulerNiahTask(variant="multikey_1"),
    "niah_multikey_2": RulerNiahTask(variant="multikey_2"),
    "niah_multikey_3": RulerNiahTask(variant="multikey_3"),
    "niah_multivalue": RulerNiahTask(variant="multivalue"),
    "niah_multiquery": RulerNiahTask(variant="multiquery"),
    "vt": RulerVariablesTask(),
    "cwe": RulerCommonWordsTask(),
    "fwe": RulerFrequentWordsTask(),
    "qa_1": RulerQaTask(),
    "qa_2": RulerQaTask(),
}
"""The thirteen tasks by their names there."""
