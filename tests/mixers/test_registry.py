"""Mixers are found by name, pattern and family; mistakes are answered with what to do."""

from __future__ import annotations

import pytest
import torch
from mixerzoo.mixers import (
    Mixer,
    MixerCard,
    UnknownMixerError,
    create_mixer,
    list_mixers,
    mixer_card,
    mixer_class,
    mixer_options,
    option,
    register_mixer,
    registry,
)

CARD = MixerCard(
    name="my_own_mixer",
    family="homemade",
    summary="Nothing.",
    paper="none",
    arxiv=None,
    year=2026,
    state_growth="constant",
)


@pytest.fixture(autouse=True)
def _leave_no_mixer_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_mixers", dict(registry._mixers))


class MyOwnMixer(Mixer):
    card = CARD

    width: int = option("of something")
    sharp: bool = option("or not", default=True)


def test_the_six_mixers_are_there() -> None:
    expected = {"softmax_attention", "sliding_window_attention", "linear_attention"}
    assert expected | {"gated_deltanet", "ttt_linear", "fwpkm"} <= set(list_mixers())


def test_registered_mixers_are_listed_created_and_described() -> None:
    assert register_mixer(MyOwnMixer) is MyOwnMixer
    assert "my_own_mixer" in list_mixers() and list_mixers() == sorted(list_mixers())
    assert list_mixers("*own*") == ["my_own_mixer"]
    assert list_mixers(family="homemade") == ["my_own_mixer"]
    assert list_mixers("fwpkm", family="homemade") == []
    assert mixer_class("my_own_mixer") is MyOwnMixer
    assert mixer_card("my_own_mixer") is CARD
    assert list(mixer_options("my_own_mixer")) == ["width", "sharp", "backend"]
    mixer = create_mixer("my_own_mixer", 8, width=3)
    assert isinstance(mixer, MyOwnMixer) and mixer.options == {"width": 3, "sharp": True, "backend": "auto"}
    assert mixer.signature == "my_own_mixer(d_model=8, sharp=True, width=3)"


def test_a_name_is_taken_once() -> None:
    register_mixer(MyOwnMixer)
    register_mixer(MyOwnMixer)  # the same class again, as when a module is reloaded by name
    impostor = type("Impostor", (Mixer,), {"card": CARD})
    with pytest.raises(ValueError, match=r"'my_own_mixer' is taken by .*MyOwnMixer"):
        register_mixer(impostor)


@pytest.mark.parametrize("thing", [Mixer, torch.nn.Linear, "fwpkm", type("NoCard", (Mixer,), {"card": "card"})])
def test_only_mixers_with_a_card_are_registered(thing: object) -> None:
    with pytest.raises(TypeError, match="Mixer subclass with a MixerCard"):
        register_mixer(thing)  # type: ignore[type-var]


def test_an_unknown_name_suggests_close_ones() -> None:
    with pytest.raises(UnknownMixerError, match="unknown mixer 'gated_delta_net'; did you mean gated_deltanet"):
        create_mixer("gated_delta_net", 32)
    with pytest.raises(UnknownMixerError, match=r"known are .*fwpkm"):
        mixer_card("zzz")


def test_an_unknown_option_suggests_a_close_one() -> None:
    register_mixer(MyOwnMixer)
    with pytest.raises(ValueError, match="no option 'widht'; did you mean width"):
        create_mixer("my_own_mixer", 8, widht=3)
    with pytest.raises(ValueError, match="its options are width, sharp, backend"):
        create_mixer("my_own_mixer", 8, zzz=3)


@pytest.mark.parametrize("name", list_mixers())
def test_cards_and_options_are_complete(name: str) -> None:
    card, options = mixer_card(name), mixer_options(name)
    assert card.name == name and card.family and card.summary and card.paper
    assert 2000 <= card.year <= 2100
    assert "reference" in card.backends
    assert list(options)[-1] == "backend" and options["backend"].default == "auto"


@pytest.mark.parametrize("name", list_mixers())
def test_bad_widths_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        create_mixer(name, 0)
