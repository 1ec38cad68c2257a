"""The shortest audio: that a network can embed at all, and that 16 bits embed as fp32 does."""

import warnings
from collections.abc import Callable, Sequence

import torch

from balr.embeddings.exact.precision import LEAST_COSINE, exact_kernels
from balr.embeddings.frontend import Frontend
from balr.errors import ConfigError, UtteranceError

LONGEST_SHORTEST_SECONDS = 1.0
EXAMPLE_SECONDS = 0.7
_LONGEST_SECONDS = 2.8
_STEP = 2**0.5
# Of a hundred clips of real speech, the one that 16 bits move most moves up to twice as far as the worst noise here.
_LEAST_COSINE_OF_NOISE = 1 - (1 - LEAST_COSINE) / 2
_NOISES = 3
_SOUND_SECONDS = 0.04
_SILENCE_SECONDS = 0.06
_LEVELS_DB = 60.0

Waveforms = Sequence[torch.Tensor]
Run = Callable[[torch.Tensor], torch.Tensor]
Embed = Callable[[Waveforms], torch.Tensor]


def embedder(run: Run, frontend: Frontend, device: torch.device) -> Embed:
    """Join a front end and what runs on a batch of its features, for waveforms of one length."""

    @torch.inference_mode()
    def embed(waveforms: Waveforms) -> torch.Tensor:
        with exact_kernels(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the variance of a single frame; the result is checked
            return run(torch.stack(frontend.compute([waveform.to(device) for waveform in waveforms])))

    return embed


def shortest_seconds(embed: Embed, sample_rate_hz: int) -> float:
    """Find the shortest audio that can be embedded, a second at most, by trying noise frame by frame."""
    noise = white_noise(LONGEST_SHORTEST_SECONDS, sample_rate_hz)
    step = sample_rate_hz // 200
    lengths = range(step, noise.numel() + 1, step)
    low, high = 0, len(lengths) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _can_embed(embed, noise[: lengths[middle]]) else (middle + 1, high)
    return lengths[low] / sample_rate_hz


def shortest_near(lowered: Embed, exact: Embed, sample_rate_hz: int, *, shortest: float) -> float:
    """Find from how many seconds on, at least `shortest`, 16 bits embed as fp32 does.

    Rounding that many frames average out can show in few. Lengths are tried in steps of half an octave, from 0.7 s down
    to the first that is not near; where 0.7 s is not near itself, from 2.8 s. Raises ConfigError where even those are
    not.
    """
    noises = speechlike_noises(_LONGEST_SECONDS, sample_rate_hz)

    def cosine(seconds: float, *, silence: bool) -> float:
        cut = [noise[: round(seconds * sample_rate_hz)] for noise in noises]
        if silence:
            cut += [_silent_at_the_end(noise, sample_rate_hz) for noise in cut[1:]]
        return float(torch.nn.functional.cosine_similarity(lowered(cut).float(), exact(cut).float()).min())

    near = max(EXAMPLE_SECONDS, shortest)
    if not cosine(near, silence=True) > _LEAST_COSINE_OF_NOISE:
        near = _LONGEST_SECONDS
        if not (reached := cosine(near, silence=False)) > LEAST_COSINE:
            raise ConfigError(
                f"precision: the cosine of 16-bit embeddings of {near:g} s of noise to fp32 is {reached:.5f}; use fp32."
            )
    while near > shortest:
        below = max(near / _STEP, shortest)
        if not cosine(below, silence=True) > _LEAST_COSINE_OF_NOISE:
            break
        near = below
    return near


def white_noise(seconds: float, sample_rate_hz: int, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(round(seconds * sample_rate_hz), generator=generator) * 0.1


def speechlike_noises(seconds: float, sample_rate_hz: int) -> list[torch.Tensor]:
    """Make noises whose level is another every 40 ms, as speech's is: 16 bits move even noise up to ten times less."""
    sound = round(_SOUND_SECONDS * sample_rate_hz)
    made = []
    for seed in range(_NOISES):
        noise = white_noise(seconds, sample_rate_hz, seed=seed)
        sounds = -(-noise.numel() // sound)
        decibels = torch.rand(sounds, generator=torch.Generator().manual_seed(seed)) * _LEVELS_DB
        levels = (10 ** (0.5 - decibels / 20)).repeat_interleave(sound)
        made.append((noise * levels[: noise.numel()]).clamp(-1, 1))
    return made


def _silent_at_the_end(noise: torch.Tensor, sample_rate_hz: int) -> torch.Tensor:
    """Return noise that ends in digital silence, which moves short audio more than any sound does."""
    silent = min(round(_SILENCE_SECONDS * sample_rate_hz), noise.numel() // 2)
    return torch.cat((noise[: noise.numel() - silent], noise.new_zeros(silent)))


def _can_embed(embed: Embed, waveform: torch.Tensor) -> bool:
    try:
        return bool(embed([waveform]).isfinite().all())
    except (RuntimeError, IndexError, UtteranceError):  # such as a convolution wider than its input
        return False
