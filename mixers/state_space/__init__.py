"""State space models and other recurrences and long convolutions."""

from .mamba2 import Mamba2
from .mamba3 import Mamba3
from .mlstm import MLSTM
from .rwkv6 import RWKV6
from .rwkv7 import RWKV7
from .slstm import SLSTM

__all__ = ["MLSTM", "RWKV6", "RWKV7", "SLSTM", "Mamba2", "Mamba3"]
