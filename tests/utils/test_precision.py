"""Number formats: which one is meant, and where it reaches."""

from contextlib import nullcontext

import pytest
import torch

from utils.precision import (
    DTYPES,
    dtype_of,
    flushed_denormals,
    half_where_safe,
    tf32,
    trainable,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")


# ---- the name of a format


@pytest.mark.parametrize("device", [CPU, GPU])
def test_a_format_may_be_named(device):
    named = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    assert {name: dtype_of(name, device) for name in named} == named
    assert named == DTYPES


@pytest.mark.parametrize(("amx", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_bf16_on_cpus_that_multiply_matrices_in_it(monkeypatch, amx, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: not amx)
    assert dtype_of("auto", CPU) == expected


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_is_bf16_on_gpus_that_have_it_and_need_not_emulate_it(monkeypatch, native, expected):
    def is_bf16_supported(including_emulation=True):
        return native or including_emulation

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: not native)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert dtype_of("auto", GPU) == expected


# ---- contexts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_are_in_the_format_and_sums_as_they_were(dtype):
    ones = torch.ones(2, 2)
    with half_where_safe(CPU, dtype):
        assert torch.is_autocast_enabled("cpu") == (dtype != torch.float32)
        assert (ones @ ones).dtype == dtype and (ones + ones).dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def settings():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("products", ["highest", "high", "medium"])
@pytest.mark.parametrize("convolutions", [True, False])
@pytest.mark.parametrize(("allowed", "inside"), [(False, "highest"), (True, "high")])
def test_tf32_is_set_for_a_while(settings_of_torch, products, convolutions, allowed, inside):
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions
    with tf32(allowed):
        assert settings() == (inside, allowed)
    assert settings() == (products, convolutions)
    with pytest.raises(ZeroDivisionError), tf32(allowed):
        raise ZeroDivisionError
    assert settings() == (products, convolutions)


def smallest_product():
    """Of 4 * 10 ** -39, which is no normal number of float32."""
    return (torch.full((8,), 2e-19) * 2e-20).max().item()


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_numbers_that_are_not_normal_count_as_0_for_a_while(error):
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor does not flush them")
    assert 0 < smallest_product() < 1e-38
    with pytest.raises(error) if error else nullcontext(), flushed_denormals():
        assert smallest_product() == 0
        if error:
            raise error
    assert 0 < smallest_product() < 1e-38


@pytest.mark.parametrize(
    ("amp", "fast", "expected"),
    [("off", True, "off"), ("bf16", False, "bf16"), ("auto", True, "bf16"), ("auto", False, "off")],
)
@pytest.mark.parametrize("device", [CPU, GPU])
def test_training_takes_bf16_or_nothing(monkeypatch, amp, fast, expected, device):
    """Where a GPU has no bf16, auto is fp16, in which gradients vanish."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: fast)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: fast)
    assert trainable(amp, device) == expected
