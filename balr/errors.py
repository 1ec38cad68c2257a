"""What can go wrong. Each message is one line: what, where, what to do.

A BalrError stops the command, except that UtteranceError and PlaceError become a Failure of one utterance.
"""

import os
import re

_SHORTEST_TOKEN = 6
_SECRET = re.compile(r"\bhf_\w{20,}|(?<=://)[^/@\s]+(?=@)")


class BalrError(Exception):
    """Say in one line what is wrong, where, and what the user can do."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class ConfigError(BalrError):
    """An option, an override or a yaml file is wrong."""


class InputError(BalrError):
    """The corpus cannot be read as it is."""


class CheckpointError(BalrError):
    """The model's files are missing, broken or not what they claim to be."""


class OutputError(BalrError):
    """Results cannot be written where they should go."""


class LockedError(OutputError):
    """Another run works in the folder."""


class PlaceError(OutputError):
    """The path of one result is too long, or a file is where a folder should be; other results have their places."""


class UtteranceError(BalrError):
    """One utterance cannot be embedded."""


def one_line(text: object) -> str:
    """Fold any text, such as another library's message, into a single line without secrets."""
    return redacted(" ".join(str(text).split()))


def redacted(text: str) -> str:
    """Blank out tokens of the Hub and passwords in addresses: a server may repeat in an answer what it was sent."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        token = os.environ.get(name, "").strip()
        text = text.replace(token, "***") if len(token) >= _SHORTEST_TOKEN else text
    return _SECRET.sub("***", text)
