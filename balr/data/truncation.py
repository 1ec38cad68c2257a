"""Whether a part of a compressed file is missing, or would be left out, which decoders do not report.

They conceal a frame that is cut and stop quietly at the end of a file. The frames, pages and elements of a file, and
the lengths that it declares, show whether there should be more.
"""

import mmap
import struct
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

# ISO 11172-3 and 13818-3: bit rates in kbit/s by index, for (is MPEG-1, layer).
_LOW_KBPS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MPEG_KBPS: dict[tuple[bool, int], tuple[int, ...]] = {
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 2): _LOW_KBPS,
    (False, 3): _LOW_KBPS,
}
_MPEG_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
# ETSI TS 102 366: AC-3 bit rates in kbit/s and sample rates.
_AC3_KBPS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)
_AC3_HZ = (48_000, 44_100, 32_000)
_PARENT_ELEMENTS = frozenset({0x18538067, 0x1F43B675})  # Segment and Cluster, whose children are checked


class _Frame(NamedTuple):
    kind: tuple[int, int, int]  # version, layer, index of the sample rate
    size: int
    samples: int


def mpeg_frames(path: Path) -> tuple[int, int, int, str | None]:
    """Count the frames of an MPEG audio file (mp2, mp3), also inside a wav, and their samples; say what is missing.

    Returns frames, samples, the frames that a Xing, Info or VBRI header declares (0 without one; it does not count) and
    the flaw. Tags and the like between frames are skipped. Free-format frames, which do not declare their size, do not
    count.
    """
    data = _content(path)
    found = _next_frame(data, _after_id3(data, 0))
    if found is None:
        return 0, 0, 0, None
    position, first = found
    declared = _declared_frames(data[position : position + min(first.size, 256)])
    position += first.size if declared is not None else 0
    frames, flaw = 0, None
    while found is not None and position + 4 <= len(data):
        frame = _mpeg_frame(data[position : position + 4])
        if frame is None or frame.kind != first.kind:
            start = _after_id3(data, position)
            found = _next_frame(data, start, first.kind)
            other = _next_frame(data, start, followers=2, end=found[0] if found else len(data))
            if other is not None and other[1].kind != first.kind:
                flaw = f"its sample rate or its layer changes after {frames} MPEG frames: several files put end to end?"
            if found is None:
                break
            position, frame = found
        frames += 1
        position += frame.size
    if found is not None and (position > len(data) or data[position : position + 1] == b"\xff"):
        flaw = "truncated: its last MPEG frame is cut"
    if flaw is None and frames + 1 < (declared or 0):  # encoders may count one more
        flaw = f"truncated: it declares {declared} MPEG frames and holds {frames}"
    return frames, frames * first.samples, declared or 0, flaw


def ogg_pages(path: Path) -> tuple[bool, str | None]:
    """Follow the pages of an Ogg file (RFC 3533), and return whether several streams follow one another, and a flaw."""
    data = _content(path)
    position = 0
    has_end = has_data = is_chained = False
    while 0 <= position < len(data):
        head = data[position : position + 27]
        if not head.startswith(b"OggS"):
            position = data.find(b"OggS", position + 1)
            continue
        lacing = data[position + 27 : position + 27 + head[26]] if len(head) == 27 else b""
        position += 27 + len(lacing) + sum(lacing)
        if len(head) < 27 or len(lacing) < head[26] or position > len(data):
            has_end = False
            break
        begins, has_end = bool(head[5] & 2), bool(head[5] & 4)
        is_chained = is_chained or (begins and has_data)
        has_data = has_data or not begins
    return is_chained, None if has_end else "truncated: its last Ogg page is cut, or does not end the stream"


def matroska_flaw(path: Path) -> str | None:
    """Follow the elements of a Matroska or WebM file (RFC 8794) and say if the last one is cut."""
    cut = "truncated: its last Matroska element is cut"
    data = _content(path)
    position = 0
    while position < len(data):
        head = data[position : position + 12]
        id_bytes = 9 - head[0].bit_length()
        if id_bytes > 4:
            return None  # not an element: something else follows
        if len(head) <= id_bytes:
            return cut
        size_bytes = 9 - head[id_bytes].bit_length()
        if size_bytes > 8 or len(head) < id_bytes + size_bytes:
            return cut if len(head) < id_bytes + 8 else None
        size = int.from_bytes(head[id_bytes : id_bytes + size_bytes]) & ((1 << 7 * size_bytes) - 1)
        is_known = size != (1 << 7 * size_bytes) - 1
        position += id_bytes + size_bytes
        if is_known and position + size > len(data):
            return cut
        if int.from_bytes(head[:id_bytes]) not in _PARENT_ELEMENTS:
            if not is_known:
                return None
            position += size
    return None


def is_cut_ac3(packet: bytes) -> bool:
    """Return whether an AC-3 or E-AC-3 frame is shorter than its header says."""
    if len(packet) < 6 or not packet.startswith(b"\x0b\x77"):
        return True
    if packet[5] >> 3 > 10:
        return len(packet) < 2 * ((int.from_bytes(packet[2:4]) & 0x7FF) + 1)
    rate_index, size_index = packet[4] >> 6, packet[4] & 0x3F
    if rate_index == 3 or size_index >= 2 * len(_AC3_KBPS):
        return True
    words = _AC3_KBPS[size_index // 2] * 1000 * 1536 // (16 * _AC3_HZ[rate_index])
    return len(packet) < 2 * (words + (size_index % 2 if rate_index == 1 else 0))


@lru_cache(maxsize=4096)
def _mpeg_frame(header: bytes) -> _Frame | None:
    """Parse a frame header of 4 bytes; None if it is not one, or that of a frame in free format."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    rate_index, padding = header[2] >> 2 & 3, header[2] >> 1 & 1
    if version not in _MPEG_HZ or layer not in (2, 3) or rate_index == 3 or header[2] >> 4 in (0, 15):
        return None
    is_first = version == 3
    rate_hz, bits = _MPEG_HZ[version][rate_index], 1000 * _MPEG_KBPS[is_first, layer][header[2] >> 4]
    samples = 1152 if layer == 2 or is_first else 576
    return _Frame((version, layer, rate_index), samples // 8 * bits // rate_hz + padding, samples)


def _declared_frames(frame: bytes) -> int | None:
    """Return the frames that a Xing, Info or VBRI header in the first frame declares (0: none), None without one."""
    for name, least in ((b"Xing", 8), (b"Info", 8), (b"VBRI", 18)):
        at = frame.find(name, 4, 44)
        if at >= 0 and len(frame) >= at + least:
            if name == b"VBRI":
                return int(struct.unpack_from(">I", frame, at + 14)[0])
            flags, count = struct.unpack_from(">II", frame.ljust(at + 12, b"\0"), at + 4)
            return int(count) if flags & 1 else 0
    return None


def _next_frame(
    data: mmap.mmap,
    position: int,
    kind: tuple[int, int, int] | None = None,
    *,
    followers: int = 1,
    end: int | None = None,
) -> tuple[int, _Frame] | None:
    """Find the next frame that starts before `end`, of a kind if one is given, and that so many of its kind follow."""
    end = len(data) if end is None else end
    while (position := data.find(b"\xff", position, end)) >= 0:
        first = _mpeg_frame(data[position : position + 4])
        if first is not None and kind in (None, first.kind):
            frames, after = [first], position
            while len(frames) <= followers:
                after += frames[-1].size
                frame = _mpeg_frame(data[after : after + 4])
                if frame is None or frame.kind != first.kind:
                    break
                frames.append(frame)
            else:
                return position, first
        position += 1
    return None


def _after_id3(data: mmap.mmap, position: int) -> int:
    """Return the end of the ID3v2 tag that starts at a position, or the position if no tag does."""
    head = data[position : position + 10]
    if len(head) < 10 or not head.startswith(b"ID3"):
        return position
    size = sum(byte << 7 * place for place, byte in enumerate(reversed(head[6:10])))
    return position + 10 + size


def _content(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:  # a private map, as some file systems have no shared ones
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
