"""ReDimNet's attention in memory that grows with the length of the audio, not with its square."""

from functools import partial
from typing import Any

import torch
from torch import nn

from balr.embeddings.exact.replacement import replace_forwards
from balr.embeddings.exact.verdicts import Verdicts


def attend_in_blocks(network: nn.Module, example: torch.Tensor, *, verdicts: Verdicts) -> None:
    """Make WeSpeaker's attention layers, in place, use torch's `scaled_dot_product_attention`.

    WeSpeaker's own code stores a weight for each pair of frames: 11 GB for three minutes of audio through ReDimNet. If
    the embedding of the features `example` `(1, frames, mels)` changes, the layers are left as they were.
    """
    layers = [module for module in network.modules() if type(module).__name__ == "MultiHeadAttention"]
    forwards = {layer: partial(_attend, layer) for layer in layers}
    replace_forwards("attention in blocks", forwards, network, example, verdicts=verdicts)


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
