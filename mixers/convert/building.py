"""What converting a layer takes, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..interface import Mixer
from ..registry import create_mixer

Converter = Callable[[Any], Mixer]


def convert(layer: nn.Module, converters: Mapping[str, Converter], library: str) -> Mixer:
    """The mixer that `converters`, by name of class, makes of `layer`; in training mode if the layer is."""
    name = type(layer).__name__
    if name not in converters:
        raise ValueError(f"{name} is no layer of {library} that can be converted; known are {', '.join(converters)}")
    return converters[name](layer).train(layer.training)


def build(name: str, d_model: int, weights: Mapping[str, Tensor], **options: Any) -> Mixer:
    """The mixer `name` with copies of `weights`, which give it its dtype and device."""
    mixer = create_mixer(name, d_model, **options)
    mixer.load_state_dict({key: weight.detach().clone() for key, weight in weights.items()}, assign=True)
    return mixer


def require(layer: nn.Module, source: Any = None, **expected: Any) -> None:
    """Raise `ValueError`, naming the option, unless `source` (None: the layer itself) has the values `expected`."""
    for option, wanted in expected.items():
        given = getattr(layer if source is None else source, option)
        if given != wanted:
            raise ValueError(
                f"{type(layer).__name__} with {option}={given!r} has no counterpart here, only with {option}={wanted!r}"
            )


def require_no_bias(layer: nn.Module, *names: str) -> None:
    """Raise `ValueError` if one of the projections `names` has a bias, since ours have none."""
    for name in names:
        if getattr(layer, name).bias is not None:
            raise ValueError(f"{type(layer).__name__} with a bias in {name} has no counterpart here")


def require_swish(layer: nn.Module, option: str) -> None:
    """Raise `ValueError`, naming the option, unless the function `option` of the layer is SiLU, alias swish."""
    function = getattr(layer, option)
    name = getattr(function, "__name__", type(function).__name__)
    if name.lower() not in ("silu", "swish", "siluactivation"):
        raise ValueError(f"{type(layer).__name__} with {option}={name} has no counterpart here, only with silu")


def with_eps(mixer: Mixer, eps: float, *norms: str) -> Mixer:
    """`mixer` with another epsilon in the modules `norms`."""
    for name in norms:
        norm: Any = mixer.get_submodule(name)
        norm.eps = eps
    return mixer
