"""Read the two files of a checkpoint, the training config and the weights, without running code in them."""

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
import yaml

from balr.errors import CheckpointError, one_line

_LARGEST_CONFIG = 1 << 20
_LONGEST_VALUE = 1_000
_DEEPEST = 50
_SECTIONS = (
    "model_args",
    "dataset_args",
    *(f"dataset_args.{name}" for name in ("fbank_args", "cmvn_args", "tfmel_args")),
)
_GROWING = (b"bytearray\n", b"_codecs\nencode\n")  # torch calls them, and a few bytes become gigabytes


@dataclass(frozen=True)
class CheckpointConfig:
    """Hold what a WeSpeaker config.yaml says about the network and its features."""

    architecture: str
    model_args: Mapping[str, Any]
    dataset_args: Mapping[str, Any]


class _PlainLoader(yaml.SafeLoader):
    """Load yaml without what a short text can grow from: aliases, deep nesting, numbers of many digits."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose the next node, within the limits."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"it holds an alias, *{event.anchor}: write out what it repeats")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > _LONGEST_VALUE:
            raise yaml.YAMLError(f"it holds a value of over {_LONGEST_VALUE:,} characters")
        if self._depth == _DEEPEST:
            raise yaml.YAMLError(f"it is nested over {_DEEPEST} deep")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def read_config(path: Path) -> CheckpointConfig:
    """Read a WeSpeaker config.yaml as plain yaml. Raises CheckpointError if it is anything else."""
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_CONFIG + 1)
        if len(text) > _LARGEST_CONFIG:
            raise yaml.YAMLError(f"it is over {_LARGEST_CONFIG:,} bytes, and such a config has about 2,000")
        config = yaml.load(text, _PlainLoader)  # noqa: S506
    except Exception as error:  # hostile yaml makes the parser raise anything
        raise CheckpointError(f"{path}: not plain yaml, nothing in it was run: {one_line(error)[:300]}.") from error
    if not isinstance(config, dict) or "model" not in config:
        raise CheckpointError(f"{path}: not a WeSpeaker config: it names no model.")
    if not isinstance(config["model"], str):
        raise CheckpointError(f"{path}: `model` is not an architecture's name; pyannote's format is not supported.")
    sections = {"": config}
    for name in _SECTIONS:
        parent, _, key = name.rpartition(".")
        sections[name] = sections[parent].get(key) or {}
        if not isinstance(sections[name], dict):
            raise CheckpointError(f"{path}: {name} must be a mapping.")
    return CheckpointConfig(config["model"], sections["model_args"], sections["dataset_args"])


def load_weights(network: torch.nn.Module, path: Path) -> None:
    """Fill a network from a checkpoint, exactly: a missing or unknown tensor is an error, so is another shape.

    A training projection (`projection.*`) is dropped; the constant tables of a front end may be absent. Raises
    CheckpointError; the file is read with `weights_only=True` and cannot run code.
    """
    tensors = _read_weights(path)
    wanted = network.state_dict()
    given = {name: tensor for name, tensor in tensors.items() if not name.startswith("projection.")}
    missing = [name for name in wanted if name not in given and not name.startswith("frontend.")]
    unknown = [name for name in given if name not in wanted]
    other = [name for name in given if name in wanted and given[name].shape != wanted[name].shape]
    problems = {"missing": missing, "unknown": unknown, "of another shape": other}
    found = [f"{len(names)} {what} (first: {names[0]})" for what, names in problems.items() if names]
    if found:
        raise CheckpointError(f"{path}: not the weights of this architecture: tensors {', '.join(found)}.")
    try:
        network.load_state_dict(given, strict=False)
    except RuntimeError as error:  # such as tensors without data
        raise CheckpointError(f"{path}: not the weights of this architecture: {one_line(error)[:300]}.") from error


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        with warnings.catch_warnings():  # about pickles, which are refused
            warnings.simplefilter("ignore")
            loaded = torch.load(_uncompressed(path), map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: refused: it holds more than tensors, so it could run code.") from error
    except Exception as error:  # hostile bytes make the reader raise anything
        reason = one_line(error)[:200] or type(error).__name__
        raise CheckpointError(f"{path}: not a PyTorch checkpoint, or damaged: {reason}.") from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not (
        isinstance(loaded, dict)
        and loaded
        and all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in loaded.items())
    ):
        raise CheckpointError(f"{path}: not a state dict: names with tensors are expected.")
    return loaded


def _uncompressed(path: Path) -> BytesIO:
    """Return the file for torch, which takes no more memory than its size. Raises CheckpointError.

    An archive is packed anew, without compression, from the sizes that were checked here; torch's own reader could find
    other sizes in the same file.
    """
    content = path.read_bytes()
    if content.startswith(b"PK\3\4"):
        plain = BytesIO()
        with ZipFile(BytesIO(content)) as archive, ZipFile(plain, "w") as copy:
            unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > len(content):
                raise CheckpointError(
                    f"{path}: refused: it holds {len(content):,} bytes that unpack to {unpacked:,}; torch.save does "
                    "not compress, so take the file from where it was published."
                )
            for member in archive.infolist():
                copy.writestr(member.filename, archive.read(member))
        content = plain.getvalue()
    if any(name in content for name in _GROWING):
        raise CheckpointError(f"{path}: refused: it holds more than tensors, such as bytes that grow as they are read.")
    return BytesIO(content)
