"""Let layers of a network run other functions, as long as its embedding stays the same."""

import logging
import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

from balr.embeddings.exact.precision import exact_kernels, relative_difference
from balr.embeddings.exact.verdicts import Verdicts

log = logging.getLogger(__name__)

_LARGEST_RELATIVE_DIFFERENCE = 1e-5


def replace_forwards(
    what: str,
    forwards: Mapping[nn.Module, Callable[..., torch.Tensor]],
    network: nn.Module,
    example: torch.Tensor,
    *,
    verdicts: Verdicts,
) -> None:
    """Give modules of a network, in place, another `forward`.

    All is undone if the embedding of the features `example` `(1, frames, mels)` changes, or the device cannot run it.
    """
    if not forwards:
        return

    def replace() -> None:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward

    try:
        with exact_kernels():
            difference = verdicts.of_change(what, network, example, replace, by=relative_difference)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        log.debug("%s: %s", what, error)
        difference = math.inf
    log.debug("%s in %d modules, relative difference %.1e", what, len(forwards), difference)
    if not difference < _LARGEST_RELATIVE_DIFFERENCE:
        log.warning("no %s: the output would change by %.1e", what, difference)
        for module in forwards:
            vars(module).pop("forward", None)
