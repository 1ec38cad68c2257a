"""Kaldi archives: `xvector.ark` with embeddings end to end, `xvector.scp`, and the lists and means of speakers.

metadata.csv lists the embeddings that exist; the other lists are written from it when all is done. Bytes behind the
last listed embedding are what a kill left, and are overwritten.
"""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from balr.atomic import as_output_error, whole_file
from balr.errors import InputError, OutputError, one_line
from balr.records import Embedded, Failure, Utterance
from balr.stores.ark import HEADER_BYTES, encode_entry, key_of
from balr.stores.base import StoredCorpus
from balr.stores.embedding_files import checksum
from balr.stores.listed import Listed, ListedStore

_SCP = "xvector.scp"


class KaldiStore(ListedStore):
    """Store embeddings in an archive that Kaldi, WeSpeaker's scoring and 3D-Speaker read.

    Raises InputError where an id or a speaker holds a space, which separates the columns of Kaldi's lists.
    """

    def __init__(self, corpus: StoredCorpus) -> None:
        super().__init__(corpus)
        names = [name for utterance in self.audible for name in (utterance.id, utterance.speaker or "-")]
        spaced = [name for name in names if len(name.split()) != 1 or name.strip() != name]
        if spaced:
            raise InputError(
                f"{len(spaced)} ids or speakers with spaces in {corpus.root}, first {spaced[0]!r}, which separate the "
                "columns of Kaldi's lists; rename them, or choose store=files or store=parquet."
            )
        self._ark = f"xvector{self.shard.tag}.ark"
        self._entry_bytes = HEADER_BYTES + 4 * (corpus.embedding_dim or 0)
        self._last: int | None = None  # where the last listed embedding of the archive begins

    def _save(self, batch: Sequence[Embedded]) -> tuple[list[tuple[Utterance, Listed]], list[Failure]]:
        self._entry_bytes = HEADER_BYTES + batch[0].embedding.nbytes
        start, content = 0 if self._last is None else self._last + self._entry_bytes, io.BytesIO()
        written = []
        for one in batch:
            place = f"{self._ark}:{start + content.tell() + len(key_of(one.utterance.id))}"
            content.write(encode_entry(one.utterance.id, one.embedding))
            written.append((one.utterance, Listed(place, checksum(one.embedding.tobytes()))))
        path = self.folder / self._ark
        with as_output_error(path), open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as file:
            file.seek(start)
            file.truncate()
            file.write(content.getvalue())
            file.flush()
            os.fsync(file.fileno())
        if not self.shard.tag:
            self._unlink(_SCP)  # until it lists these as well
        self._last = start + content.tell() - self._entry_bytes
        return written, []

    def _accepts(self, utterance: Utterance, place: str) -> bool:
        ark, _, offset = place.rpartition(":")
        if not offset.isdecimal() or os.path.basename(ark) != ark:
            return False
        if ark == self._ark:
            self._last = max(self._last or 0, int(offset))
        return True

    def _is_there(self, place: str) -> bool:
        ark, _, offset = place.rpartition(":")
        with suppress(OSError):
            return os.path.getsize(self.folder / ark) >= int(offset) + self._entry_bytes
        return False

    def _remove(self, listed: Mapping[str, Listed]) -> None:
        for name in (_SCP, *{place.rpartition(":")[0] for place, _ in listed.values()}):
            self._unlink(name)
        self._last = None

    def _finish(self) -> None:
        speakers = {utterance.id: utterance.speaker or utterance.id for utterance in self.audible}
        ids = sorted((id_ for id_ in self._listed if id_ in speakers), key=key_of)
        utt2spk = _content(f"{id_} {speakers[id_]}" for id_ in ids)
        scp = _content(f"{id_} {self.folder}/{self._listed[id_].place}" for id_ in ids)
        if self._holds("utt2spk", utt2spk) and self._holds(_SCP, scp):
            return
        of_speaker: dict[str, list[str]] = {}
        for id_ in ids:
            of_speaker.setdefault(speakers[id_], []).append(id_)
        names = sorted(of_speaker, key=key_of)
        sums: dict[str, npt.NDArray[Any]] = {}
        try:
            for id_, embedding in self.read():
                sums[speakers[id_]] = sums.get(speakers[id_], 0.0) + embedding.astype(np.float64)
        except (OSError, ValueError) as error:
            raise OutputError(f"{self.folder}: {one_line(error)}; balr verify shows which is damaged.") from error
        means, places = io.BytesIO(), []
        for name in names:
            places.append(f"{name} {self.folder}/spk_xvector.ark:{means.tell() + len(key_of(name))}")
            means.write(encode_entry(name, (sums[name] / len(of_speaker[name])).astype(np.float32)))
        self._unlink(_SCP)  # until all lists are written
        self._write("utt2spk", utt2spk)
        self._write("spk2utt", _content(f"{name} {' '.join(of_speaker[name])}" for name in names))
        # Kaldi ignores spaces at the end; kaldiio looks four bytes ahead, and would take them from the next line.
        self._write("num_utts.ark", _content(f"{name} {len(of_speaker[name]):<4}" for name in names))
        self._write("spk_xvector.ark", means.getvalue())
        self._write("spk_xvector.scp", _content(places))
        self._write(_SCP, scp)

    def _holds(self, name: str, content: bytes) -> bool:
        path = self.folder / name
        with as_output_error(path, "read"):
            return path.is_file() and path.read_bytes() == content

    def _unlink(self, name: str) -> None:
        with as_output_error(self.folder / name, "removed"):
            (self.folder / name).unlink(missing_ok=True)

    def _write(self, name: str, content: bytes) -> None:
        with whole_file(self.folder / name) as file:
            file.write(content)


def _content(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")
