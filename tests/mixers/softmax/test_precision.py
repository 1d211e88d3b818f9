"""Under autocast, queries, keys and values reach the kernels in bfloat16: in float32 a GPU is many times slower."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers import create_mixer, list_mixers
from mixerzoo.mixers.ops.dispatch import Call, Op
from torch import Tensor
from torch.nn import functional as F

MIXERS = list_mixers(family="softmax")
# op -> why its backends are given float32 all the same
FLOAT32 = {
    "delta_attention": "each of its values is made of all before it, so that rounding adds up",
    "compressed_attention": "its weights choose the blocks that are read",
}
SDPA_IN_FLOAT32 = {"forgetting_attention": "the gradient of sums of gates, which a CPU or a GPU would round to 8 bits"}


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "conv_size": 3}])
def test_kernels_get_bfloat16(name, options, monkeypatch):
    given: dict[str, set[torch.dtype]] = {}
    select, attend = Op.select, F.scaled_dot_product_attention

    def note(who: str, tensors: Any) -> None:
        floats = [t.dtype for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]
        given.setdefault(who, set()).update(floats[:3])

    def spied_select(self: Op, backend: str, device: torch.device, call: Call | None = None) -> Any:
        function = select(self, backend, device, call)

        def run(*args: Any) -> Any:
            if self.name != "short_convolution":  # which has a test of its own, for all mixers
                note(self.name, args)
            return function(*args)

        return run

    def spied_attend(query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        note("SDPA", (query, key, value))
        return attend(query, key, value, **how)

    monkeypatch.setattr(Op, "select", spied_select)
    monkeypatch.setattr(F, "scaled_dot_product_attention", spied_attend)
    mixer = create_mixer(name, 32, **{k: v for k, v in options.items() if k in create_mixer(name, 32).options})
    with torch.autocast("cpu", torch.bfloat16):
        _, state = mixer(torch.randn(2, 20, 32), return_state=True)
        mixer(torch.randn(2, 1, 32), state)
    assert given
    for who, dtypes in given.items():
        reason = SDPA_IN_FLOAT32.get(name) if who == "SDPA" else FLOAT32.get(who)
        assert (torch.float32 in dtypes) == (reason is not None), f"{who} of {name} got {dtypes}"
