"""Write a checkpoint folder laid out as WeSpeaker publishes them, with seeded random weights.

It stands in for a published checkpoint in tests and benchmarks. Batch normalisation gets random statistics
too: with the fresh ones (mean 0, variance 1) a wrongly padded batch could look right.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from balr.embeddings.architectures import build_network, build_tfmel

FBANK_80 = {"fbank_args": {"num_mel_bins": 80, "frame_shift": 10, "frame_length": 25, "dither": 1.0}}


def write_checkpoint(
    folder: Path,
    architecture: str,
    model_args: Mapping[str, Any],
    *,
    dataset_args: Mapping[str, Any] | None = None,
    seed: int = 0,
    model_name: str = "avg_model.pt",
    config_name: str = "config.yaml",
) -> Path:
    """Write weights and config of an architecture into a folder and return the folder."""
    dataset = {"resample_rate": 16000, **FBANK_80} if dataset_args is None else dict(dataset_args)
    network = seeded_network(architecture, model_args, dataset, seed)
    weights = {**network.state_dict(), "projection.weight": torch.zeros(10, 4)}  # as published ones carry it
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights, folder / model_name)
    config = {"model": architecture, "model_args": dict(model_args), "dataset_args": dataset}
    (folder / config_name).write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def seeded_network(
    architecture: str, model_args: Mapping[str, Any], dataset_args: Mapping[str, Any], seed: int
) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_network(architecture, model_args)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                module.running_mean.normal_(0.0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                if module.affine:
                    torch.nn.init.uniform_(module.weight, 0.5, 1.5)
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, 0.0, 0.1)
    if dataset_args.get("frontend") == "tfmel":
        network.add_module("frontend", build_tfmel(dataset_args["tfmel_args"]))
    return network
