"""ReDimNet's attention in memory that grows with the length of the audio, not with its square."""

import logging
from functools import partial
from typing import Any

import torch
from torch import nn

from balr.embeddings.exact.precision import relative_difference
from balr.embeddings.exact.verdicts import Verdicts

log = logging.getLogger(__name__)

_LARGEST_RELATIVE_DIFFERENCE = 1e-5


def attend_in_blocks(network: nn.Module, example: torch.Tensor, *, verdicts: Verdicts) -> None:
    """Make WeSpeaker's attention layers, in place, use torch's `scaled_dot_product_attention`.

    WeSpeaker's own code stores a weight for each pair of frames: 11 GB for three minutes of audio through ReDimNet. If
    the embedding of the features `example` `(1, frames, mels)` changes, the layers are left as they were.
    """
    layers = [module for module in network.modules() if type(module).__name__ == "MultiHeadAttention"]
    if not layers:
        return

    def replace() -> None:
        for layer in layers:
            vars(layer)["forward"] = partial(_attend, layer)

    difference = verdicts.of_change("attention", network, example, replace, by=relative_difference)
    log.debug("attention in blocks: relative difference %.1e", difference)
    if not difference < _LARGEST_RELATIVE_DIFFERENCE:
        for layer in layers:
            del vars(layer)["forward"]


def _attend(layer: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """Return the unmasked multi-head self-attention of `(batch, frames, channels)`, in the same shape."""

    def by_head(projected: torch.Tensor) -> torch.Tensor:
        heads: torch.Tensor = projected.unflatten(-1, (layer.num_heads, layer.head_dim))
        return heads.transpose(1, 2)

    attended = nn.functional.scaled_dot_product_attention(
        by_head(layer.q_proj(hidden_states)),
        by_head(layer.k_proj(hidden_states)),
        by_head(layer.v_proj(hidden_states)),
        scale=layer.scaling,
    )
    output: torch.Tensor = layer.out_proj(attended.transpose(1, 2).flatten(-2))
    return output
