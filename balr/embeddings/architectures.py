"""WeSpeaker's own model classes, imported one module at a time.

`import wespeaker` takes half a minute and fails with a current torchaudio, and the model definitions need none of what
it imports. Only the module of an architecture is imported, and `sys.modules` is left as it was.
"""

import contextlib
import importlib
import io
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from balr.errors import CheckpointError, one_line

_MODULES: dict[str, tuple[str, ...]] = {
    "tdnn": ("XVEC",),
    "ecapa_tdnn": tuple(f"ECAPA_TDNN{kind}" for kind in ("", "_c512", "_c1024", "_GLOB_c512", "_GLOB_c1024")),
    "resnet": tuple(f"ResNet{depth}" for depth in (18, 34, 50, 101, 152, 221, 293)),
    "repvgg": tuple(
        f"REPVGG_{size}"
        for size in (
            *("TINY_A0", "TINY_RSBB_A0", "A0", "RSBB_A0", "A1", "A2", "RSBB_A2", "B0", "RSBB_B0"),
            *("B1", "B1g2", "B1g4", "B2", "B2g2", "B2g4", "B3", "B3g2", "B3g4", "D2SE"),
        )
    ),
    "campplus": ("CAMPPlus",),
    "eres2net": ("ERes2Net34_Base", "ERes2Net34_Large", "ERes2Net34_aug"),
    "res2net": ("Res2Net34_Base", "Res2Net34_Large"),
    "gemini_dfresnet": tuple(f"Gemini_DF_ResNet{depth}" for depth in (60, 114, 183, 237)),
    "samresnet": ("SimAM_ResNet34_ASP", "SimAM_ResNet100_ASP"),
    "xi_vector": ("XI_VEC_XVEC", "XI_VEC_ECAPA_TDNN_c512", "XI_VEC_ECAPA_TDNN_c1024"),
    "redimnet": tuple(f"ReDimNetB{size}" for size in range(7)),
    "redimnet2": ("ReDimNet2Wrap", "ReDimNet2Custom", *(f"ReDimNet2B{size}" for size in range(7))),
}
ARCHITECTURES = {name: module for module, names in _MODULES.items() for name in names}

# Methods of WeSpeaker's layers that look at all frames, with the dimension of the frames in their input.
_GLOBAL_CONTEXT = {
    "SE_Connect": ("forward", 2),
    "CAMLayer": ("forward", 2),
    "SimAMBasicBlock": ("SimAM", 3),
    "SEBlock_2D": ("forward", 3),
    "fwSEBlock": ("forward", 3),
    "MultiHeadAttention": ("forward", 1),
    "GroupNorm": ("forward", -1),
}


def build_network(architecture: str, model_args: Mapping[str, Any]) -> torch.nn.Module:
    """Construct the network of a WeSpeaker architecture, in evaluation mode, with WeSpeaker's own class.

    It takes features `(batch, frames, mels)`. Raises CheckpointError if the architecture is unknown or does not accept
    the arguments.
    """
    if architecture not in ARCHITECTURES:
        near = get_close_matches(architecture, ARCHITECTURES, n=3, cutoff=0.7)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise CheckpointError(f"unknown architecture {architecture!r}.{hint} Known: {', '.join(ARCHITECTURES)}.")
    network = _construct(f"models.{ARCHITECTURES[architecture]}", architecture, model_args, "model_args")
    if ARCHITECTURES[architecture] == "redimnet2":  # takes (batch, mels, frames)
        network.register_forward_pre_hook(lambda _, inputs: (inputs[0].transpose(1, 2).contiguous(),))
    return network


def run_network(network: torch.nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Return the embeddings `(batch, dim)` of features `(batch, frames, mels)`.

    Some architectures return a pair, with the embeddings last.
    """
    output: Any = network(features)
    embedding: torch.Tensor = output[-1] if isinstance(output, tuple) else output
    return embedding


def find_pooling(network: torch.nn.Module) -> torch.nn.Module | None:
    """Return the layer of WeSpeaker's `pooling_layers` that turns a network's frames into one embedding, if any."""
    return next((module for module in network.modules() if _is_pooling(module)), None)


def has_global_context(module: torch.nn.Module) -> tuple[str, int] | None:
    """Return the method of a layer that looks at all frames, and the dimension of the frames in its input, or None."""
    if _is_pooling(module):
        return "forward", -1
    if type(module).__module__.startswith("wespeaker.") or isinstance(module, torch.nn.GroupNorm):
        return _GLOBAL_CONTEXT.get(type(module).__name__)
    return None


def build_tfmel(arguments: Mapping[str, Any]) -> torch.nn.Module:
    """Construct WeSpeaker's `tfmel` front end, waveform `(batch, samples)` to `(batch, mels, frames)`."""
    return _construct("frontend.tfmel", "TFMelFrontend", arguments, "tfmel_args")


def _is_pooling(module: torch.nn.Module) -> bool:
    return type(module).__module__ == "wespeaker.models.pooling_layers"


def _construct(module: str, name: str, arguments: Mapping[str, Any], option: str) -> torch.nn.Module:
    """Construct a class of WeSpeaker in evaluation mode; `option` is what its config calls the arguments."""
    constructor = getattr(_import(f"wespeaker.{module}"), name)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # some constructors print
            network: torch.nn.Module = constructor(**arguments)
        if not all(parameter.numel() for parameter in network.parameters()):
            raise ValueError("a layer would have no parameters")
    except Exception as error:  # a hostile value can make a constructor raise anything
        shown, reason = one_line(dict(arguments)), one_line(error) or type(error).__name__
        raise CheckpointError(f"{name} does not take {option} {shown[:200]}: {reason[:200]}.") from error
    return network.eval()


def _import(name: str) -> ModuleType:
    """Import a module of WeSpeaker below empty packages, which stand in for those whose `__init__` imports too much."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "wespeaker"}
    for imported in before:
        del sys.modules[imported]
    try:
        spec = find_spec("wespeaker")
        if spec is None or not spec.submodule_search_locations:
            raise CheckpointError("the package wespeaker is not installed: pip install wespeaker-unofficial.")
        root = Path(next(iter(spec.submodule_search_locations)))
        for package in ("wespeaker", "wespeaker.models", "wespeaker.frontend"):
            sys.modules[package] = ModuleType(package)
            sys.modules[package].__path__ = [str(root.joinpath(*package.split(".")[1:]))]
        return importlib.import_module(name)
    finally:
        for imported in [name for name in sys.modules if name.split(".")[0] == "wespeaker"]:
            del sys.modules[imported]
        sys.modules.update(before)
