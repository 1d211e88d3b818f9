"""Controls: what a comparison shows where nothing, or next to nothing, is mixed."""

from .identity import Identity
from .short_convolution import ShortConvolutionMixer

__all__ = ["Identity", "ShortConvolutionMixer"]
