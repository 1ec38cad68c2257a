"""WeSpeaker's own model classes, imported one module at a time.

`import wespeaker` takes half a minute and fails beside a current torchaudio; the model definitions need none of what
it pulls in. Only the module that an architecture needs is imported, and `sys.modules` is left as it was found.
"""

import contextlib
import importlib
import io
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import torch

from balr.errors import CheckpointError, one_line

log = logging.getLogger(__name__)

_SHOWN = 200

_MODULES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "tdnn": ("XVEC",),
        "ecapa_tdnn": ("ECAPA_TDNN_c512", "ECAPA_TDNN_c1024", "ECAPA_TDNN_GLOB_c512", "ECAPA_TDNN_GLOB_c1024"),
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
)
ARCHITECTURES: Mapping[str, str] = MappingProxyType({name: mod for mod, names in _MODULES.items() for name in names})

# Layers and methods that look at all time, by class of WeSpeaker's, with the dimension that time has in their input.
_SEES_ALL_TIME: Mapping[str, tuple[str, int]] = MappingProxyType(
    {
        "SE_Connect": ("forward", 2),
        "CAMLayer": ("forward", 2),
        "SimAMBasicBlock": ("SimAM", 3),
        "SEBlock_2D": ("forward", 3),
        "fwSEBlock": ("forward", 3),
        "MultiHeadAttention": ("forward", 1),
        "GRU": ("forward", 2),
        "GroupNorm": ("forward", -1),
    }
)


def build_network(architecture: str, model_args: Mapping[str, Any]) -> torch.nn.Module:
    """Construct the network of a WeSpeaker architecture, in evaluation mode, with WeSpeaker's own class.

    Raises CheckpointError where the architecture is unknown or does not take the arguments.
    """
    if architecture not in ARCHITECTURES:
        near = get_close_matches(architecture, ARCHITECTURES, n=3, cutoff=0.7)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise CheckpointError(f"unknown architecture {architecture!r}.{hint} Known: {', '.join(ARCHITECTURES)}.")
    constructor = getattr(_import(f"wespeaker.models.{ARCHITECTURES[architecture]}"), architecture)
    try:
        network: torch.nn.Module = _quietly(constructor, **model_args)
        if not all(parameter.numel() for parameter in network.parameters()):
            raise ValueError("it would have layers of no size")
    except Exception as error:  # whatever a value can make a constructor raise
        raise _refused(f"{architecture} does not take model_args", model_args, error) from error
    return network.eval()


def run_network(network: torch.nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Return the embeddings `(batch, dim)` of features; some architectures return a pair, the embedding last."""
    output: Any = network(features)
    embedding: torch.Tensor = output[-1] if isinstance(output, tuple) else output
    return embedding


def find_pooling(network: torch.nn.Module) -> torch.nn.Module | None:
    """Return the layer of WeSpeaker's `pooling_layers` that a network has, where its frames become one vector."""
    return next((module for module in network.modules() if _is_pooling(module)), None)


def has_global_context(module: torch.nn.Module) -> tuple[str, int] | None:
    """Return the method by which a layer looks at a whole utterance and the dimension of time in what it is given."""
    if _is_pooling(module):
        return "forward", -1
    if type(module).__module__.startswith("wespeaker.") or isinstance(module, torch.nn.GroupNorm):
        return _SEES_ALL_TIME.get(type(module).__name__)
    return None


def build_tfmel(arguments: Mapping[str, Any]) -> torch.nn.Module:
    """Construct WeSpeaker's `tfmel` front end, waveform `(batch, samples)` to `(batch, mels, frames)`."""
    try:
        frontend: torch.nn.Module = _import("wespeaker.frontend.tfmel").TFMelFrontend(**arguments)
    except Exception as error:
        raise _refused("the tfmel front end does not take tfmel_args", arguments, error) from error
    return frontend.eval()


def _refused(what: str, arguments: Mapping[str, Any], error: Exception) -> CheckpointError:
    reason = one_line(error) or type(error).__name__
    return CheckpointError(f"{what} {one_line(dict(arguments))[:_SHOWN]}: {reason[:_SHOWN]}.")


def _is_pooling(module: torch.nn.Module) -> bool:
    return type(module).__module__ == "wespeaker.models.pooling_layers"


def _quietly(constructor: Callable[..., Any], **arguments: Any) -> Any:
    with contextlib.redirect_stdout(io.StringIO()) as printed:  # some constructors print
        made = constructor(**arguments)
    if printed.getvalue():
        log.debug("%s", printed.getvalue().strip())
    return made


def _import(name: str) -> ModuleType:
    with _bare_wespeaker():
        return importlib.import_module(name)


@contextlib.contextmanager
def _bare_wespeaker() -> Iterator[None]:
    """Put packages without code in the place of `wespeaker` and its subpackages while a module is imported."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "wespeaker"}
    for name in before:
        del sys.modules[name]
    try:
        root = _wespeaker_folder()
        for package in ("wespeaker", "wespeaker.models", "wespeaker.frontend"):
            bare = ModuleType(package)
            bare.__path__ = [str(root.joinpath(*package.split(".")[1:]))]
            sys.modules[package] = bare
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "wespeaker"]:
            del sys.modules[name]
        sys.modules.update(before)


def _wespeaker_folder() -> Path:
    spec = find_spec("wespeaker")
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError("the package wespeaker is not installed: pip install wespeaker-unofficial.")
    return Path(next(iter(spec.submodule_search_locations)))
