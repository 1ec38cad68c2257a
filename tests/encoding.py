"""Encode synthetic speech with FFmpeg's encoders, and cut what they wrote."""

import io
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import soundfile
from conftest import speechlike


def encode(
    path: Path,
    samples: npt.NDArray[np.float32],
    *,
    codec: str,
    rate_hz: int,
    kbps: int = 64,
    format: str | None = None,
    options: dict[str, str] | None = None,
    encoder_options: dict[str, str] | None = None,
    tags: dict[str, str] | None = None,
) -> Path:
    """Write mono samples `(samples,)` to a file of the format that its suffix, or `format`, names."""
    if codec == "vorbis":  # FFmpeg's own encoder is experimental
        soundfile.write(path, samples, rate_hz, format="OGG", subtype="VORBIS")
        return path
    with av.open(str(path), "w", format=format, options=options or {}) as container:
        container.metadata.update(tags or {})
        stream = container.add_stream(codec, rate=rate_hz, layout="mono", options=encoder_options or {})
        stream.bit_rate = kbps * 1000
        frame = av.AudioFrame.from_ndarray(samples[None, :], format="flt", layout="mono")
        frame.sample_rate = rate_hz
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return path


def streamed(samples: npt.NDArray[np.float32], *, codec: str, rate_hz: int, format: str) -> bytes:
    """Encode to a stream that cannot be sought, so that no length is ever written into its header."""

    class Pipe(io.RawIOBase):
        content = b""

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            self.content += bytes(data)
            return len(data)

    pipe = Pipe()
    with av.open(pipe, "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate_hz, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None, :], format="flt", layout="mono")
        frame.sample_rate = rate_hz
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return pipe.content


def speech(seconds: float, rate_hz: int, *, seed: int = 0) -> npt.NDArray[np.float32]:
    """Make speech-like samples, of which the seconds differ: loud ones, and ones that are nearly silent."""
    samples = speechlike(seconds, seed=seed, rate_hz=rate_hz)
    level = np.where(np.arange(samples.size) // (rate_hz // 2) % 3 == 2, 1e-3, 1.0)
    return (samples * level).astype(np.float32)
