"""A back-end's options, each said once: in the class that holds their values.

    @dataclass
    class EchoOptions:
        shout: Annotated[bool, Option("Answer in capitals.")] = False

The class has the name, the type with its choices and the default; the annotation what a person reads and how
a command line spells it. What ``serve`` and the commands that start machines accept, what a back-end in a
process of its own is told, and the help of all of them follow from that. A field without an annotation is for
programs alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final, Literal, NamedTuple, get_args, get_origin, get_type_hints

from vmsim.errors import UsageError

AS_DEFAULT: Final = object()


class Option(NamedTuple):
    """What a field's annotation says of an option.

    ``about`` is its help, one sentence. ``spelled`` is its word on a command line, if not its name with
    hyphens; ``served`` what a back-end's command line means that does not mention it, if not the default of
    the field (virtiofsd's, where ours differs). ``metavar`` stands for a text in help. ``paired`` has
    ``--no-WORD`` too, which a flag that is on by default has anyway. ``machines``: the commands that start
    machines have it as well.
    """

    about: str
    spelled: str = ""
    served: Any = AS_DEFAULT
    metavar: str = ""
    paired: bool = False
    machines: bool = False


class DeviceOption(NamedTuple):
    """An option as commands see it: a field of the class together with its annotation.

    ``name`` is what programs call it, ``word`` what stands behind ``--``. ``default`` is that of programs,
    ``served`` that of a back-end's command line. A flag has a bool as default, a choice has ``choices``, what
    may be said more than once has ``many``; everything else is a text.
    """

    name: str
    word: str
    about: str
    default: Any
    served: Any
    choices: tuple[str, ...]
    many: bool
    metavar: str
    paired: bool
    machines: bool

    @property
    def flag(self) -> bool:
        """Whether it has no value."""
        return isinstance(self.default, bool)

    def said(self, value: Any) -> list[str]:
        """The words that mean ``value``; none where that is what a silent command line means."""
        if value is None or value == self.served:
            return []
        if self.flag:
            return [f"--{self.word}" if value else f"--no-{self.word}"]
        return [f"--{self.word}={each}" for each in (value if self.many else [value])]


@cache
def options_of(kind: type, prefix: str = "") -> tuple[DeviceOption, ...]:
    """The annotated fields of a class that can be made without arguments, each with ``prefix`` before it."""
    defaults = kind()
    return tuple(
        _described(prefix + field, get_args(hint)[0], getattr(defaults, field), option)
        for field, hint in get_type_hints(kind, include_extras=True).items()
        for option in getattr(hint, "__metadata__", ())
        if isinstance(option, Option)
    )


def _described(name: str, value_type: Any, default: Any, option: Option) -> DeviceOption:
    served = default if option.served is AS_DEFAULT else option.served
    return DeviceOption(
        name, option.spelled or name.replace("_", "-"), option.about, default, served,
        get_args(value_type) if get_origin(value_type) is Literal else (),
        get_origin(value_type) is tuple, option.metavar, option.paired or served is True, option.machines,
    )  # fmt: skip


def option_words(known: Iterable[DeviceOption], options: Mapping[str, object]) -> list[str]:
    """``options`` as words for a back-end's command line; UsageError for what only programs can ask for."""
    rows = {row.name: row for row in known}
    if unknown := [name for name, value in options.items() if name not in rows and value is not None]:
        raise UsageError(
            f"no command line says {unknown[0]!r} to a back-end in a process of its own",
            hint="leave it out, or run the back-end in this process",
        )
    return [word for name, value in options.items() if name in rows for word in rows[name].said(value)]
