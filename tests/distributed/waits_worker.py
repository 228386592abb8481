"""Worker of test_waits: short synthetic runs, each watched for places where the host waits for the device.

Prints by case and step the places as JSON (rank 0). The last step of a run is logged, the others are not.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

from pretrain import build
from pretrain.environment import Processes, read_environment
from pretrain.parallel.zero import leave_processes
from pretrain.preempt import StopRequest
from pretrain.sections import HealthSection, LoggingSection, ParallelSection
from tests.distributed.synthetic import SyntheticMixture, run_config
from tests.distributed.waits import Waits

build.build_mixture = SyntheticMixture  # type: ignore[assignment]
build.check_vocabulary = lambda config: None  # there are no shards
STEPS = 4


def places(case: dict, run_dir: Path, processes: Processes) -> dict[int, list[str]]:
    """Where the host waited, by number of steps that were done then."""
    parallel = ParallelSection(**case["parallel"])
    run = run_config(["image", "audio", "text"], parallel, dropout=0.1, steps=STEPS)
    run = dataclasses.replace(
        run,
        precision=dataclasses.replace(run.precision, dtype=case["dtype"]),
        logging=LoggingSection(every_steps=100, tensorboard=False),
        health=HealthSection(every_steps=100),
    )
    run_dir.mkdir(exist_ok=True)
    trainer = build.build_trainer(run, run_dir, processes, StopRequest(), resume="never", user_deepspeed=None)
    batches = iter([trainer._mixture.next_step() for _ in range(STEPS)])
    trainer._mixture.next_step = lambda: next(batches)  # type: ignore[method-assign]
    waits = Waits(lambda: trainer.state.step)
    with waits.watched():
        trainer.train()
    trainer.close()
    return {step: sorted(name for at, name in waits.places if at == step) for step in range(STEPS + 1)}


def main() -> None:
    """Arguments: output directory, then cases as JSON."""
    out, cases = Path(sys.argv[1]), [json.loads(text) for text in sys.argv[2:]]
    processes = read_environment(os.environ)
    for number, case in enumerate(cases):
        found = places(case, out / f"{number}-{processes.world_size}", processes)
        if processes.rank == 0:
            print("PLACES", json.dumps(found), flush=True)
    leave_processes()


if __name__ == "__main__":
    main()
