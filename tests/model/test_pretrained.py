"""Where pretrained weights are looked for, and what is said where there are none."""

import logging
import socket
import time
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch

from model import build_model
from model.backbone import load_pretrained
from model.zse.settings import ZSESettings
from utils.errors import InputError

VIT = "vit_tiny_patch16_224"


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A folder without weights, an empty cache, and no network."""

    def refuse(*arguments, **options):
        raise OSError("no network in this test")

    for name in ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- a file


@pytest.mark.parametrize("folder", [".", "model"])
def test_a_file_is_looked_for_here_and_in_model(folder, nowhere):
    _save(nowhere / folder / "weights.pth", 3.0)
    state, source = load_pretrained(VIT, Path("weights.pth"))
    assert state["a"].item() == 3
    assert source == str(Path(folder) / "weights.pth")


def test_a_file_here_comes_before_one_in_model(nowhere):
    _save(nowhere / "weights.pth", 1.0)
    _save(nowhere / "model" / "weights.pth", 2.0)
    state, _ = load_pretrained(VIT, Path("weights.pth"))
    assert state["a"].item() == 1


def test_a_path_is_followed(nowhere):
    _save(nowhere / "elsewhere" / "weights.pth", 4.0)
    state, _ = load_pretrained(VIT, Path("elsewhere/weights.pth"))
    assert state["a"].item() == 4
    state, source = load_pretrained(VIT, nowhere / "elsewhere" / "weights.pth")
    assert state["a"].item() == 4
    assert source == str(nowhere / "elsewhere" / "weights.pth")


def test_a_missing_file_is_named_with_the_places(nowhere):
    with pytest.raises(InputError) as error:
        load_pretrained(VIT, Path("weights.pth"))
    assert "--pretrained_path weights.pth" in str(error.value)
    assert "weights.pth, model/weights.pth" in str(error.value)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>quota exceeded</html>", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_refused(name, content, nowhere):
    (nowhere / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}.*cannot be read"):
        load_pretrained(VIT, Path(name))


def test_the_published_file_is_found_by_itself(nowhere):
    _save(nowhere / "model" / "sam_ViT-B_16.pth", 5.0)
    state, source = load_pretrained("vit_base_patch16_224", None)
    assert state["a"].item() == 5
    assert source == "model/sam_ViT-B_16.pth"


@pytest.mark.parametrize("vit", [VIT, "vit_base_patch16_224.augreg_in21k"])
def test_the_published_file_does_not_stand_for_other_weights(vit, nowhere):
    _save(nowhere / "model" / "sam_ViT-B_16.pth", 5.0)
    with pytest.raises(InputError, match="could not be fetched"):
        load_pretrained(vit, None)


# ---- by name


@pytest.mark.parametrize("vit", [VIT, "vit_base_patch16_224"])
def test_offline_three_ways_out_are_named_at_once(vit, nowhere):
    started = time.monotonic()
    with pytest.raises(InputError) as error:
        load_pretrained(vit, None)
    assert time.monotonic() - started < 5
    message = str(error.value)
    assert "OSError: no network in this test" in message
    ways = [message.index(f"({number})") for number in (1, 2, 3)]
    assert ways == sorted(ways)
    for way in ("--pretrained_path", "HF_HOME", "--no-pretrained"):
        assert way in message


def test_weights_without_a_tag_are_the_published_ones(nowhere):
    with pytest.raises(InputError, match=r"vit_base_patch16_224\.sam_in1k could not"):
        load_pretrained("vit_base_patch16_224", None)


def test_a_vit_without_pretrained_weights_is_named(nowhere):
    with pytest.raises(InputError, match="vit_small_patch16_18x2_224 could not be fetched"):
        load_pretrained("vit_small_patch16_18x2_224", None)


def test_an_error_without_a_message_is_named_too(nowhere, monkeypatch):
    def time_out(*arguments, **options):
        raise TimeoutError

    monkeypatch.setattr(socket, "getaddrinfo", time_out)
    with pytest.raises(InputError, match=r"TimeoutError.*Three ways out"):
        load_pretrained(VIT, None)


def test_the_hubs_log_is_left_as_it_was(nowhere):
    hub_log = logging.getLogger("huggingface_hub")
    level = hub_log.level
    with pytest.raises(InputError):
        load_pretrained(VIT, None)
    assert hub_log.level == level != logging.CRITICAL


def test_weights_in_the_cache_need_no_network(nowhere, monkeypatch):
    """timm is stood in for; what is proven: a cached file keeps us from asking the network."""
    vit = timm.create_model("test_vit", num_classes=0)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *names: "cached")
    monkeypatch.setattr(timm, "create_model", lambda *names, **settings: vit)
    state, source = load_pretrained(VIT, None)
    assert source == f"timm, {VIT}"
    assert torch.equal(state["pos_embed"], vit.state_dict()["pos_embed"])


def test_a_refused_start_names_the_file(nowhere):
    _save(nowhere / "weights.pth", 1.0)
    method = build_model(ZSESettings(vit="test_vit"))
    with pytest.raises(InputError, match=r"^weights\.pth: does not fit .*unexpected: vit\.a"):
        method.load_pretrained(Path("weights.pth"))


def _save(path: Path, value: float) -> None:
    path.parent.mkdir(exist_ok=True)
    torch.save({"a": torch.tensor(value)}, path)
