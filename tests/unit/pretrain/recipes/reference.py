"""What the released recipes have in common (data2vec2-facts.md, sections 1 to 3), by dotted field."""

from typing import Any

from tests.unit.pretrain.recipes.fields import under

ENCODER: dict[str, Any] = {
    "mlp_ratio": 4.0,
    "init_std": 0.02,
    "activation_dropout": 0.0,
    "input_dropout": 0.0,
}
DROPOUTS = {"dropout": 0.1, "attention_dropout": 0.1, "post_mlp_dropout": 0.1}
SIDE: dict[str, Any] = {
    "loss.weight": 1.0,
    "loss.regression_weight": 1.0,
    "loss.reconstruction_weight": 0.0,
    "mask.add_spans": False,
    "decoder.add_positions": "none",
    "decoder.noise_std": 0.01,
    "target.end_of_block": False,
    "target.batch_norm_layer": False,
}
NO_CLS = {"loss.cls_weight": 0.0, "loss.cls_rows": 256, "num_extra_tokens": 0, "extra_tokens_zero_init": True}
RUN: dict[str, Any] = {
    "data.path": "",
    "data.prefetch_batches": 2,
    "data.max_bad_samples": 0,
    "precision.dtype": "bf16",
    "training.microbatch_size": None,
    "training.seed": 1,
    "checkpoint.keep": 3,
    "health.every_steps": 100,
    "health.after_steps": 5_000,
    "health.min_target_spread": 0.1,
    "health.min_prediction_spread": 0.01,
    "health.min_student_spread": 0.01,
    "health.min_effective_rank": 1.5,
}
SPEECH_AND_TEXT: dict[str, Any] = {
    **under("model.encoder", ENCODER | DROPOUTS | {"norm_eps": 1e-5}),
    **RUN,
    "optim.betas": (0.9, 0.98),
    "optim.eps": 1e-6,
    "optim.weight_decay": 0.01,
    "health.on_collapse": "stop",
}
