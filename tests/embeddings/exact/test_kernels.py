"""fp32 means fp32, whatever a user allows torch elsewhere in the process."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import speechlike

from balr import load_model
from balr.embeddings.exact.kernels import exact_kernels

BACKENDS = torch.backends
LAYERS = (
    BACKENDS.cuda.matmul,
    BACKENDS.cudnn.conv,
    BACKENDS.cudnn.rnn,
    BACKENDS.mkldnn.matmul,
    BACKENDS.mkldnn.conv,
)
ALLOWED: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "tf32 everywhere": lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
    "tf32 in matrix products": lambda: setattr(BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
    "bf16 in oneDNN": lambda: setattr(BACKENDS.mkldnn, "fp32_precision", "bf16"),
    "other kernels by trial": lambda: setattr(BACKENDS.cudnn, "benchmark", True),
}


def state() -> list[object]:
    found: list[object] = [BACKENDS.cudnn.benchmark, BACKENDS.fp32_precision]
    found += [layer.fp32_precision for layer in LAYERS]
    for legacy in (torch.get_float32_matmul_precision, lambda: BACKENDS.cudnn.allow_tf32):
        with suppress(RuntimeError):  # contradicts what was set
            found.append(legacy())
    return found


@pytest.fixture(params=ALLOWED)
def allowed(request: pytest.FixtureRequest) -> Iterator[None]:
    before = [(owner, owner.fp32_precision) for owner in (BACKENDS, BACKENDS.mkldnn, *LAYERS)]
    ALLOWED[request.param]()
    yield
    BACKENDS.cudnn.benchmark = False
    torch.set_float32_matmul_precision("highest")
    for owner, value in before:
        owner.fp32_precision = value


@pytest.mark.usefixtures("allowed")
def test_what_a_user_allows_is_off_within_and_back_afterwards() -> None:
    before = state()
    with exact_kernels():
        with exact_kernels():
            pass
        assert [layer.fp32_precision for layer in LAYERS] == ["ieee"] * 5
        assert torch.get_float32_matmul_precision() == "highest"
        assert not BACKENDS.cudnn.benchmark and not BACKENDS.cudnn.allow_tf32
    assert state() == before


def test_the_last_of_several_threads_gives_the_settings_back() -> None:
    before, first, second = state(), exact_kernels(), exact_kernels()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert state() != before
    second.__exit__(None, None, None)
    assert state() == before


@pytest.fixture(scope="module")
def expected(tiny_checkpoint: Path) -> np.ndarray:
    return load_model(tiny_checkpoint).embed_waveform(speechlike(1.0), 16_000)


@pytest.mark.usefixtures("allowed")
def test_embeddings_are_the_same_whatever_a_user_allows(tiny_checkpoint: Path, expected: np.ndarray) -> None:
    assert np.array_equal(load_model(tiny_checkpoint).embed_waveform(speechlike(1.0), 16_000), expected)


def test_autocast_reaches_neither_loading_nor_embedding(tiny_checkpoint: Path, expected: np.ndarray) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding = load_model(tiny_checkpoint).embed_waveform(speechlike(1.0), 16_000)
        assert torch.is_autocast_enabled("cpu")
    assert np.array_equal(embedding, expected)
