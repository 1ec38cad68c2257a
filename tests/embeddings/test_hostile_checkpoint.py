"""Checkpoints made to harm: whatever their two files hold takes no more than they are, and ends in one line."""

import io
import pickle
import resource
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY

from balr.config import FeaturesConfig
from balr.embeddings.architectures import build_tfmel
from balr.embeddings.frontend import build_with_frontend
from balr.embeddings.weights import CheckpointConfig, load_weights, read_config
from balr.embeddings.wespeaker import WespeakerModel
from balr.errors import CheckpointError

LARGE = 1 << 28
NOT_A_NUMBER, ENDLESS = float("nan"), float("inf")
LEGACY = b"".join(pickle.dumps(part, 2) for part in (torch.serialization.MAGIC_NUMBER, 1001, {}))


def grows(megabytes: int, do: Callable[[], object]) -> bool:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    do()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > megabytes << 10


def refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        load_weights(torch.nn.Linear(1, 1), path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def made_of(size: int, *, called: bytes) -> bytes:
    """Pickle a state dict whose one value is what is called with a number."""
    return b"\x80\x02}X\x01\x00\x00\x00wc" + called + b"\n\x8a\x08" + struct.pack("<q", size) + b"\x85Rs."


def members(storage: bytes) -> dict[str, bytes]:
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(len(storage) // 4)}, file)
    with zipfile.ZipFile(file) as archive:
        (pickled,) = (archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    return {"data.pkl": pickled, "byteorder": b"little", "data/0": storage, "version": b"3\n"}


def test_an_archive_that_unpacks_to_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.pt"
    bomb.write_bytes(zipped(members(bytes(LARGE))))
    assert not grows(100, lambda: refused(bomb, r"bytes that unpack to 268,\d{3},\d{3}; torch.save does not compress"))


def test_an_archive_that_shows_two_readers_different_members_is_refused(tmp_path: Path) -> None:
    bomb, plain = zipped(members(bytes(LARGE))), zipped(dict.fromkeys(members(b""), b"x"), zipfile.ZIP_STORED)
    (size, start), (other_size, other_start) = (struct.unpack("<II", one[-10:-2]) for one in (bomb, plain))
    assert size == other_size
    two = tmp_path / "two.pt"
    two.write_bytes(bomb[: start + size] + plain[other_start : other_start + size] + bomb[-22:])
    with zipfile.ZipFile(two) as archive:
        assert sum(member.file_size for member in archive.infolist()) < 10
    assert not grows(100, lambda: refused(two, "not a PyTorch checkpoint, or damaged"))


@pytest.mark.parametrize("called", [b"builtins\nbytearray", b"_codecs\nencode"])
@pytest.mark.parametrize("legacy", [False, True])
def test_what_makes_much_of_little_is_refused(tmp_path: Path, called: bytes, legacy: bool) -> None:
    path, pickled = tmp_path / "grows.pt", made_of(LARGE, called=called)
    path.write_bytes(LEGACY + pickled if legacy else zipped({**members(b""), "data.pkl": pickled}))
    assert not grows(100, lambda: refused(path, "holds more than tensors"))


def test_a_view_that_repeats_one_number_takes_the_memory_of_one(tmp_path: Path) -> None:
    torch.save(
        {"projection.weight": torch.zeros(1).expand(LARGE), "weight": torch.zeros(1).expand(LARGE)}, tmp_path / "w"
    )
    assert not grows(100, lambda: refused(tmp_path / "w", "1 missing .*1 of another shape"))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({1: torch.zeros(1)}, "names with tensors are expected"),
        ({"weight": torch.zeros(1, 1, device="meta"), "bias": torch.zeros(1)}, "not the weights of this architecture"),
    ],
)
def test_tensors_that_fill_nothing_are_refused(tmp_path: Path, weights: dict[Any, torch.Tensor], message: str) -> None:
    torch.save(weights, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", message)


def test_any_bytes_are_no_checkpoint_and_say_so(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    good = zipped(members(bytes(4)), zipfile.ZIP_STORED)
    for content in (
        b"",
        b"x",
        b"PK\3\4",
        good[:-30],
        good.replace(b"data.pkl", b"data.pxl"),
        LEGACY,
        b"\x80\x02K\x01.",
    ):
        path.write_bytes(content)
        refused(path, "(refused|not a PyTorch checkpoint, or damaged): .")


def test_weights_of_the_format_before_archives_load(tmp_path: Path) -> None:
    network = torch.nn.Linear(3, 2)
    torch.save(network.state_dict(), tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    other = torch.nn.Linear(3, 2)
    load_weights(other, tmp_path / "w.pt")
    assert torch.equal(other.weight, network.weight) and torch.equal(other.bias, network.bias)


ALIASES = "".join(f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"model: CAMPPlus\nmodel_args:\n  a0: &a0 [x]\n{ALIASES}", "holds an alias, .a0: write out what it repeats"),
        ("model: CAMPPlus\nmodel_args: " + "[" * 3000 + "]" * 3000, "nested over 50 deep"),
        ("{a: " * 3000, "nested over 50 deep"),
        ("- " * 3000, "nested over 50 deep"),
        ("model: CAMPPlus\n" + "#" * (1 << 20), "over 1,048,576 bytes"),
        ("model: CAMPPlus\nmodel_args: {a: " + "59:" * 300_000 + "1}", "a value of over 1,000 characters"),
        ("model: 9999-99-99", "month must be in 1..12"),
        ("model: !!int ''", "not plain yaml"),
        ("model: !!timestamp x", "not plain yaml"),
        ("\x80", "not plain yaml"),
    ],
)
def test_yaml_that_is_more_than_it_says_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=message) as error:
        read_config(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500


def test_an_anchor_that_nothing_repeats_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: CAMPPlus\nmodel_args: &args {embed_dim: 2}\n")
    assert read_config(tmp_path / "config.yaml").model_args == {"embed_dim": 2}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        *(
            (
                {"dataset_args": {"fbank_args": {"frame_shift": value}}},
                f"fbank_args.frame_shift={value}: must be a number",
            )
            for value in (0.01, 0, -10, NOT_A_NUMBER, True, None)
        ),
        (
            {"dataset_args": {"fbank_args": {"frame_length": ENDLESS}}},
            "frame_length=inf: must be a number from 1 to 1,000",
        ),
        (
            {"dataset_args": {"fbank_args": {"num_mel_bins": "80"}}},
            "num_mel_bins='80': must be a whole number from 4 to",
        ),
        ({"dataset_args": {"resample_rate": [1] * 999}}, r"dataset_args.resample_rate=\[1, 1"),
        ({"dataset_args": {"fbank_args": [1, 2]}}, "dataset_args.fbank_args must be a mapping"),
        ({"dataset_args": {"cmvn_args": 3}}, "dataset_args.cmvn_args must be a mapping"),
        ({"model_args": {**TINY, "pooling_func": ["TSTP"]}}, "CAMPPlus does not take model_args"),
        ({"model_args": {**TINY, "growth_rate": {"a": 1}}}, "CAMPPlus does not take model_args"),
        ({"model_args": {**TINY, "bn_size": 10**30}}, "CAMPPlus does not take model_args"),
        ({"model_args": {**TINY, "embed_dim": 0}}, "CAMPPlus does not take model_args"),
        ({"model_args": {1: 2}}, "keywords must be strings"),
        ({"model_args": {f"a{number}": 1 for number in range(9999)}}, "does not take model_args"),
    ],
)
def test_a_setting_that_cannot_be_is_named_with_what_can_be(
    tiny_campplus: Path, tmp_path: Path, config: dict[str, object], message: str
) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(tiny_campplus, folder)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **config}))
    with pytest.raises(CheckpointError, match=message) as error:
        WespeakerModel("", "avg_model.pt", model_dir=folder)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 700


@pytest.mark.parametrize(
    ("tfmel_args", "message"),
    [
        ({"hop_length": 0}, "tfmel_args.hop_length=0: must be a whole number from 1 to 4,096"),
        ({"n_fft": 10**6}, "tfmel_args.n_fft=1000000: must be a whole number"),
        ({"n_mels": "72"}, "tfmel_args.n_mels='72': must be a whole number from 4 to 512"),
        ({"f_min": [20]}, "does not take tfmel_args"),
    ],
)
def test_a_front_end_that_cannot_be_is_refused(tfmel_args: dict[str, object], message: str) -> None:
    config = CheckpointConfig("ReDimNet2B0", {}, {"frontend": "tfmel", "tfmel_args": tfmel_args})
    with pytest.raises(CheckpointError, match=message):
        build_with_frontend(config, FeaturesConfig())
    assert build_tfmel({"n_mels": 72})
