"""Errors that are meant for people: one sentence that names the thing, what was expected and what to do.

The command prints them without a traceback and exits with `exit_code`; the flow retries only those
whose `transient` is true, because only they can pass by themselves.
"""

import errno
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

FULL_DISK = {errno.ENOSPC, errno.EDQUOT}


class GenmodelsError(Exception):
    """An error whose message is the whole explanation."""

    exit_code = 1
    transient = False
    where = ""  # the worker or machine that met it, if it was not this one


class SpecError(GenmodelsError):
    """What was asked for cannot be done: an unknown name, a value out of range, things that do not fit together."""

    exit_code = 2


class DataError(GenmodelsError):
    """The data are not what they should be: corrupt, truncated, hostile, too few, too small."""

    exit_code = 3


class DivergedError(GenmodelsError):
    """Guards asked for more returns to a checkpoint than are allowed, or for a stop before there is a whole model."""

    exit_code = 4


class UnavailableError(GenmodelsError):
    """A server or the network did not answer; trying again later may succeed (EX_TEMPFAIL of sysexits.h)."""

    exit_code = 75
    transient = True


class AccessError(GenmodelsError):
    """A server answered and refused: wrong credentials, a missing bucket, a full disk."""

    exit_code = 77


def first_problem(error: "ValidationError") -> tuple[str, str]:
    """The dotted name of the first bad value, empty if it is the whole, and what is wrong with it."""
    first = error.errors()[0]
    return ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")


def unknown(kind: str, name: str, known: Iterable[str]) -> SpecError:
    """The error for a name that is not in `known`, with the nearest names that are."""
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}."
    return SpecError(f"Unknown {kind} {name!r}; {hint}")
