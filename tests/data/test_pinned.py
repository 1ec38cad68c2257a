"""Waveforms lie side by side in blocks of one size, each in a place of its own."""

import numpy as np
import pytest
import torch

from balr.data.decoder_pool import DecoderPool
from balr.data.pinned import PinnedBlocks, copied_to
from balr.shutdown import Stop


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Let torch pin memory without a GPU, and return the blocks that it pins."""
    found, empty = [], torch.empty

    def pin(samples: int, *, pin_memory: bool = False) -> torch.Tensor:
        memory = empty(samples)
        if pin_memory:
            found.append(memory)
        return memory

    monkeypatch.setattr(torch, "empty", pin)
    return found


def test_waveforms_share_blocks_of_one_size_and_never_overlap(blocks: list[torch.Tensor]) -> None:
    pinned = PinnedBlocks()
    lengths = [1_000_000 + 7 * number for number in range(9)] + [0, 3]
    waveforms = [pinned.empty(samples) for samples in lengths]
    for number, waveform in enumerate(waveforms):
        waveform.fill_(number)
    assert [len(waveform) for waveform in waveforms] == lengths
    assert all((waveform == number).all() for number, waveform in enumerate(waveforms))
    assert len(blocks) == 3 and len({len(block) for block in blocks}) == 1


def test_a_waveform_longer_than_a_block_is_not_pinned(blocks: list[torch.Tensor]) -> None:
    assert len(PinnedBlocks().empty(30_000_000)) == 30_000_000 and not blocks


def test_without_a_gpu_waveforms_lie_in_ordinary_memory() -> None:
    assert torch.cuda.is_available() or not PinnedBlocks().empty(1000).is_pinned()


def test_decoders_fill_the_memory_they_are_given(blocks: list[torch.Tensor]) -> None:
    tasks = list(range(300_000, 300_008))
    with DecoderPool(_ramp, processes=2, timeout_seconds=30.0, empty=PinnedBlocks().empty) as pool:
        plan = [tuple(range(len(tasks)))]
        ((_, found),) = pool.results(plan, tasks, ahead=2, stop=Stop())
    assert all(np.array_equal(waveform, _ramp(samples)) for samples, waveform in zip(tasks, found, strict=True))
    assert len(blocks) == 1


def test_what_a_block_holds_is_copied_to_a_device_in_one_go(
    blocks: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = PinnedBlocks()
    waveforms = [pinned.empty(samples).fill_(samples) for samples in (3_000_000, 500_000, 1_000_000, 7, 5_000_000)]
    to, copied = torch.Tensor.to, []
    monkeypatch.setattr(torch.Tensor, "to", lambda one, *a, **k: copied.append(len(one)) or to(one, *a, **k).clone())
    found = copied_to(torch.device("cpu"), [waveforms[number] for number in (1, 4, 3, 0)])
    assert copied == [3_500_000, 5_000_000, 7]
    assert [(len(one), one.unique().item()) for one in found] == [(n, n) for n in (500_000, 5_000_000, 7, 3_000_000)]


def _ramp(samples: int) -> np.ndarray:
    return np.arange(samples, dtype=np.float32) / samples
