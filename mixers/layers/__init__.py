"""Building blocks that several mixers share."""

from .block_linear import BlockLinear
from .convolution import ShortConvolution
from .head_norm import HeadNorm
from .low_rank import LowRank
from .norm import NORM_EPS, RMSNorm, unit_length
from .projections import GateActivation, GatedOutput, head_size, split_heads, value_size
from .rotary import apply_rotary, rotary_angles, yarn_frequencies, yarn_logit_scale
from .token_shift import token_shift

__all__ = [
    "NORM_EPS",
    "BlockLinear",
    "GateActivation",
    "GatedOutput",
    "HeadNorm",
    "LowRank",
    "RMSNorm",
    "ShortConvolution",
    "apply_rotary",
    "head_size",
    "rotary_angles",
    "split_heads",
    "token_shift",
    "unit_length",
    "value_size",
    "yarn_frequencies",
    "yarn_logit_scale",
]
