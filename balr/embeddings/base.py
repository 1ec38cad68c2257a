"""What every model shares: a corpus in, an embedding or a failure out for each utterance, in the same order."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from balr.config import DataConfig
from balr.data.audio import as_waveform, load_waveform
from balr.data.audio_budget import AudioBudget
from balr.data.dataset import AudioDataset
from balr.data.decoder_pool import DecoderPool
from balr.data.decoding import Decoded, decoded_batches, waveform_reader
from balr.data.pinned import PinnedBlocks
from balr.data.planning import OneAhead, Plan, plan_in_windows
from balr.embeddings.devices import Loading, device_name, prepare_thread, resolve_loading, shared_threads
from balr.embeddings.outcomes import BarObserver, Delivery, EmbeddingPairs, Observer, find_flaw
from balr.embeddings.pipeline import run_pipeline
from balr.embeddings.stage_timer import StageTimer
from balr.records import WHOLE, Embedded, Embedding, Failure, Outcome, Part
from balr.shutdown import Stop
from balr.stores.base import Store

log = logging.getLogger(__name__)

_Window = tuple[AudioDataset, Plan]


class EmbeddingsModel(ABC):
    """Turn waveforms at `sample_rate_hz` into embeddings on `device`; a model implements `embed`."""

    sample_rate_hz: int
    device: torch.device
    embedding_dim: int | None = None
    on_progress: Callable[[float], None] = staticmethod(lambda _: None)  # with the seconds of a chunk that is done
    _most_samples: float = math.inf
    _room: AudioBudget  # shared by batches; an utterance that has no room beside them gets all of it

    @cached_property
    def _batching(self) -> dict[str, Any]:
        return {}  # until a corpus is embedded

    @cached_property
    def stages(self) -> StageTimer:
        """Add up how long plans and decoding keep this waiting, and how long features, networks and writing take."""
        return StageTimer()

    @abstractmethod
    def embed(
        self,
        waveforms: Sequence[torch.Tensor],
        *,
        chunk_seconds: float = math.inf,
        max_whole_seconds: float = math.inf,
    ) -> torch.Tensor:
        """Embed waveforms `(samples,)` in [-1, 1], of any device, to `(batch, dim)`, float32 on `device`.

        Called from several threads at a time. A waveform longer than `chunk_seconds` may be worked through in parts, to
        the same embedding, or else is refused over `max_whole_seconds`. Raises UtteranceError.
        """

    def extract_embeddings(
        self,
        dataset: AudioDataset | str | Path,
        stream_save: bool = False,
        data_config: DataConfig = DataConfig(),
        *,
        store: Store | None = None,
        failed_before: Collection[str] = (),
        observer: Observer | None = None,
        durations_file: Path | None = None,
        stop: Stop | None = None,
    ) -> EmbeddingPairs:
        """Embed every utterance of a dataset, or of the corpus at a path, that has audio.

        Returns (id, embedding `(dim,)`) pairs in the order of the dataset, and in `.failures` the utterances that have
        none. With `stream_save` embeddings go to `dataset.embedding_path(...)` as they are computed, with a `store` to
        that, without what it holds, and no pairs are returned. `failed_before`: ids that failed in an earlier run.
        `durations_file` keeps the lengths of files. Setting `stop` ends the run in order. Raises OutputError.
        """
        if not isinstance(dataset, AudioDataset):
            dataset = AudioDataset.from_path(dataset)
        stop, bar = stop or Stop(), BarObserver()
        follower: Observer = observer or bar
        audible = dataset.filter(lambda utterance: utterance.audio is not None)
        loading = resolve_loading(data_config, self.device)
        save = store.write if store else audible.save_batch if stream_save else None
        completed = frozenset(store.completed()) if store else frozenset[str]()
        delivery = Delivery(save, follower, self.stages, completed)
        self._batching = {**asdict(loading), "batches": 0}
        self.on_progress = follower.under_way
        settings = {**loading.planning(), "sample_rate_hz": self.sample_rate_hz, "durations_file": durations_file}
        plans = plan_in_windows(audible, data_config, completed, stop=stop, **settings)
        left = ((window, plan.left(window, completed, failed_before) if store else plan) for window, plan in plans)
        with closing(bar), closing(OneAhead(left)) as windows:
            first = windows.take()
            if first is not None and not stop.is_set():
                loading = loading.limited_to(sum(one.id not in completed for one in audible.utterances))
                self._run(first, windows, loading, data_config, delivery, follower, stop)
        return delivery.pairs(audible.utterances)

    def embed_file(self, path: str | Path, *, part: Part = WHOLE, data_config: DataConfig = DataConfig()) -> Embedding:
        """Embed an audio file, or a part of it, to `(dim,)`. Raises UtteranceError.

        Of `data_config`, `chunk_seconds` and `max_whole_seconds` count.
        """
        return self._embed_one(load_waveform(Path(path).expanduser(), self.sample_rate_hz, part=part), data_config)

    def embed_waveform(
        self, waveform: npt.ArrayLike | torch.Tensor, sample_rate_hz: int, *, data_config: DataConfig = DataConfig()
    ) -> Embedding:
        """Embed samples `(samples,)` or `(channels, samples)` of any rate to `(dim,)`.

        Floats are in [-1, 1]; integers are scaled by what their type holds; channels are averaged; `data_config` is as
        in `embed_file`. Raises UtteranceError where they are no such samples.
        """
        return self._embed_one(as_waveform(waveform, sample_rate_hz, target_hz=self.sample_rate_hz), data_config)

    def _embed_one(self, waveform: torch.Tensor, config: DataConfig) -> Embedding:
        embedding: Embedding = self.embed([waveform], **_limits(config))[0].cpu().numpy()
        flaw = find_flaw(embedding, waveform)
        if flaw is not None:
            raise flaw
        return embedding

    def describe(self) -> dict[str, Any]:
        """Say, for a record, what computes."""
        return {"device": device_name(self.device)}

    def execution_facts(self) -> dict[str, Any]:
        """Say, for a record and after a run, what was decided on the way and how long its stages took."""
        return {"batching": {**self._batching}, "stage_seconds": self.stages.seconds()}

    def _run(
        self,
        first: _Window,
        windows: OneAhead[_Window],
        loading: Loading,
        config: DataConfig,
        delivery: Delivery,
        follower: Observer,
        stop: Stop,
    ) -> None:
        """Wire the stages: processes decode, threads compute, one thread saves."""
        reader, self._room = waveform_reader(self.sample_rate_hz, config.max_audio_seconds), AudioBudget()
        read_ahead = AudioBudget(config.max_ahead_seconds)
        settings: dict[str, Any] = {"processes": loading.num_workers, "timeout_seconds": config.decode_timeout_seconds}
        if self.device.type == "cuda":
            settings["empty"] = PinnedBlocks().empty
        pool = DecoderPool(reader, **settings) if loading.num_workers else None
        ahead: dict[str, Any] = {"ahead": loading.num_workers * loading.prefetch_factor, "read_ahead": read_ahead}

        def decoded() -> Iterator[Decoded]:
            ready: _Window | None = first
            while ready is not None and not stop.is_set():
                windows.prepare()
                window, plan = ready
                self._batching["batches"] += len(plan.batches)
                follower.planned(plan.audio_seconds(), upsampled=plan.upsampled)
                seconds = plan.batch_seconds()
                yield from decoded_batches(window, plan.batches, reader, seconds=seconds, pool=pool, stop=stop, **ahead)
                ready = windows.take()

        with pool or nullcontext(), shared_threads(loading.concurrent_batches, self.device):
            run_pipeline(
                self._waiting_for(decoded()),
                partial(self._embed_batch, config=config, read_ahead=read_ahead),
                delivery.deliver,
                threads=loading.concurrent_batches,
                prepare=partial(prepare_thread, self.device),
                stop=stop,
            )

    def _waiting_for(self, batches: Iterator[Decoded]) -> Iterator[Decoded]:
        while True:
            with self.stages.timed("decode_wait"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
            del batch  # free its memory before the next one is decoded

    def _embed_batch(self, batch: Decoded, *, config: DataConfig, read_ahead: AudioBudget) -> list[Outcome]:
        """Return what becomes of each utterance."""
        outcomes: list[Outcome] = list(batch.failures)
        try:
            results = self._embed_or_report(batch.waveforms, config)
        finally:
            read_ahead.release(batch.planned_seconds)
        for utterance, waveform, result in zip(batch.utterances, batch.waveforms, results, strict=True):
            error = result if isinstance(result, Exception) else find_flaw(result, waveform)
            if error is not None:
                outcomes.append(Failure.of(utterance, "embed", error))
            elif not isinstance(result, Exception):
                outcomes.append(Embedded(utterance, result, waveform.numel() / self.sample_rate_hz))
        return outcomes

    def _embed_or_report(
        self, waveforms: Sequence[torch.Tensor], config: DataConfig, *, alone: bool = False
    ) -> list[Embedding | Exception]:
        """Embed a batch; where that fails, by halves, so that it costs only the utterance that it is due to.

        An utterance that finds no memory is tried once more when no other batch is being computed.
        """
        if not waveforms:
            return []
        error: Exception
        if len(waveforms) == 1 or sum(waveform.numel() for waveform in waveforms) <= self._most_samples:
            try:
                with self._room.reserve(math.inf if alone else 0.0):
                    return list(self.embed(waveforms, **_limits(config)).cpu().numpy())
            except Exception as raised:
                error = raised.with_traceback(None)  # which would keep the tensors of the attempt
            if isinstance(error, torch.AcceleratorError):
                torch.accelerator.synchronize()  # raises again where the GPU is lost to this process
            if len(waveforms) == 1:
                is_again = isinstance(error, torch.OutOfMemoryError) and not alone
                return self._embed_or_report(waveforms, config, alone=True) if is_again else [error]
            if isinstance(error, torch.OutOfMemoryError):
                half_of_it = sum(waveform.numel() for waveform in waveforms) / 2
                self._most_samples = min(self._most_samples, half_of_it)
                torch.cuda.empty_cache()
                log.warning("out of memory with %d utterances at once: going on with half of that", len(waveforms))
            log.debug("%d utterances at once: %s", len(waveforms), error)
        half = len(waveforms) // 2
        return [
            *self._embed_or_report(waveforms[:half], config),
            *self._embed_or_report(waveforms[half:], config),
        ]


def _limits(config: DataConfig) -> dict[str, float]:
    return {"chunk_seconds": config.chunk_seconds, "max_whole_seconds": config.max_whole_seconds}
