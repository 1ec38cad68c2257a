"""Masked functions of torch give what each utterance alone would get, and leave other dimensions to themselves."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from balr.embeddings.exact.masking import LengthsError, Mask, MaskedReductions, simam

COUNTS = (250, 37, 100)
FRAMES = 260
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda x: x.mean(dim=-1),
    "mean over bins too": lambda x: torch.mean(x, dim=[2, 3], keepdim=True),
    "sum": lambda x: torch.sum(x, dim=3, keepdim=True),
    "variance": lambda x: torch.var(x, dim=-1),
    "variance over bins too": lambda x: x.var(dim=(2, 3), keepdim=True),
    "softmax": lambda x: torch.softmax(x, dim=3),
    "softmax of a layer": torch.nn.Softmax(dim=-1),
    "windows": lambda x: functional.avg_pool1d(x[:, 0], kernel_size=100, stride=100, ceil_mode=True),
    "pooling to one": lambda x: functional.adaptive_avg_pool2d(x, 1),
    "group norm": torch.nn.GroupNorm(2, 4),
    "attention": lambda x: functional.scaled_dot_product_attention(x.mT, x.mT, x.mT).mT,
    "SimAM": simam,
}


def masked(run: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    counts = torch.tensor(COUNTS)
    with MaskedReductions(Mask(torch.arange(inputs.shape[-1]) >= counts[:, None], counts.float())):
        return run(inputs)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("filling", [7.0, float("nan")])
@torch.inference_mode()
def test_padding_never_counts(name: str, filling: float) -> None:
    run = FUNCTIONS[name]
    inputs = torch.randn(len(COUNTS), 4, 6, FRAMES, generator=torch.Generator().manual_seed(0))
    if name == "attention" and filling != filling:
        filling = 1e4  # torch multiplies the values of padding by a weight of zero
    for row, count in enumerate(COUNTS):
        inputs[row, ..., count:] = filling
    together = masked(run, inputs)
    for row, count in enumerate(COUNTS):
        alone = run(inputs[row : row + 1, ..., :count])
        assert torch.allclose(together[row : row + 1, ..., : alone.shape[-1]], alone, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["mean", "variance", "group norm"])
@torch.inference_mode()
def test_16_bits_neither_overflow_nor_lose_more_than_they_must(name: str, dtype: torch.dtype) -> None:
    run = FUNCTIONS[name] if name != "group norm" else lambda x: functional.group_norm(x, 2)
    noise = torch.randn(len(COUNTS), 4, 6, FRAMES, generator=torch.Generator().manual_seed(0))
    loud = (noise * 150 + 300).to(dtype)  # whose squares and sums are over what fp16 holds
    together, exact = masked(run, loud), masked(run, loud.float())
    for row, count in enumerate(COUNTS):
        ours, ideal = (
            result[row, ..., :count] if name == "group norm" else result[row] for result in (together, exact)
        )
        assert (ours.float() - ideal).abs().max() < 2 * torch.finfo(dtype).eps * ideal.abs().max()


@torch.inference_mode()
def test_a_last_frame_that_a_layer_appends_counts_for_every_utterance() -> None:
    inputs, prior = torch.randn(3, 4, FRAMES), torch.randn(3, 4, 1)
    together = masked(lambda x: torch.cat((x, prior), 2).softmax(dim=2)[..., -1], inputs)
    for row, count in enumerate(COUNTS):
        alone = torch.cat((inputs[row, :, :count], prior[row]), 1).softmax(dim=1)[..., -1]
        assert torch.allclose(together[row], alone, atol=1e-6)


@pytest.mark.parametrize("run", [lambda x: x.var(-1, False), lambda x: torch.var(x, dim=-1, correction=0)])
@torch.inference_mode()
def test_what_the_masks_do_not_cover_is_refused(run: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(LengthsError, match="not masked with these arguments"):
        masked(run, torch.randn(3, 4, FRAMES))


@torch.inference_mode()
def test_other_dimensions_are_reduced_as_ever() -> None:
    inputs = torch.randn(3, 4, 6, FRAMES)
    for run in (lambda x: x.mean(dim=1), lambda x: x.sum(dim=[1, 2]), lambda x: x.softmax(dim=1)):
        assert torch.equal(masked(run, inputs), run(inputs))
    shorter = inputs[..., :9]
    assert torch.equal(masked(lambda x: x[..., :9].mean(dim=-1), inputs), shorter.mean(dim=-1))


@torch.inference_mode()
def test_frames_of_no_known_utterance_are_refused() -> None:
    with pytest.raises(LengthsError, match="are not those of a batch"):
        masked(lambda x: x.flatten(0, 1).softmax(dim=-1), torch.randn(3, 4, 6, FRAMES))
