"""Building blocks that several mixers share."""

from .convolution import ShortConvolution
from .norm import NORM_EPS, RMSNorm, unit_length
from .projections import GateActivation, GatedOutput, head_size, split_heads
from .rotary import apply_rotary, rotary_angles, yarn_frequencies, yarn_logit_scale

__all__ = [
    "NORM_EPS",
    "GateActivation",
    "GatedOutput",
    "RMSNorm",
    "ShortConvolution",
    "apply_rotary",
    "head_size",
    "rotary_angles",
    "split_heads",
    "unit_length",
    "yarn_frequencies",
    "yarn_logit_scale",
]
