"""How models are trained: one recipe for every mixer, on data that is a function of the seed and the step alone."""

from ..doing import Progress
from ..precision import Precision, autocast
from .curriculum import Draw, MixedTask, Phase
from .evaluation import accuracy, batch_loss, scored_logits
from .loop import train, train_or_load
from .optimizers import make_optimizer, make_optimizers
from .settings import Bar, Compile, TrainingSettings

__all__ = [
    "Bar",
    "Compile",
    "Draw",
    "MixedTask",
    "Phase",
    "Precision",
    "Progress",
    "TrainingSettings",
    "accuracy",
    "autocast",
    "batch_loss",
    "make_optimizer",
    "make_optimizers",
    "scored_logits",
    "train",
    "train_or_load",
]
