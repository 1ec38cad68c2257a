"""Train the small ECAPA-TDNN that ships with balr for demonstrations and tests, on any LibriSpeech-like folder.

A file `SPEAKER-CHAPTER-UTTERANCE.flac` names its speaker. AAM-softmax over the speakers and their copies at 0.9 and 1.1
times the speed, which count as speakers of their own (Yamamoto et al., Interspeech 2019); noise, other voices,
reverberation and channels in the mel domain; SpecAugment (Park et al., Interspeech 2019). About half an hour on two
cores.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile
import torch
import torchaudio
import yaml
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from balr import load_model
from balr.embeddings.architectures import build_network, run_network
from balr.embeddings.fbank import FbankSettings, fbank
from balr.evaluation.metrics import count_scores, equal_error_rate, error_rates
from balr.evaluation.pairs import all_pairs, numbered
from balr.evaluation.scoring import score

CONFIG = {
    "model": "ECAPA_TDNN",
    "model_args": {"channels": 64, "feat_dim": 80, "embed_dim": 128, "pooling_func": "ASTP"},
    "dataset_args": {
        "resample_rate": 16000,
        "fbank_args": {"num_mel_bins": 80, "frame_shift": 10, "frame_length": 25, "dither": 1.0},
        "cmvn_args": {"norm_mean": True, "norm_var": False},
    },
}
SPEEDS = (10, 9, 11)  # tenths of the recording's own
SCALE, LARGEST_MARGIN = 32.0, 0.2
FRAMES = 200
RATE_HZ = 16_000


@dataclass(frozen=True)
class Corpus:
    """Hold the log mel energies `(frames, mels)` of each utterance, and the number of its speaker."""

    features: list[torch.Tensor]
    speakers: list[int]

    @property
    def speaker_count(self) -> int:
        return max(self.speakers) + 1


class AamSoftmax(torch.nn.Module):
    """Classify speakers with an additive angular margin (Deng et al., CVPR 2019)."""

    def __init__(self, dim: int, speakers: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.nn.init.xavier_normal_(torch.empty(speakers, dim)))

    def forward(self, embeddings: torch.Tensor, speakers: torch.Tensor, margin: float) -> torch.Tensor:
        """Return the mean loss of embeddings `(batch, dim)` of speakers `(batch,)`."""
        cosines = functional.linear(functional.normalize(embeddings), functional.normalize(self.weight))
        angles = cosines.clamp(-1 + 1e-6, 1 - 1e-6).acos()
        is_target = functional.one_hot(speakers, len(self.weight)).bool()
        return functional.cross_entropy(SCALE * torch.where(is_target, (angles + margin).cos(), cosines), speakers)


def load_corpus(folder: Path) -> Corpus:
    """Compute the features of every file below a folder at three speeds."""
    settings = FbankSettings(mean_norm=False)
    names: dict[tuple[str, int], int] = {}
    features, speakers = [], []
    for file in sorted(folder.rglob("*.flac")):
        samples, rate_hz = soundfile.read(file, dtype="float32")
        if rate_hz != RATE_HZ:
            raise SystemExit(f"{file}: {rate_hz} Hz, and {RATE_HZ} Hz are expected")
        for speed in SPEEDS:
            waveform = torchaudio.functional.resample(torch.from_numpy(samples), speed, 10)
            features.append(fbank(waveform, settings))
            speakers.append(names.setdefault((file.stem.split("-")[0], speed), len(names)))
    if not features:
        raise SystemExit(f"{folder}: holds no SPEAKER-CHAPTER-UTTERANCE.flac")
    return Corpus(features, speakers)


def crops(corpus: Corpus, chosen: list[int], frames: int) -> torch.Tensor:
    """Cut random parts `(batch, frames, mels)`; an utterance that is too short is repeated."""
    cut = []
    for number in chosen:
        whole = corpus.features[number]
        whole = whole.repeat(-(-frames // len(whole)), 1)
        start = int(torch.randint(len(whole) - frames + 1, ()))
        cut.append(whole[start : start + frames])
    return torch.stack(cut)


def degraded(speech: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Put log mel energies `(batch, frames, mels)` into rooms, channels, noise and among the voices `others`."""
    batch, frames, mels = speech.shape
    power = speech.exp()
    reverberant = torch.rand(batch) < 0.4  # an exponential tail: energies add up, as of incoherent echoes
    decay = torch.rand(batch) * 0.35 + 0.5
    kernel = 0.25 * decay[:, None] ** torch.arange(1.0, 26.0)
    flat = functional.pad(power.transpose(1, 2).reshape(1, batch * mels, frames), (25, 0))
    tail = functional.conv1d(flat[..., :-1], kernel.flip(1).repeat_interleave(mels, 0)[:, None], groups=batch * mels)
    power = power + reverberant[:, None, None] * tail.reshape(batch, mels, frames).transpose(1, 2)
    power = power * _smooth(batch, mels, 4.0).exp()[:, None]
    level = power.mean(dim=(1, 2), keepdim=True)

    def ratio(lowest_db: float, highest_db: float) -> torch.Tensor:
        decibels = lowest_db + (highest_db - lowest_db) * torch.rand(batch, 1, 1)
        return level * 10 ** (-decibels / 10)

    noise = _smooth(batch, mels, 3.0).exp()[:, None] * torch.empty(batch, frames, mels).exponential_().add(0.2)
    noise = noise / noise.mean(dim=(1, 2), keepdim=True) * ratio(0, 25)
    voices = others.exp()
    voices = voices / voices.mean(dim=(1, 2), keepdim=True) * ratio(5, 25)
    kind = torch.rand(batch, 1, 1)
    power = power + torch.where(kind < 0.5, noise, 0.0) + torch.where((kind > 0.4) & (kind < 0.75), voices, 0.0)
    return power.clamp_min(torch.finfo(torch.float32).eps).log()


def _smooth(batch: int, mels: int, range_: float) -> torch.Tensor:
    """Draw smooth curves over the mels `(batch, mels)`."""
    points = torch.randn(batch, 1, 6) * range_ / 2
    return functional.interpolate(points, mels, mode="linear", align_corners=True)[:, 0]


def masked(features: torch.Tensor) -> torch.Tensor:
    """Subtract the mean over frames of `(batch, frames, mels)` and blank out a band and a stretch of most."""
    features = features - features.mean(dim=1, keepdim=True)
    batch, frames, mels = features.shape
    for length, most, dimension in ((frames, 25, 1), (mels, 12, 2)):
        width = torch.randint(most + 1, (batch, 1)) * (torch.rand(batch, 1) < 0.6)
        start = (torch.rand(batch, 1) * (length - width)).long()
        at = torch.arange(length)
        hidden = (at >= start) & (at < start + width)
        features = features.masked_fill(hidden[:, :, None] if dimension == 1 else hidden[:, None], 0.0)
    return features


def train(corpus: Corpus, steps: int, batch_size: int) -> torch.nn.Module:
    """Return the trained network, its weights averaged over the last steps."""
    network = build_network(str(CONFIG["model"]), CONFIG["model_args"]).train()
    loss_of = AamSoftmax(128, corpus.speaker_count)
    optimizer = torch.optim.AdamW([*network.parameters(), *loss_of.parameters()], weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.98), use_buffers=True)
    of_speaker: dict[int, list[int]] = {}
    for number, speaker in enumerate(corpus.speakers):
        of_speaker.setdefault(speaker, []).append(number)
    started, losses = time.monotonic(), 0.0
    for step in range(steps):
        speakers = torch.randperm(corpus.speaker_count)[:batch_size]
        chosen = [of_speaker[int(one)][int(torch.randint(len(of_speaker[int(one)]), ()))] for one in speakers]
        speech = crops(corpus, chosen, FRAMES)
        features = masked(degraded(speech, speech.roll(1, 0)))
        loss = loss_of(run_network(network, features), speakers, LARGEST_MARGIN * min(1.0, 1.5 * step / steps))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(network)
        losses += loss.item() / 50
        if step % 50 == 49:
            print(f"step {step + 1} of {steps}: loss {losses:.3f}, {time.monotonic() - started:.0f} s", flush=True)
            losses = 0.0
    return average.module.eval()


def write_checkpoint(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write a checkpoint as WeSpeaker lays it out."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights, folder / "avg_model.pt")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False), encoding="utf-8")


def score_all_pairs(checkpoint: Path, speech: Path) -> tuple[np.ndarray, float]:
    """Return the scores of all pairs of utterances of a folder of speakers, and the EER."""
    pairs = load_model(checkpoint, device="cpu").extract_embeddings(str(speech))
    trials = all_pairs(numbered([id_.partition("/")[0] for id_, _ in pairs]))
    embeddings = np.stack([embedding for _, embedding in pairs])
    scores = score(embeddings - embeddings.mean(axis=0), trials)
    return scores, equal_error_rate(error_rates(count_scores(scores, trials.is_target)))


def main() -> None:
    """Train, write the weights in 16 bits with their config.yaml, and measure them on other speakers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path, help="a folder of SPEAKER-CHAPTER-UTTERANCE.flac")
    parser.add_argument("checkpoint", type=Path, help="the folder to write")
    parser.add_argument("--test", type=Path, help="a folder of other speakers, a folder each")
    parser.add_argument("--steps", type=int, default=1_400)
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    corpus = load_corpus(arguments.speech)
    print(f"{len(corpus.features)} utterances of {corpus.speaker_count} speakers, speeds counted apart")
    weights = train(corpus, arguments.steps, arguments.batch_size).state_dict()
    halves = {name: one.half() if one.is_floating_point() else one for name, one in weights.items()}
    write_checkpoint(arguments.checkpoint, halves)
    if arguments.test:
        with TemporaryDirectory() as folder:
            write_checkpoint(Path(folder), weights)
            exact, _ = score_all_pairs(Path(folder), arguments.test)
        scores, eer = score_all_pairs(arguments.checkpoint, arguments.test)
        moved = np.abs(scores - exact).max()
        print(f"EER of all {len(scores):,} pairs: {100 * eer:.2f}%; 16 bits moved a score by {moved:.1e} at most")


if __name__ == "__main__":
    main()
