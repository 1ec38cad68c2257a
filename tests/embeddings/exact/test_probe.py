"""From which length on 16 bits are taken: found on noise, from below what fails; refused where none is near."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch

from balr.embeddings.exact.probe import shortest_near, shortest_seconds, speechlike_noises
from balr.errors import ConfigError

RATE_HZ = 16_000


def embed(waveforms: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([torch.cat((waveform.abs().mean().reshape(1), torch.ones(1))) for waveform in waveforms])


def moved(by: Callable[[float], float]) -> Callable[[Sequence[torch.Tensor]], torch.Tensor]:
    """Return what embeds with a cosine to `embed` that is less than 1 by a function of the seconds."""

    def run(waveforms: Sequence[torch.Tensor]) -> torch.Tensor:
        far = torch.tensor(1.0 - by(waveforms[0].numel() / RATE_HZ)).arccos()
        turn = torch.stack((torch.stack((far.cos(), -far.sin())), torch.stack((far.sin(), far.cos()))))
        return embed(waveforms) @ turn.T

    return run


def test_all_lengths_down_to_the_shortest_are_near() -> None:
    assert shortest_near(moved(lambda _: 3e-5), embed, RATE_HZ, shortest=0.045) == 0.045
    assert shortest_near(embed, embed, RATE_HZ, shortest=0.9) == 0.9


def test_the_first_length_that_is_far_ends_the_search() -> None:
    near = shortest_near(moved(lambda seconds: 7e-5 * (0.1 < seconds < 0.3)), embed, RATE_HZ, shortest=0.045)
    assert near == pytest.approx(0.35)


def test_where_the_usual_example_is_far_longer_audio_is_tried() -> None:
    near = shortest_near(moved(lambda seconds: 1e-4 / seconds), embed, RATE_HZ, shortest=0.045)
    assert near == pytest.approx(2.8)
    near = shortest_near(moved(lambda seconds: 1e-3 * (seconds < 1.2)), embed, RATE_HZ, shortest=0.045)
    assert near == pytest.approx(1.4)


@pytest.mark.parametrize("far", [2e-4, float("nan")])
def test_a_network_that_is_far_at_every_length_is_refused(far: float) -> None:
    with pytest.raises(ConfigError, match=r"precision: the cosine of 16-bit embeddings of noise to fp32 is"):
        shortest_near(moved(lambda _: far), embed, RATE_HZ, shortest=0.045)


def test_the_noises_change_their_level_as_speech_does() -> None:
    for noise in speechlike_noises(1.0, RATE_HZ):
        levels = noise.reshape(25, -1).pow(2).mean(dim=1).log10() * 10
        assert noise.abs().max() <= 1 and 40 < levels.max() - levels.min() < 65


def test_audio_for_which_there_was_no_memory_does_not_count_as_too_short() -> None:
    def embed_without_memory(waveforms: Sequence[torch.Tensor]) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        shortest_seconds(embed_without_memory, RATE_HZ)


@pytest.mark.parametrize(("needed", "shortest"), [(1_000, 0.065), (RATE_HZ, 1.0), (RATE_HZ + 1, math.inf)])
def test_the_shortest_audio_is_found_up_to_a_second(needed: int, shortest: float) -> None:
    def embed_from_there(waveforms: Sequence[torch.Tensor]) -> torch.Tensor:
        if waveforms[0].numel() < needed:
            raise RuntimeError("a convolution wider than its input")
        return embed(waveforms)

    assert shortest_seconds(embed_from_there, RATE_HZ) == shortest
