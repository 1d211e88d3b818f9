"""Mixers with a delta-rule memory: a matrix per head that replaces what a key held instead of adding to it."""

from .gated_deltanet import GatedDeltaNet

__all__ = ["GatedDeltaNet"]
