"""The model card of an export: what the encoder is, how to load it, how it was trained."""

from pathlib import Path

import jinja2

from deploy.export.encoder import only
from deploy.export.heads import Head
from model.accounting import num_parameters
from pretrain.config import RunConfig, to_yaml


def write_card(
    folder: Path,
    config: RunConfig,
    modality: str,
    head: Head | None,
    step: int,
    source: str,
    dtype: str,
    parity: str,
    imported: str | None,
) -> None:
    """Write README.md.

    Args:
        folder: of the export.
        config: the run's.
        modality: what the encoder reads.
        head: what stands on it.
        step: of the checkpoint.
        source: student or teacher.
        dtype: of the stored weights.
        parity: how far the export is from our model, in words.
        imported: name of the file that the weights come from, if they were trained elsewhere.
    """
    environment = jinja2.Environment(loader=jinja2.PackageLoader("deploy"), undefined=jinja2.StrictUndefined)
    card = environment.get_template("model_card.md").render(
        config=config,
        config_yaml=to_yaml(config),
        modality=modality,
        side=config.model.modalities[modality],
        data=config.data.sources[modality],
        path=config.data.sources[modality].path or config.data.path or "not named",
        head=head,
        step=step,
        units=step * config.units_per_step(modality),
        source=source,
        dtype=dtype,
        parity=parity,
        imported=imported,
        num_parameters=num_parameters(only(config.model, modality), with_decoders=False),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
