"""Worker of test_teacher_modalities: steps of image, audio and text microbatches without loaders.

Sizes are odd on purpose (3 heads), so that parts of parameters are padded; blocks are left out at random; each
modality has another teacher scope.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_pipelines.batches.base import Batch
from data_pipelines.config import AudioSourceConfig, DataConfig, ImageSourceConfig, TextSourceConfig
from model.config import AudioConfig, ImageConfig, ModelConfig, TextConfig
from model.losses import term_counts
from model.sections import AlibiConfig, DecoderConfig, EncoderConfig, MaskConfig, TargetConfig
from pretrain.build import build_networks
from pretrain.checkpoint.state import TrainState, save
from pretrain.config import RunConfig
from pretrain.environment import read_environment
from pretrain.masking import masking_of
from pretrain.parallel.deepspeed_config import deepspeed_config
from pretrain.parallel.grid import make_grid
from pretrain.parallel.groups import ProcessGroups, make_groups
from pretrain.parallel.zero import join_processes, leave_processes
from pretrain.sections import OptimSection, ParallelSection, PrecisionSection
from pretrain.task import Data2VecTask

STEPS, GLOBAL_BATCH, MICROBATCH = 5, 4, 2
LENGTHS = {"image": 28, "audio": 2400, "text": 16}
SMALL_PIECES = {"stage3_param_persistence_threshold": 50, "stage3_max_reuse_distance": 0, "sub_group_size": 3_000}


def model() -> ModelConfig:
    decoder, target = DecoderConfig(dim=12, groups=2, kernel=3, num_layers=2), TargetConfig(top_k=2)
    conv_layers = ((8, 10, 5), (8, 3, 2), (8, 3, 2), (8, 3, 2), (8, 2, 2))
    return ModelConfig(
        encoder=EncoderConfig(depth=3, dim=36, num_heads=3, init_std=0.06, layer_dropout=0.3),
        image=ImageConfig(
            num_views=2,
            image_size=28,
            patch_size=4,
            in_channels=1,
            num_extra_tokens=1,
            prenet_depth=1,
            mask=MaskConfig(prob=0.7, adjust=0.07, length=3, inverse=True),
            decoder=decoder,
            target=target,
        ),
        audio=AudioConfig(
            num_views=2,
            conv_layers=conv_layers,
            positions_width=9,
            positions_groups=4,
            positions_depth=2,
            prenet_depth=1,
            alibi=AlibiConfig(),
            teacher_scope="context",
            mask=MaskConfig(kind="block", prob=0.5, adjust=0.05, length=5),
            decoder=decoder,
            target=target,
        ),
        text=TextConfig(
            num_views=2,
            vocab_size=51,
            max_positions=16,
            prenet_depth=1,
            teacher_scope="encoder",
            mask=MaskConfig(kind="random", prob=0.5, length=1),
            decoder=decoder,
            target=target,
        ),
    )


def run_config(stage: int, dtype: str, options: list[str]) -> RunConfig:
    return RunConfig(
        name="modalities",
        model=model(),
        data=DataConfig(
            image=ImageSourceConfig(size=28, channels=1, mean=(0.5,), std=(0.5,)),
            audio=AudioSourceConfig(min_seconds=1.0, max_seconds=2.0),
            text=TextSourceConfig(tokens_per_sample=16),
        ),
        optim=OptimSection(clip_norm=1.0),
        precision=PrecisionSection(dtype=dtype),  # type: ignore[arg-type]
        parallel=ParallelSection(
            zero_stage=stage,  # type: ignore[arg-type]
            teacher=next((mode for mode in ("gathered", "resident") if mode in options), "auto"),  # type: ignore[arg-type]
            offload="optimizer" if "offload" in options else "none",
        ),
    )


def make_batch(config: ModelConfig, modality: str, position: int, samples: range) -> Batch:
    """The same content for a sample in any microbatch; every other waveform ends early."""
    masking, length = masking_of(config, modality), LENGTHS[modality]
    sources, padding = [], None
    for sample in samples:
        draw = torch.Generator().manual_seed(1000 * position + sample)
        if modality == "image":
            sources.append(torch.randn(1, length, length, generator=draw))
        elif modality == "audio":
            sources.append(torch.randn(length, generator=draw))
        else:
            sources.append(torch.randint(4, 51, (length,), generator=draw))
    if modality == "audio":
        padding = torch.zeros(len(samples), masking.num_tokens(length), dtype=torch.bool)
        padding[[sample % 2 == 1 for sample in samples], -3:] = True
    mask = masking.masks([1000 * position + sample for sample in samples], [length] * len(samples))
    return Batch(
        modality=modality,
        position=position,
        source=torch.stack(sources),
        mask=mask,
        num_kept=int((~mask[0, 0]).sum()),
        padding=padding,
        sample=torch.tensor(samples),
        epoch=torch.zeros(len(samples), dtype=torch.int64),
    )


def share(groups: ProcessGroups) -> list[range]:
    """This rank's microbatches of a global batch."""
    each = GLOBAL_BATCH // groups.dp_size
    first = groups.dp_rank * each
    return [range(start, start + MICROBATCH) for start in range(first, first + each, MICROBATCH)]


def train(case: str, run_dir: Path, groups: ProcessGroups) -> dict[str, Any]:
    stage, dtype, *options = case.split(":")
    run = run_config(int(stage), dtype, options)
    user = {"zero_optimization": SMALL_PIECES} if stage == "3" else None
    ds_config = deepspeed_config(
        run.optim, run.precision, run.parallel, microbatch_size=6, dp_size=groups.dp_size, user=user
    )
    device, weights = torch.device("cpu"), torch.bfloat16 if dtype == "bf16" else torch.float32
    engine, teacher = build_networks(run, ds_config, groups, device)
    task = Data2VecTask(run.model, engine, teacher, device=device, dtype=weights, seed=3)
    losses, norms = [], []
    for step in range(STEPS):
        total = torch.zeros(())
        for modality in ("image", "audio", "text"):
            for samples in share(groups):
                batch = make_batch(run.model, modality, step * GLOBAL_BATCH, samples)
                terms, _ = task(batch, batch.position)
                rows, tokens = GLOBAL_BATCH * batch.mask.shape[1], batch.mask.shape[2]
                counts = term_counts(rows, tokens - batch.num_kept)
                parts = [term.weight * term.sum / counts[name.split("_", 1)[1]] for name, term in terms.items()]
                loss = torch.stack(parts).sum()
                total += loss.detach()
                engine.backward(loss)
        dist.all_reduce(total, group=groups.dp_group)
        assert engine.step(lr=1e-3, eps=1e-8)
        norms.append(engine.gradient_norm())
        losses.append(float(total))
        teacher.update(0.9)
    teacher.ready()
    save(run_dir, run, TrainState(step=STEPS, positions={}), engine, teacher, groups, {})
    return {"losses": losses, "norms": norms}


def main() -> None:
    """Arguments: output directory, then cases ``STAGE:DTYPE[:gathered|resident][:offload]``."""
    out, *cases = sys.argv[1:]
    processes = read_environment(os.environ)
    join_processes(processes, "gloo")
    grid = make_grid(ParallelSection(), model(), processes.world_size)
    groups = make_groups(grid)
    torch.set_num_threads(1)
    for case in cases:
        run_dir = Path(out) / f"{case.replace(':', '-')}-{processes.world_size}"
        result = train(case, run_dir, groups)
        if processes.rank == 0:
            (run_dir / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
    leave_processes()
