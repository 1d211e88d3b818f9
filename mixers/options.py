"""An option of a mixer, written once: name, type, default, meaning, limits, and a small value for quick checks.

    heads: int = option("number of memories", default=4, least=1, small=2)

Constructors, signatures of states, `repr`, pages, and the validation of layouts and suites follow from it.
"""

from __future__ import annotations

import functools
import inspect
import sys
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from .limits import LARGEST_REAL, LARGEST_SIZE, shown

REQUIRED: Any = inspect.Parameter.empty
"""The default of an option that has none."""

_KINDS = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a string"}


class Option:
    """What `option` declares; the class body gives it its name and its type."""

    name: str
    owner: type

    def __init__(
        self,
        help: str,
        default: Any,
        least: float | None,
        above: float | None,
        most: float | None,
        below: float | None,
        small: Any,
        speed_only: bool,
        piece: bool,
        positional: bool,
    ) -> None:
        self.help, self.default, self.small = help, default, small
        self.limits = {"least": least, "above": above, "most": most, "below": below}
        self.speed_only, self.piece, self.positional = speed_only, piece, positional

    def __set_name__(self, owner: type, name: str) -> None:
        self.owner, self.name = owner, name

    @functools.cached_property
    def type(self) -> Any:
        """The annotation, with None where that is the default; read at first use, for it may name what comes later."""
        kind = inspect.get_annotations(self.owner).get(self.name, Any)
        if isinstance(kind, str):
            kind = eval(kind, vars(sys.modules[self.owner.__module__]))
        return kind | None if self.default is None else kind

    @functools.cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        names = {"least": "ge", "above": "gt", "most": "le", "below": "lt"}
        limits: dict[str, Any] = {names[n]: limit for n, limit in self.limits.items() if limit is not None}
        if float in (self.type, *get_args(self.type)):
            limits["allow_inf_nan"] = False
        kind = Annotated[self.type, Field(**limits)] if limits else self.type
        return TypeAdapter(cast(Any, kind), config=ConfigDict(strict=True, arbitrary_types_allowed=True))

    @property
    def expects(self) -> str:
        """In words: `a whole number of at least 1, or None`."""
        union = get_origin(self.type) in (Union, UnionType)
        kinds = [k for k in (get_args(self.type) if union else (self.type,)) if k is not NoneType]
        words = " or ".join(
            f"one of {', '.join(map(str, get_args(k)))}" if get_origin(k) is Literal else _KINDS.get(k, str(k))
            for k in kinds
        )
        phrases = {"least": "of at least", "above": "above", "most": "of at most", "below": "below"}
        limits = [f"{phrases[n]} {limit:g}" for n, limit in self.limits.items() if limit is not None]
        return " ".join([words, " and ".join(limits)]).strip() + (
            ", or None" if len(kinds) < len(get_args(self.type)) and union else ""
        )

    def check(self, value: Any) -> Any:
        """`value`, if it is of the type and within the limits. Raises `ValueError` that says what was expected.

        Where an option declares no limit of its own, numbers have those of `limits`.
        """
        largest = LARGEST_REAL if isinstance(value, float) else LARGEST_SIZE
        if isinstance(value, int | float) and abs(value) > largest:
            raise ValueError(f"{self.name} must be {self.expects}, at most {largest:,.0f}, got {shown(value)}")
        try:
            return self._adapter.validate_python(value)
        except ValidationError:
            raise ValueError(f"{self.name} must be {self.expects}, got {shown(value)}") from None

    @property
    def parameter(self) -> inspect.Parameter:
        """The option as a parameter of the constructor."""
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if self.positional else inspect.Parameter.KEYWORD_ONLY
        annotation = inspect.get_annotations(self.owner).get(self.name, Any)
        return inspect.Parameter(self.name, kind, default=self.default, annotation=annotation)


def option(
    help: str,
    *,
    default: Any = REQUIRED,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    small: Any = None,
    speed_only: bool = False,
    piece: bool = False,
    kw_only: bool = True,
) -> Any:
    """Declare an option in the body of a mixer; its annotation is its type.

    help: its meaning, units included. default: `REQUIRED` if there is none. None is taken where it is the default; the
    annotation need not name it if `build` puts a value in its place.
    least, above, most, below: limits of a number, `>=`, `>`, `<=` and `<`.
    small: the value for quick checks, where the default is larger.
    speed_only: it changes how fast, never what is computed, so that states of either value continue one another.
    piece: the mixer works on that many tokens at once; the checks of the contract cross the edges.
    """
    return Option(help, default, least, above, most, below, small, speed_only, piece, not kw_only)
