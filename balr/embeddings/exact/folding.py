"""Fold batch normalisation into the layer before it: the same numbers but for rounding, with less memory traffic."""

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import Node
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from balr.embeddings.architectures import run_network
from balr.embeddings.exact.replacement import keep_if_same
from balr.embeddings.exact.verdicts import Verdicts

_FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def fold(network: nn.Module, example: torch.Tensor, *, verdicts: Verdicts) -> None:
    """Fold, in place, every batch norm of an evaluation-mode network that directly follows a linear layer.

    The pairs are found by running the network on the features `example` `(1, frames, mels)`, so this code depends on
    no architecture. Grouped convolutions stay as they are: with a bias, torch runs them many times slower on a CPU. If
    the output changes, all folding is undone.
    """
    pairs = verdicts.of("foldable", lambda: _find_pairs(network, example))
    originals = {name: network.get_submodule(name) for pair in pairs for name in pair}
    folded: dict[str, nn.Module] = {}
    for layer_name, norm_name in pairs:
        layer: Any = originals[layer_name]
        norm: Any = originals[norm_name]
        fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        folded |= {layer_name: fuse(layer, norm), norm_name: nn.Identity()}

    def put(modules: Mapping[str, nn.Module]) -> None:
        for name, module in modules.items():
            network.set_submodule(name, module)

    change, undo = partial(put, folded), partial(put, originals)
    keep_if_same("folded batch norms", network, example, change=change, undo=undo, verdicts=verdicts)


def channels_last(network: nn.Module) -> None:
    """Store the weights of 2-d convolutions, in place, in torch's channels-last layout.

    It is the faster one on a CPU and, in 16 bits, on a GPU.
    """
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _find_pairs(network: nn.Module, example: torch.Tensor) -> list[tuple[str, str]]:
    """Name the (layer, norm) pairs in which both run once and only the norm reads the layer's output.

    Autograd's graph shows which operation reads which output.
    """
    layers: dict[Node, str] = {}
    norms: dict[Node, str] = {}
    calls: Counter[str] = Counter()

    def record(names: dict[Node, str], name: str, _: nn.Module, __: object, output: torch.Tensor) -> None:
        calls[name] += 1
        assert output.grad_fn is not None
        names[output.grad_fn] = name

    with ExitStack() as hooks, torch.enable_grad():
        for name, module in network.named_modules():
            is_norm = isinstance(module, _NORMS)
            if is_norm or (isinstance(module, _FOLDABLE) and getattr(module, "groups", 1) == 1):
                hook = partial(record, norms if is_norm else layers, name)
                hooks.callback(module.register_forward_hook(hook).remove)
        last = run_network(network, example).grad_fn
    assert last is not None
    pairs = [(layers.get(node), norms.get(found[0])) for node, found in _readers(last).items() if len(found) == 1]
    return [(layer, norm) for layer, norm in pairs if layer and norm and calls[layer] == calls[norm] == 1]


def _readers(last: Node) -> dict[Node, list[Node]]:
    """Map each operation that an output depends on to the operations that read its result."""
    readers: dict[Node, list[Node]] = {last: []}
    to_visit = [last]
    while to_visit:
        reader = to_visit.pop()
        for node, _ in reader.next_functions:
            if node is not None:
                if node not in readers:
                    readers[node] = []
                    to_visit.append(node)
                readers[node].append(reader)
    return readers
