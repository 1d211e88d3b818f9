"""What is measured of a model, or of an op: every file here with a `Measure` is one, and so is a plug-in's."""

import importlib
import pkgutil

from .base import Measure
from .entry import Entry
from .perplexity import Perplexity
from .recall import Recall
from .registry import measure_class, measures, plugin_errors
from .trained import Sweep, Trained, Training, Tuning, apply_choice

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")

__all__ = [
    "Entry",
    "Measure",
    "Perplexity",
    "Recall",
    "Sweep",
    "Trained",
    "Training",
    "Tuning",
    "apply_choice",
    "measure_class",
    "measures",
    "plugin_errors",
]
