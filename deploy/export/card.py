"""The model card of an export: what the encoder is, how to load it, how it was trained."""

from pathlib import Path

import jinja2

from deploy.export.encoder import only
from deploy.export.heads import Head
from deploy.export.trained import Facts
from model.accounting import num_parameters
from pretrain.config import to_yaml


def write_card(folder: Path, facts: Facts, head: Head | None, dtype: str, parity: str) -> None:
    """Write README.md.

    Args:
        folder: of the export.
        facts: of the checkpoint.
        head: what stands on the encoder.
        dtype: of the stored weights.
        parity: how far the export is from our model, in words.
    """
    config, modality = facts.config, facts.modality
    environment = jinja2.Environment(loader=jinja2.PackageLoader("deploy"), undefined=jinja2.StrictUndefined)
    card = environment.get_template("model_card.md").render(
        config=config,
        config_yaml=to_yaml(config),
        modality=modality,
        side=config.model.modalities[modality],
        data=config.data.sources[modality],
        path=config.data.sources[modality].path or config.data.path or "not named",
        head=head,
        step=facts.step,
        units=facts.step * config.units_per_step(modality),
        source=facts.source,
        dtype=dtype,
        parity=parity,
        imported=facts.imported,
        num_parameters=num_parameters(only(config.model, modality), with_decoders=False),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
