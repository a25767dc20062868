"""The errors that a person can act on.

Whatever goes wrong because of what the user gave (a file, a setting, an argument) is an
`InputError`: one message that says what was expected, what was found, where, and what to
do. The command line prints it without a traceback and exits with status 2.
"""

from __future__ import annotations

__all__ = ["FedrecError", "InputError"]


class FedrecError(Exception):
    """Base class of the errors that this package raises on purpose."""


class InputError(FedrecError):
    """Wrong use or bad input: exit status 2, no traceback.

    Args:
        found: what is wrong, in one sentence.
        where: the file, column, line or setting it was found in.
        expected: what would have been right.
        hint: what to do about it.
    """

    def __init__(self, found: str, *, where: str | None = None, expected: str | None = None, hint: str | None = None) -> None:
        self.found, self.where, self.expected, self.hint = found, where, expected, hint
        parts = [f"{where}: {found}" if where else found]
        if expected:
            parts.append(f"expected {expected}")
        if hint:
            parts.append(hint)
        super().__init__("; ".join(parts))
