"""What takes seconds to import, imported once in the process that ``launch`` forks ranks from."""

import gc
import importlib

from pretrain.parallel.zero import prebuilt_operators

prebuilt_operators()  # imports DeepSpeed, and keeps it quiet
for name in ("torch._inductor.compile_fx", "megatron.core", "pretrain.build", "pretrain.pipelined"):
    importlib.import_module(name)  # the first by DeepSpeed, too: its optimizers ask torch.compile for it
gc.freeze()  # ranks collect garbage often, and need not look through all this
