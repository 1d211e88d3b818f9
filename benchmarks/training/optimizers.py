"""The optimizers, and which of them moves which parameter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...mixers import Mixer
from ...models import LanguageModel


def make_optimizer(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with betas 0.9 and 0.95, and weight decay on parameters of two dimensions or more.

    Mixers may ask for groups of their own, see `Mixer.parameter_groups`. The learning rate of a group
    is `learning_rate` times its `learning_rate_scale`; whoever changes it later keeps to that.
    Raises `ValueError` for a mixer whose gradients are sparse: AdamW takes none.
    """
    return _adamw(model, learning_rate, weight_decay, without=())


def make_optimizers(
    model: LanguageModel, kind: Literal["adamw", "muon"], learning_rate: float, weight_decay: float
) -> list[Optimizer]:
    """The optimizers of `kind`; every parameter of `model` belongs to one of them.

    muon: Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) for the weights of linear maps within
    the layers, but for those that mixers ask groups for; AdamW for all else, see `make_optimizer`. Muon's updates are
    scaled to the root mean square of AdamW's (Liu et al. 2025, arXiv 2502.16982), so that one `learning_rate` and
    `weight_decay` suits both. Raises `ValueError` where `make_optimizer` does, and if torch is too old for Muon.
    """
    if kind == "adamw":
        return [make_optimizer(model, learning_rate, weight_decay)]
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"optimizer muon needs torch 2.9 or later, this is {torch.__version__}; take adamw")
    apart = {id(p) for group in _groups_apart(model) for p in group["params"]}
    linear = (m for m in model.layers.modules() if isinstance(m, nn.Linear))
    hidden = [m.weight for m in linear if m.weight.requires_grad and id(m.weight) not in apart]
    group = {"params": hidden, "learning_rate_scale": 1.0}
    muon = torch.optim.Muon([group], lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, _adamw(model, learning_rate, weight_decay, without=hidden)]


def set_rate(optimizers: Iterable[Optimizer], learning_rate: float) -> None:
    """Give every group `learning_rate` times its `learning_rate_scale`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group["learning_rate_scale"]


def _adamw(model: nn.Module, learning_rate: float, weight_decay: float, without: Iterable[Tensor]) -> torch.optim.AdamW:
    apart = _groups_apart(model)
    if any(group.get("sparse_gradient") for group in apart):
        raise ValueError(
            "AdamW takes no sparse gradients: build the mixers with sparse_gradient=False to train them here"
        )
    taken = {id(p) for p in without} | {id(p) for group in apart for p in group["params"]}
    parameters = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    rest = {"learning_rate_scale": 1.0, "weight_decay": weight_decay}
    groups = [
        {**rest, "params": [p for p in parameters if p.ndim >= 2]},
        {**rest, "params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        *({**rest, **group} for group in apart),
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)
    set_rate([optimizer], learning_rate)
    return optimizer


def _groups_apart(model: nn.Module) -> list[dict[str, Any]]:
    return [group for m in model.modules() if isinstance(m, Mixer) for group in m.parameter_groups()]
