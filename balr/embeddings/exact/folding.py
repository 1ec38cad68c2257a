"""Fold batch normalisation into the layer before it: the same numbers to rounding, with fewer passes over memory."""

import logging
from collections import Counter
from contextlib import ExitStack
from functools import partial

import torch
from torch import nn
from torch.autograd.graph import Node
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from balr.embeddings.architectures import run_network

log = logging.getLogger(__name__)

_FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_LARGEST_RELATIVE_DIFFERENCE = 1e-5


def fold(network: nn.Module, example: torch.Tensor) -> None:
    """Fold, in place, every batch norm of an evaluation-mode network that directly follows a linear layer.

    Which pairs there are is seen by running the network on `example`, so no architecture is known here. Grouped
    convolutions are left alone: with a bias, torch runs them many times slower on a CPU. Where the folded network does
    not give the same output, everything is put back.
    """
    pairs = _pairs(network, example)
    with torch.no_grad():
        reference = run_network(network, example)
    originals: dict[str, nn.Module] = {}
    for layer_name, norm_name in pairs:
        layer, norm = network.get_submodule(layer_name), network.get_submodule(norm_name)
        originals |= {layer_name: layer, norm_name: norm}
        assert isinstance(norm, _NORMS)
        if isinstance(layer, nn.Linear):
            network.set_submodule(layer_name, fuse_linear_bn_eval(layer, norm))
        elif isinstance(layer, nn.Conv1d | nn.Conv2d):
            network.set_submodule(layer_name, fuse_conv_bn_eval(layer, norm))
        network.set_submodule(norm_name, nn.Identity())
    with torch.no_grad():
        difference = (run_network(network, example) - reference).abs().max() / reference.abs().max()
    log.debug("%d batch norms folded, relative difference %.1e", len(pairs), difference)
    if not difference < _LARGEST_RELATIVE_DIFFERENCE:
        log.warning("batch norms are not folded: the output would change by %.1e", difference)
        for name, module in originals.items():
            network.set_submodule(name, module)


def channels_last(network: nn.Module) -> nn.Module:
    """Lay out the weights of two-dimensional convolutions in place, as their fast implementations want them."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def _pairs(network: nn.Module, example: torch.Tensor) -> list[tuple[str, str]]:
    """Name the (layer, norm) pairs where both run once and the norm is all that reads the layer's output.

    Who reads what is taken from the graph that autograd keeps.
    """
    layers: dict[Node, str] = {}
    norms: dict[Node, str] = {}
    runs: Counter[str] = Counter()

    def note(seen: dict[Node, str], name: str, output: torch.Tensor) -> None:
        runs[name] += 1
        assert output.grad_fn is not None
        seen[output.grad_fn] = name

    with ExitStack() as hooks, torch.enable_grad():
        for name, module in network.named_modules():
            if isinstance(module, _NORMS) or (isinstance(module, _FOLDABLE) and getattr(module, "groups", 1) == 1):
                seen = norms if isinstance(module, _NORMS) else layers
                hook = partial(lambda seen, name, _, __, output: note(seen, name, output), seen, name)
                hooks.callback(module.register_forward_hook(hook).remove)
        last = run_network(network, example).grad_fn
    assert last is not None
    readers = _readers(last)
    pairs = [(layers.get(node), norms.get(found[0])) for node, found in readers.items() if len(found) == 1]
    return [(layer, norm) for layer, norm in pairs if layer and norm and runs[layer] == runs[norm] == 1]


def _readers(last: Node) -> dict[Node, list[Node]]:
    """Return for each step that led to an output the steps that read its result."""
    readers: dict[Node, list[Node]] = {last: []}
    to_visit = [last]
    while to_visit:
        reader = to_visit.pop()
        for node, _ in reader.next_functions:
            if node is None:
                continue
            if node not in readers:
                readers[node] = []
                to_visit.append(node)
            readers[node].append(reader)
    return readers
