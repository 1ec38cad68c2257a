"""Long audio in parts: the embedding of the whole, in less memory, for the networks that can be cut and only those."""

from pathlib import Path

import pytest
import torch
from conftest import XVECTOR, speechlike
from untrained_checkpoint import seeded_network

from balr.config import DataConfig
from balr.data.dataset import AudioDataset
from balr.embeddings.exact.chunking import make_chunked
from balr.embeddings.exact.verdicts import Verdicts
from balr.embeddings.wespeaker import WespeakerModel
from balr.errors import UtteranceError

SLOW = ("Gemini_DF_ResNet60", "Res2Net34_Base", "ERes2Net34_Base", "REPVGG_TINY_A0")
CUTTABLE = ("ResNet18", "XVEC", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW))
WHOLE = ("CAMPPlus", "ECAPA_TDNN_GLOB_c512", "SimAM_ResNet34_ASP")


def network(architecture: str) -> torch.nn.Module:
    args = {"feat_dim": 80, "embed_dim": 16, "pooling_func": "ASTP" if architecture.startswith("ECAPA") else "TSTP"}
    return seeded_network(architecture, {"embed_dim": 16} if "SimAM" in architecture else args, {}, 5).eval()


MANY = ((701, (333, 5_000)), (1_600, (64, 1_000)))
LENGTHS = ((405, (200, 5_000)), *(pytest.param(*one, marks=pytest.mark.slow) for one in MANY))


@pytest.mark.parametrize("architecture", CUTTABLE)
@pytest.mark.parametrize(("frames", "chunks"), LENGTHS)
def test_a_convolutional_trunk_in_chunks_gives_the_embedding_of_the_whole(
    architecture: str, frames: int, chunks: tuple[int, ...]
) -> None:
    made = network(architecture)
    features = torch.randn(1, frames, 80, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        output = made(features)
        whole = output[-1] if isinstance(output, tuple) else output
        trunk = make_chunked(made, 80, verdicts=Verdicts())
        assert trunk is not None
        for chunk_frames in chunks:
            parts = trunk.embed(features, chunk_frames=chunk_frames)
            assert (parts - whole).abs().max() < 1e-5 * whole.abs().max(), chunk_frames


@pytest.mark.parametrize(
    ("pooling", "moments"), [("TSTP", True), ("TAP", True), ("TSDP", True), ("ASTP", False), ("MQMHASTP", False)]
)
def test_a_pooling_of_mean_and_variance_alone_is_given_those(pooling: str, moments: bool) -> None:
    made = seeded_network("XVEC", {**XVECTOR, "pooling_func": pooling}, {}, 5).eval()
    features = 3.0 + torch.randn(1, 601, 80, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        trunk = make_chunked(made, 80, verdicts=Verdicts())
        assert trunk is not None and trunk.takes_moments == moments
        whole = made(features)[-1]
        assert (trunk.embed(features, chunk_frames=200) - whole).abs().max() < 1e-5 * whole.abs().max()


@pytest.mark.parametrize("architecture", WHOLE)
def test_a_trunk_that_looks_at_the_whole_utterance_is_not_cut(architecture: str) -> None:
    with torch.inference_mode():
        assert make_chunked(network(architecture), 80, verdicts=Verdicts()) is None


def test_a_trunk_is_not_left_changed() -> None:
    made = network("XVEC")
    features = torch.randn(1, 100, 80)
    with torch.inference_mode():
        before = made(features)[-1]
        make_chunked(made, 80, verdicts=Verdicts())
        assert torch.equal(made(features)[-1], before)


@pytest.mark.parametrize("checkpoint", ["tiny_checkpoint", "tiny_campplus"])  # one that is cut, and one that is not
def test_the_model_embeds_long_audio_as_without_chunks(checkpoint: str, request: pytest.FixtureRequest) -> None:
    model = WespeakerModel("", "avg_model.pt", model_dir=request.getfixturevalue(checkpoint))
    waveform = torch.from_numpy(speechlike(11.0))
    whole, parts = model.embed([waveform]), model.embed([waveform], chunk_seconds=2.0)
    assert (whole - parts).abs().max() < 1e-5 * whole.abs().max()


def test_audio_too_long_for_a_network_that_sees_it_whole_is_refused_with_what_to_do(
    tiny_checkpoint: Path, tiny_campplus: Path, corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder, number in ((tiny_campplus, 3), (tiny_checkpoint, 6)):  # the corpus goes from 1 to 2 seconds
        model = WespeakerModel("", "avg_model.pt", model_dir=folder)
        limits = DataConfig(num_workers=0, chunk_seconds=1.0, max_whole_seconds=1.5)
        assert len(model.extract_embeddings(AudioDataset.from_dir(corpus), False, limits)) == number
    assert (
        "too long: 2.0 s, and CAMPPlus has to see an utterance whole, up to data.max_whole_seconds=1.5" in caplog.text
    )
    model = WespeakerModel("", "avg_model.pt", model_dir=tiny_campplus)
    with pytest.raises(UtteranceError, match=r"data.max_whole_seconds=1.5 here; cut the file, or raise that"):
        model.embed_waveform(speechlike(2.0), 16_000, data_config=limits)
    assert model.embed_waveform(speechlike(2.0), 16_000, data_config=DataConfig(max_whole_seconds=2.0)).any()
