"""The event that starts a log names the kernels that really run."""

import pytest
import torch

from model import attention
from model.attention import attend, attention_kernel
from pretrain.config import with_overrides
from pretrain.description import kernels
from pretrain.recipes.registry import recipe

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SDPA = "scaled_dot_product_attention"


@pytest.mark.parametrize(
    ("name", "dtype", "device", "expected"),
    [
        ("image-tiny", "fp32", CPU, f"{SDPA} (image)"),
        ("image-tiny", "bf16", CPU, "matmul (image)"),
        ("image-tiny", "bf16", CUDA, f"{SDPA} (image)"),
        ("audio-tiny", "bf16", CUDA, "matmul (audio)"),
        ("multimodal-tiny", "bf16", CUDA, f"{SDPA} (image, text), matmul (audio)"),
        ("multimodal-tiny", "fp32", CUDA, f"{SDPA} (image, audio, text)"),
    ],
)
def test_kernels_by_device_and_precision(name: str, dtype: str, device: torch.device, expected: str) -> None:
    config = with_overrides(recipe(name), [f"--precision.dtype={dtype}"])
    assert (
        kernels(config, device) == f"attention of student and teacher by {expected}; fused AdamW; blocks not compiled"
    )


def test_what_is_asked_for_is_named() -> None:
    config = with_overrides(recipe("image-tiny"), ["--parallel.offload=optimizer", "--parallel.compile=blocks"])
    assert kernels(config, CUDA).endswith("fused AdamW on cpu; blocks compiled")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
def test_the_named_kernel_is_the_one_that_runs(
    dtype: torch.dtype, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    for label, owner, function in (
        ("matmul", attention, "_attend_by_matmul"),
        (SDPA, attention.functional, "scaled_dot_product_attention"),
    ):
        original = getattr(owner, function)
        monkeypatch.setattr(owner, function, lambda *a, _o=original, _l=label, **k: (called.append(_l), _o(*a, **k))[1])
    query, key, value = torch.randn(3, 2, 4, 5, 8).to(dtype).unbind(0)
    attend(query, key, value, torch.randn(2, 4, 5, 5) if biased else None)
    assert called == [attention_kernel("cpu", dtype, biased=biased)]
