"""The modules of ``deploy.export.data2vec2`` as one source file that needs torch and transformers only."""

import ast
from importlib.resources import files

FILE_NAME = "modeling_data2vec2.py"
_MODULES = ("configuration", "frontends", "modeling")
"""In an order in which each needs only those before it."""
_ITSELF = f'''\
FILE_NAME = "{FILE_NAME}"


def modeling_source() -> str:
    """This file."""
    return Path(__file__).read_text(encoding="utf-8")'''
"""What the file has in place of this module, which writes it."""
_HEADER = '''\
"""data2vec 2.0 encoders for transformers, in one file that needs torch and transformers only.

Written by data2vec-scale for ``AutoModel.from_pretrained(FOLDER, trust_remote_code=True)``. The tensors keep the
names and layouts of data2vec-scale's own model, so nothing is converted and outputs are equal in fp32:

    frontends.MODALITY.*     raw input -> tokens: patches, convolutions or embedding, positions, extra tokens, input
                             norm, the modality's blocks
    encoder.blocks.{i}.*     the blocks that all modalities share
    *.attention.qkv          rows per head: the head's queries, its keys, its values; then the next head

Letters: B batch, T tokens, D width, H heads, L waveform samples, S side of an image.
"""
'''


def modeling_source() -> str:
    """The whole model as Python source: the imports of all modules, then their bodies."""
    plain, members, bodies = set(), {}, []  # type: ignore[var-annotated]
    for name in _MODULES:
        source = files("deploy.export.data2vec2").joinpath(f"{name}.py").read_text(encoding="utf-8")
        statements = ast.parse(source).body
        imports = [node for node in statements if isinstance(node, ast.Import | ast.ImportFrom)]
        for node in imports:
            if isinstance(node, ast.Import):
                plain |= {alias.name for alias in node.names}
            elif node.module and not node.module.startswith("deploy."):
                members.setdefault(node.module, set()).update(alias.name for alias in node.names)
        last = imports[-1].end_lineno
        bodies.append("\n".join(source.splitlines()[last:]).strip())
    members.setdefault("pathlib", set()).add("Path")
    lines = [f"import {name}" for name in sorted(plain)]
    lines += [f"from {module} import {', '.join(sorted(members[module]))}" for module in sorted(members)]
    return "\n\n\n".join([_HEADER + "\n" + "\n".join(lines), _ITSELF, *bodies]) + "\n"
