"""Names of probes and of their folders on disk."""

from __future__ import annotations

import re
import unicodedata

from avalanche_ntk.errors import ArgumentError

LONGEST_NAME = 100
LONGEST_FOLDER = 240  # file systems stop at 255

# Windows opens a device under these names, with any extension.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
_OWN = r"Exp[0-9]{3,}(_test)?"


def checked_name(name: object, argument: str = "name") -> str:
    """Return a probe's name if it is valid.

    Letters and digits of any script are allowed; characters that would end a metric's tag or a path (a space, a slash)
    are not.

    Args:
        name: The name.
        argument: The caller's name for it, for messages.

    Returns:
        The name.

    Raises:
        ArgumentError: It is not a string, is empty or too long, or contains other characters.
    """
    if not isinstance(name, str) or not is_name(name):
        raise ArgumentError(
            f"{argument} must be 1 to {LONGEST_NAME} letters, digits, '.', '_' and '-' that begin with a letter or "
            f"digit, since it stands in metric tags; found {name!r}. Give {argument}='first_task', for example."
        )
    if len(folder_of(name)) > LONGEST_FOLDER:
        raise ArgumentError(
            f"{argument} names a folder too, whose name would have {len(folder_of(name))} characters, at most "
            f"{LONGEST_FOLDER}; found {name!r}. Give a shorter one."
        )
    return name


def is_name(text: str) -> bool:
    """Return whether a text has the form of a probe's name."""
    return 0 < len(text) <= LONGEST_NAME and text[0].isalnum() and all(map(_fits, text))


def folder_of(name: str) -> str:
    """Return the folder name of a probe, the same on every file system.

    Lower-case letters, digits, '.', '_' and '-' are kept, as are the default names of a `ProbeSpec`. A capital becomes
    '+' and the lower-case letter; everything else is percent-encoded UTF-8. So two names never share a folder, even on
    a case-insensitive file system, and no folder has a name that Windows reserves or truncates.

    >>> folder_of("Exp000"), folder_of("Mine"), folder_of("α"), folder_of("con"), folder_of("end.")
    ('Exp000', '+mine', '%CE%B1', '%63on', 'end%2E')
    """
    if re.fullmatch(_OWN, name):
        return name
    folder = "".join(map(_encoded, name))
    if folder.endswith("."):
        folder = f"{folder[:-1]}%2E"
    if folder.split(".")[0] in _DEVICES or re.fullmatch(_OWN, folder, re.IGNORECASE):
        folder = f"%{ord(folder[0]):02X}{folder[1:]}"
    return folder


def _fits(sign: str) -> bool:
    # Vowel signs and accents of many scripts are separate marks.
    return sign.isalnum() or sign in "._-" or unicodedata.category(sign).startswith("M")


def _encoded(sign: str) -> str:
    if re.fullmatch(r"[a-z0-9._-]", sign):
        return sign
    if re.fullmatch(r"[A-Z]", sign):
        return f"+{sign.lower()}"
    return "".join(f"%{byte:02X}" for byte in sign.encode())
