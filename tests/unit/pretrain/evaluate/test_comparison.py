import pytest
import torch

from pretrain.evaluate.comparison import accuracies
from pretrain.evaluate.features import PIXEL_SIDE, Features, extract, pixels
from pretrain.evaluate.protocols import knn, probe
from tests.unit.pretrain.evaluate.conftest import Split

CPU = torch.device("cpu")


def features(handwriting: Split) -> tuple[Features, Features]:
    """The handwriting as ``trained``; with 60 faint columns of noise as ``pixels``; shuffled as ``untrained``."""
    generator = torch.Generator().manual_seed(0)

    def by_encoder(values: torch.Tensor) -> dict[str, torch.Tensor]:
        noise = 1e-3 * torch.randn(len(values), 60, generator=generator)
        order = torch.randperm(len(values), generator=generator)
        return {"trained": values, "pixels": torch.cat([values, noise], dim=1), "untrained": values[order]}

    bank = Features(by_encoder(handwriting.bank), handwriting.bank_labels)
    return bank, Features(by_encoder(handwriting.test), handwriting.test_labels)


def test_pixels_get_the_better_treatment_under_knn(handwriting: Split) -> None:
    """Standardisation would blow up the noise; the quoted accuracy is that of the plain pixels."""
    bank, test = features(handwriting)
    found = accuracies(knn(), bank, test, CPU)
    assert found["pixels_treatment"] == "plain"
    assert found["pixels"] > 0.95 and found["trained"] > 0.9 and found["untrained"] < 0.2
    standardised = accuracies(probe(l2=0.1), bank, test, CPU)
    assert standardised["pixels_treatment"] == "standardised"
    assert standardised["pixels"] < found["pixels"]


def test_without_baselines(handwriting: Split) -> None:
    bank, test = features(handwriting)
    del bank.values["pixels"], bank.values["untrained"]
    found = accuracies(knn(), bank, test, CPU)
    assert found.pop("trained") > 0.9
    assert found == {"untrained": None, "pixels": None, "pixels_treatment": None}


def test_extract_keeps_order_and_reads_once() -> None:
    images = torch.arange(5 * 4.0).view(5, 1, 2, 2)
    labels = torch.tensor([3, 1, 4, 1, 5])
    batches = iter([(images[:2], labels[:2]), (images[2:], labels[2:])])
    found = extract({"pixels": pixels, "mean": lambda some: some.mean(dim=(1, 2, 3))[:, None]}, batches, CPU)
    assert torch.equal(found.labels, labels)
    assert torch.equal(found.values["pixels"], images.flatten(1))
    assert torch.equal(found.values["mean"], images.mean(dim=(1, 2, 3))[:, None])


@pytest.mark.parametrize(("side", "width"), [(28, 28 * 28), (PIXEL_SIDE, PIXEL_SIDE**2), (224, PIXEL_SIDE**2)])
def test_pixels_of_large_images_are_averaged(side: int, width: int) -> None:
    values = pixels(torch.full((2, 3, side, side), 0.25))
    assert values.shape == (2, 3 * width)
    torch.testing.assert_close(values, torch.full_like(values, 0.25))
