"""Change a network, as long as its embedding stays the same."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from balr.embeddings.architectures import run_network
from balr.embeddings.exact.kernels import exact_kernels
from balr.embeddings.exact.precision import relative_difference
from balr.embeddings.exact.verdicts import Verdicts

log = logging.getLogger(__name__)

_LARGEST_RELATIVE_DIFFERENCE = 1e-5  # of each change, of which a network may have four


def keep_if_same(
    what: str,
    network: nn.Module,
    example: torch.Tensor,
    *,
    change: Callable[[], None],
    undo: Callable[[], None],
    verdicts: Verdicts,
) -> None:
    """Change a network in place, unless the embedding of the features `example` `(1, frames, mels)` changes with it.

    A change that the device cannot run is undone as well. Raises torch's OutOfMemoryError.
    """

    def compare() -> float:
        before = run_network(network, example)
        change()
        try:
            return relative_difference(run_network(network, example), before)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.debug("%s: %s", what, error)
            return math.inf
        finally:
            undo()

    with torch.no_grad(), exact_kernels():
        difference = verdicts.of(what, compare)
    log.debug("%s: relative difference %.1e", what, difference)
    if difference < _LARGEST_RELATIVE_DIFFERENCE:
        change()
    else:
        log.warning("no %s: the output would change by %.1e", what, difference)


def replace_forwards(
    what: str,
    forwards: Mapping[Any, Callable[..., torch.Tensor]],
    network: nn.Module,
    example: torch.Tensor,
    *,
    verdicts: Verdicts,
) -> None:
    """Give modules of a network, in place, another `forward`, unless that changes the embedding of the example."""

    def change() -> None:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward

    def undo() -> None:
        for module in forwards:
            del vars(module)["forward"]

    if forwards:
        keep_if_same(what, network, example, change=change, undo=undo, verdicts=verdicts)
