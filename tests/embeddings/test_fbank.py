"""The filter bank is torchaudio's Kaldi one, bit for bit, whatever the settings and the length."""

import pytest
import torch
from conftest import speechlike
from torchaudio.compliance import kaldi

from balr.config import FeaturesConfig
from balr.embeddings.fbank import FbankSettings, fbank, fbank_settings, fbanks
from balr.errors import UtteranceError


def theirs(waveform: torch.Tensor, settings: FbankSettings) -> torch.Tensor:
    return kaldi.fbank(
        (waveform * (1 << 15) if settings.int16_scale else waveform).unsqueeze(0),
        num_mel_bins=settings.num_mel_bins,
        frame_length=settings.frame_length_ms,
        frame_shift=settings.frame_shift_ms,
        sample_frequency=settings.sample_rate_hz,
        window_type=settings.window_type,
        dither=0.0,
        use_energy=False,
    )


@pytest.mark.parametrize("samples", [400, 559, 560, 16_000, 82_000, 82_320, 200_000])
@pytest.mark.parametrize(
    "settings",
    [
        FbankSettings(),
        FbankSettings(num_mel_bins=72, window_type="povey", int16_scale=False),
        FbankSettings(window_type="hanning", frame_length_ms=20, frame_shift_ms=5),
        FbankSettings(window_type="rectangular", sample_rate_hz=8_000, num_mel_bins=40),
        FbankSettings(window_type="blackman", frame_length_ms=32),
    ],
    ids=lambda settings: settings.window_type,
)
def test_features_equal_torchaudio_s(settings: FbankSettings, samples: int) -> None:
    waveform = torch.from_numpy(speechlike(13.0)[:samples])
    if samples < settings.shortest_samples:
        with pytest.raises(UtteranceError, match="too short"):
            fbank(waveform, settings)
        return
    raw = fbank(waveform, FbankSettings(**{**vars(settings), "mean_norm": False}))
    expected = theirs(waveform, settings)
    # The same bits on one machine; a matrix product may round otherwise for another number of rows.
    torch.testing.assert_close(raw, expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(fbank(waveform, settings), expected - expected.mean(dim=0), rtol=0, atol=2e-5)


@pytest.mark.parametrize("mean_norm", [True, False])
def test_features_of_all_frames_at_once_are_those_of_each_waveform(mean_norm: bool) -> None:
    settings = FbankSettings(mean_norm=mean_norm)
    waveforms = [torch.from_numpy(speechlike(seconds, seed=4)) for seconds in (0.4, 7.3, 0.025, 7.3)]
    one_by_one, at_once = (fbanks(waveforms, settings, at_once=way) for way in (False, True))
    for ours, expected in zip(at_once, one_by_one, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-5)


def test_digital_silence_sits_on_the_log_floor_and_gives_no_more_than_rounding() -> None:
    silence = torch.zeros(16_000)
    assert fbank(silence, FbankSettings()).abs().max() < 1e-5
    raw = fbank(silence, FbankSettings(mean_norm=False))
    torch.testing.assert_close(raw, theirs(silence, FbankSettings()), rtol=0, atol=0)


def test_a_view_of_a_longer_waveform_gives_the_same_features() -> None:
    waveform = torch.from_numpy(speechlike(4.0))
    strided = torch.stack([waveform, waveform], dim=1)[:, 0]
    assert torch.equal(fbank(strided, FbankSettings()), fbank(waveform, FbankSettings()))


def test_settings_come_from_the_checkpoint_and_the_user_s_win() -> None:
    trained = {"resample_rate": 8_000, "fbank_args": {"num_mel_bins": 64, "frame_shift": 12}, "cmvn": False}
    assert fbank_settings(trained, FeaturesConfig()) == FbankSettings(
        sample_rate_hz=8_000, num_mel_bins=64, frame_shift_ms=12, mean_norm=False
    )
    overridden = fbank_settings(trained, FeaturesConfig(mean_norm=True, num_mel_bins=80))
    assert overridden.mean_norm and overridden.num_mel_bins == 80 and overridden.sample_rate_hz == 8_000
