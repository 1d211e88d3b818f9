"""State space models and other recurrences and long convolutions."""

from .hyena import Hyena
from .mamba import Mamba
from .mamba2 import Mamba2
from .mamba3 import Mamba3
from .min_gru import MinGRU
from .mlstm import MLSTM
from .rg_lru import RGLRU
from .rwkv6 import RWKV6
from .rwkv7 import RWKV7
from .s4d import S4D
from .slstm import SLSTM

__all__ = ["MLSTM", "RGLRU", "RWKV6", "RWKV7", "S4D", "SLSTM", "Hyena", "Mamba", "Mamba2", "Mamba3", "MinGRU"]
