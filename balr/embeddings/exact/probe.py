"""The shortest audio that a network can embed at all, and the shortest that 16 bits embed as fp32 does."""

import warnings
from bisect import bisect_left
from collections.abc import Callable, Sequence
from math import inf

import torch

from balr.embeddings.exact.kernels import exact_kernels
from balr.embeddings.exact.precision import LEAST_COSINE, least_cosine, refuse_far
from balr.embeddings.frontend import Frontend
from balr.errors import UtteranceError

LONGEST_SHORTEST_SECONDS = 1.0
EXAMPLE_SECONDS = 0.7
_LONGEST_SECONDS = 2.8
_STEP = 2**0.5
# Of a hundred clips of real speech, 16 bits move the worst one up to twice as far as the worst noise here.
_LEAST_COSINE_OF_NOISE = 1 - (1 - LEAST_COSINE) / 2
_NOISES = 3
_SOUND_SECONDS = 0.04
_SILENCE_SECONDS = 0.06
_LEVELS_DB = 60.0

Run = Callable[[torch.Tensor], torch.Tensor]
Embed = Callable[[Sequence[torch.Tensor]], torch.Tensor]


def embedder(run: Run, frontend: Frontend, device: torch.device) -> Embed:
    """Return a function that embeds waveforms `(samples,)` of one length to `(batch, dim)`."""

    @torch.inference_mode()
    def embed(waveforms: Sequence[torch.Tensor]) -> torch.Tensor:
        with exact_kernels(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the variance of a single frame; the result is checked
            return run(torch.stack(frontend.compute([waveform.to(device) for waveform in waveforms])))

    return embed


def shortest_seconds(embed: Embed, sample_rate_hz: int) -> float:
    """Find the shortest audio that can be embedded, by bisection on noise in steps of 5 ms; infinity if over 1 s."""
    noise = white_noise(LONGEST_SHORTEST_SECONDS, sample_rate_hz)
    step = sample_rate_hz // 200
    lengths = range(step, noise.numel() + 1, step)
    index = bisect_left(lengths, True, key=lambda length: _can_embed(embed, noise[:length]))
    return lengths[index] / sample_rate_hz if index < len(lengths) else inf


def shortest_near(lowered: Embed, exact: Embed, sample_rate_hz: int, *, shortest: float) -> float:
    """Find the shortest audio, in seconds and at least `shortest`, that 16 bits embed as fp32 does.

    Rounding that averages out over many frames can show over few. The search goes down from 0.7 s by half an octave at
    a time, to the first length that is not close; if 0.7 s is not, down from 2.8 s. Raises ConfigError if 2.8 s is not.
    """
    noises = speechlike_noises(_LONGEST_SECONDS, sample_rate_hz)

    def cosine(seconds: float, *, silence: bool) -> float:
        cut = [noise[: round(seconds * sample_rate_hz)] for noise in noises]
        if silence:
            cut += [_silent_at_the_end(noise, sample_rate_hz) for noise in cut[1:]]
        return least_cosine(lowered(cut), exact(cut))

    near = max(EXAMPLE_SECONDS, shortest)
    if not cosine(near, silence=True) > _LEAST_COSINE_OF_NOISE:
        near = _LONGEST_SECONDS
        refuse_far(cosine(near, silence=False), "precision")
    while near > shortest:
        shorter = max(near / _STEP, shortest)
        if not cosine(shorter, silence=True) > _LEAST_COSINE_OF_NOISE:
            break
        near = shorter
    return near


def white_noise(seconds: float, sample_rate_hz: int, *, seed: int = 0) -> torch.Tensor:
    """Return a waveform `(samples,)` of white noise at -20 dB."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(round(seconds * sample_rate_hz), generator=generator) * 0.1


def speechlike_noises(seconds: float, sample_rate_hz: int) -> list[torch.Tensor]:
    """Return waveforms `(samples,)` of noise whose level changes every 40 ms, as that of speech does.

    16 bits move the embedding of even noise up to ten times less.
    """
    sound = round(_SOUND_SECONDS * sample_rate_hz)
    noises = []
    for seed in range(_NOISES):
        noise = white_noise(seconds, sample_rate_hz, seed=seed)
        sounds = -(-noise.numel() // sound)
        decibels = torch.rand(sounds, generator=torch.Generator().manual_seed(seed)) * _LEVELS_DB
        levels = (10 ** (0.5 - decibels / 20)).repeat_interleave(sound)
        noises.append((noise * levels[: noise.numel()]).clamp(-1, 1))
    return noises


def _silent_at_the_end(noise: torch.Tensor, sample_rate_hz: int) -> torch.Tensor:
    """Return the noise `(samples,)` with digital silence at its end, which moves short audio more than any sound."""
    silent = min(round(_SILENCE_SECONDS * sample_rate_hz), noise.numel() // 2)
    return torch.cat((noise[: noise.numel() - silent], noise.new_zeros(silent)))


def _can_embed(embed: Embed, waveform: torch.Tensor) -> bool:
    try:
        return bool(embed([waveform]).isfinite().all())
    except torch.OutOfMemoryError:  # because of other work: the caller tries again
        raise
    except (RuntimeError, IndexError, UtteranceError):  # such as a convolution wider than its input
        return False
