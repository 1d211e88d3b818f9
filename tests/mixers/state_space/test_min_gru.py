"""minGRU against the recurrence of HGRN, and against the paper's way to compute it in logarithms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers import create_mixer
from torch import Tensor
from torch.nn import functional as F


def gate_and_candidate(mixer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    gate, candidate = mixer.in_proj(x).chunk(2, dim=-1)
    return gate, candidate


@pytest.mark.parametrize("candidate", ["positive", "linear"])
def test_as_hgrn_of_fla(oracle: Any, candidate: str) -> None:
    from fla.ops.hgrn.naive import naive_recurrent_hgrn

    torch.manual_seed(0)
    mixer = create_mixer("min_gru", 32, candidate=candidate)
    x = torch.randn(2, 90, 32)
    gate, writes = gate_and_candidate(mixer, x)
    if candidate == "positive":
        writes = torch.where(writes >= 0, writes + 0.5, writes.sigmoid())
    with torch.no_grad():
        h, _ = naive_recurrent_hgrn(gate.sigmoid() * writes, F.logsigmoid(-gate))
    oracle("min_gru", f"fla-core naive_recurrent_hgrn, {candidate}", mixer(x)[0], mixer.o_proj(h), limit=1e-5)


def test_as_the_paper_computes_it_in_logarithms(oracle: Any) -> None:
    torch.manual_seed(0)
    mixer = create_mixer("min_gru", 32).double()
    x = torch.randn(2, 90, 32, dtype=torch.float64)
    gate, candidate = gate_and_candidate(mixer, x)
    log_candidate = torch.where(candidate >= 0, (candidate.clamp(min=0) + 0.5).log(), F.logsigmoid(candidate))
    log_kept = F.logsigmoid(-gate).cumsum(1)
    h = (log_kept + torch.logcumsumexp(F.logsigmoid(gate) + log_candidate - log_kept, dim=1)).exp()
    oracle("min_gru", "the paper's scan in logarithms (torch.logcumsumexp)", mixer(x)[0], mixer.o_proj(h), limit=1e-12)
