"""The loop that every model shares: utterances in, an embedding or a failure out for each, in the same order."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from balr.config import DataConfig
from balr.data.dataset import AudioDataset
from balr.data.loading import Decoded, decoded_batches, failure
from balr.data.planning import Plan, plan_corpus
from balr.data.read_ahead import ReadAhead
from balr.data.vectors import Vector
from balr.embeddings.devices import Loading, computing, device_name, on, suited
from balr.embeddings.outcomes import Deliveries, Embedded, LoggingObserver, Observer, Outcome
from balr.embeddings.stages import Stages
from balr.errors import FirstFailureError, OutputError, UtteranceError
from balr.signals import held_back

log = logging.getLogger(__name__)


class EmbeddingsModel(ABC):
    """Turn waveforms at `sample_rate_hz` into embeddings on `device`; a model implements `embed`."""

    sample_rate_hz: int
    device: torch.device
    embedding_dim: int | None = None
    _most_samples: float = float("inf")

    @cached_property
    def stages(self) -> Stages:
        """Add up how long decoding keeps this waiting, and how long features, forward passes and writing take."""
        return Stages()

    @cached_property
    def _batching(self) -> dict[str, Any]:
        return {}

    @abstractmethod
    def embed(
        self,
        waveforms: Sequence[torch.Tensor],
        *,
        chunk_seconds: float | None = None,
        max_whole_seconds: float | None = None,
    ) -> torch.Tensor:
        """Embed waveforms `(samples,)` in [-1, 1] to `(batch, dim)`, float32 on `device`.

        `extract_embeddings` calls it from several threads at a time. A waveform longer than `chunk_seconds` may be
        worked through in parts, to the same embedding; where that cannot be, one longer than `max_whole_seconds` is
        refused. Raises UtteranceError where one cannot be embedded.
        """

    def extract_embeddings(
        self,
        dataset: AudioDataset,
        stream_save: bool,
        data_config: DataConfig,
        *,
        observer: Observer | None = None,
        durations_file: Path | None = None,
    ) -> list[tuple[str, npt.NDArray[Any]]]:
        """Embed every utterance that has audio.

        With `stream_save` embeddings `(dim,)` go to `dataset.vector_path(...)` as they are computed, a few at a time,
        and the list is empty; without, (id, embedding) pairs are returned in the order of the dataset. A bad utterance
        is told to the observer, or logged, and left out. `durations_file` remembers the lengths of files from one run
        to the next. Raises OutputError where an embedding cannot be written.
        """
        observer = observer or LoggingObserver()
        audible = dataset.filter(lambda utterance: utterance.audio is not None).at_rate(
            self.sample_rate_hz, max_audio_seconds=data_config.max_audio_seconds
        )
        loading = suited(data_config, self.device)
        plan = plan_corpus(
            audible,
            data_config,
            sample_rate_hz=self.sample_rate_hz,
            batch_size=loading.batch_size,
            max_batch_seconds=loading.max_batch_seconds,
            isolated=loading.num_workers > 0,
            durations_file=durations_file,
        )
        self._batching |= {**asdict(loading), "batches": len(plan.batches)}
        observer.planned(sum(length or 0.0 for length in plan.seconds), upsampled=plan.upsampled)
        done = Deliveries(audible, observer, self.stages, stream_save=stream_save)
        self._run(audible, plan, loading, data_config, done)
        vectors = done.vectors
        return [(utterance.id, vectors[utterance.id]) for utterance in audible.utterances if utterance.id in vectors]

    def about(self) -> dict[str, Any]:
        """Say, for a record, what computes."""
        return {"device": device_name(self.device)}

    def how(self) -> dict[str, Any]:
        """Say, for a record and after a run, what was decided on the way and how long its stages took."""
        return {"batching": self._batching, "stage_seconds": self.stages.seconds()}

    def _run(self, dataset: AudioDataset, plan: Plan, loading: Loading, config: DataConfig, done: Deliveries) -> None:
        """Deliver what becomes of each utterance as it is done: this thread loads and delivers, others compute."""
        at_once = min(loading.streams, max(1, len(plan.batches)))
        read_ahead = plan.read_ahead(dataset, most_seconds=config.max_ahead_seconds)
        running: set[Future[list[Outcome]]] = set()

        def rest() -> None:
            while running:
                done.take_first(running)

        batches = decoded_batches(
            dataset,
            plan.batches,
            num_workers=min(loading.num_workers, len(plan.batches)),
            prefetch_factor=loading.prefetch_factor,
            timeout_seconds=config.decode_timeout_seconds,
            read_ahead=read_ahead,
            quiet=rest,
            idle=lambda: done.take_done(running),
        )
        with (
            on(self.device),
            closing(batches),
            computing(at_once, self.device) as pool,
            _saving_all(done, running, pool),
        ):
            for batch in self._waiting_for(batches):
                if batch is None:
                    done.take_first(running)
                    continue
                with held_back():
                    running.add(self._submit(pool, batch, config, read_ahead))
                if len(running) > at_once:  # one more than can run, so that none waits for a decoder
                    done.take_first(running)
            rest()
            done.save()
            for batch in done.postponed:
                done.take(self._embed_batch(batch, config, alone=True))
            done.save()

    def _submit(
        self, pool: ThreadPoolExecutor, batch: Decoded, config: DataConfig, read_ahead: ReadAhead
    ) -> Future[list[Outcome]]:
        ready, ids = batch.pin_memory() if self.device.type == "cuda" else batch, batch.ids
        future = pool.submit(self._embed_batch, ready, config)
        future.add_done_callback(lambda _: read_ahead.release(ids))
        return future

    def _waiting_for(self, batches: Iterator[Decoded | None]) -> Iterator[Decoded | None]:
        while True:
            with self.stages.timed("decode_wait"):
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            yield batch

    def _embed_batch(self, batch: Decoded, config: DataConfig, *, alone: bool = False) -> list[Outcome]:
        """Return what becomes of each utterance; one without room on the device waits until it is `alone` there."""
        outcomes: list[Outcome] = list(batch.failures)
        try:
            waveforms = batch.waveforms(self.device)
        except torch.OutOfMemoryError:
            waveforms = batch.waveforms(torch.device("cpu"))  # from where fewer at a time are taken
        all_made = self._embed_or_tell(waveforms, config)
        for utterance, waveform, made in zip(batch.utterances, waveforms, all_made, strict=True):
            error = made if isinstance(made, Exception) else _flaw(made, waveform)
            if isinstance(error, torch.OutOfMemoryError) and not alone:
                outcomes.append(Decoded((utterance,), waveform.cpu(), (waveform.numel(),), ()))
            elif error is not None:
                outcomes.append(failure(utterance.id, utterance.audio_path, "embed", error))
            elif not isinstance(made, Exception):
                outcomes.append(Embedded(utterance, made, waveform.numel() / self.sample_rate_hz))
        return outcomes

    def _embed_or_tell(self, waveforms: Sequence[torch.Tensor], config: DataConfig) -> list[Vector | Exception]:
        """Embed a batch; where that fails, by halves, so that it costs only the utterance that it is due to."""
        if not waveforms:
            return []
        error: Exception
        if len(waveforms) == 1 or sum(waveform.numel() for waveform in waveforms) <= self._most_samples:
            try:
                limits = {"chunk_seconds": config.chunk_seconds, "max_whole_seconds": config.max_whole_seconds}
                return list(self.embed(waveforms, **limits).cpu().numpy())
            except Exception as raised:
                error = raised.with_traceback(None)  # which would keep the tensors of the attempt
            if len(waveforms) == 1:
                return [error]
            if isinstance(error, torch.OutOfMemoryError):
                half_of_it = sum(waveform.numel() for waveform in waveforms) / 2
                self._most_samples = min(self._most_samples, half_of_it)
                torch.cuda.empty_cache()
                log.warning("out of memory with %d utterances at once: going on with half of that", len(waveforms))
        half = len(waveforms) // 2
        return [
            *self._embed_or_tell(waveforms[:half], config),
            *self._embed_or_tell(waveforms[half:], config),
        ]


@contextmanager
def _saving_all(done: Deliveries, running: set[Future[list[Outcome]]], pool: ThreadPoolExecutor) -> Iterator[None]:
    """Save all there is of a run that ends early; one that is stopped finishes what is in hand, too."""
    try:
        yield
    except (KeyboardInterrupt, FirstFailureError):
        with held_back():
            done.finish()
            pool.shutdown(cancel_futures=True)
            finished = [future for future in running if not future.cancelled() and future.exception() is None]
            done.finish(outcome for future in finished for outcome in future.result())
        raise
    except BaseException:
        with suppress(OutputError):  # one is being told
            done.finish()
        raise


def _flaw(vector: Vector, waveform: torch.Tensor) -> UtteranceError | None:
    if np.isfinite(vector).all():
        return None if vector.any() else UtteranceError("the embedding is all zeros")
    silent = bool((waveform == waveform[0]).all())
    return UtteranceError(f"the embedding is not finite{' (digital silence)' if silent else ''}")
