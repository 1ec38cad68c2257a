"""Memory that a GPU copies from while it computes, and that is used again."""

import logging
from collections import defaultdict
from collections.abc import Sequence

import torch

log = logging.getLogger(__name__)

_BLOCK_SAMPLES = 1 << 22  # 16 MiB, over four minutes at 16 kHz


class PinnedBlocks:
    """Give out waveforms `(samples,)` end to end in blocks of pinned memory.

    torch gives a block out again when all its waveforms are gone and copied. It keeps every size for itself until the
    process ends, so there is one size; a longer waveform, or one for which no memory can be pinned, lies elsewhere.
    """

    def __init__(self) -> None:
        self._block = torch.empty(0)
        self._used = 0

    def empty(self, samples: int) -> torch.Tensor:
        """Return memory for a waveform `(samples,)`."""
        if samples > _BLOCK_SAMPLES:
            return torch.empty(samples)
        if self._used + samples > len(self._block):
            try:
                self._block, self._used = torch.empty(_BLOCK_SAMPLES, pin_memory=True), 0
            except RuntimeError as error:
                log.debug("no memory can be pinned: %s", error)
                return torch.empty(samples)
        waveform = self._block[self._used : self._used + samples]
        self._used += samples
        return waveform


def copied_to(device: torch.device, waveforms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return waveforms `(samples,)` on a device, which may still be copying them; those of a block are one copy."""
    copied = list(waveforms)
    in_block: dict[int, list[int]] = defaultdict(list)
    for number, waveform in enumerate(waveforms):
        in_block[waveform.untyped_storage().data_ptr()].append(number)
    for numbers in in_block.values():
        starts = [int(waveforms[number].storage_offset()) for number in numbers]
        ends = [start + len(waveforms[number]) for start, number in zip(starts, numbers, strict=True)]
        first = min(starts)
        block = waveforms[numbers[0]].as_strided((max(ends) - first,), (1,), first).to(device, non_blocking=True)
        for number, start, end in zip(numbers, starts, ends, strict=True):
            copied[number] = block[start - first : end - first]
    return copied
