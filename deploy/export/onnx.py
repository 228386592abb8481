"""ONNX files, and ONNX Runtime, which checks them: the only module that knows these libraries."""

from pathlib import Path

import onnx_ir
import onnxruntime
import torch
from torch import Tensor
from torch.export import ExportedProgram

from deploy.export.format import Format, Run
from deploy.export.inference import quiet

TOLERANCE = 1e-5
_ERRORS_ONLY = 3
_MIN_STORED = 1024
"""Elements of the smallest tensor that is worth a conversion."""


def write(program: ExportedProgram, path: Path, stored: torch.dtype) -> None:
    """Write a program; of more than 1.5 GiB the weights lie in ``path``.data, for protobuf holds 2 GB at most.

    Args:
        program: fp32, or as it is stored.
        path: to write.
        stored: the type of the weights in the file; bf16 is converted to fp32 when the file is loaded.
    """
    with quiet():
        exported = torch.onnx.export(program, dynamo=True, verbose=False, optimize=True)
        assert exported is not None
        for output, name in zip(exported.model.graph.outputs, _output_names(program), strict=True):
            output.name = name
        if stored == torch.bfloat16:
            _store_bf16(exported.model.graph)
        exported.save(str(path))


def _output_names(program: ExportedProgram) -> list[str]:
    """Keys of the dictionary that a program returns, in the order of its outputs."""
    spec = program.call_spec.out_spec
    assert spec is not None and isinstance(spec.context, list)
    return spec.context


def _store_bf16(graph: onnx_ir.Graph) -> None:
    """Keep large weights that were rounded to bf16 in it, before a conversion; nothing is lost here.

    ONNX Runtime has no convolution of bf16, and on a CPU no sums.
    """
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != onnx_ir.DataType.FLOAT or tensor.size < _MIN_STORED:
            continue
        whole = torch.from_numpy(tensor.numpy())
        rounded = whole.bfloat16()
        if not torch.equal(rounded.float(), whole):  # a table, which is no weight
            continue
        kept = onnx_ir.Value(
            name=f"{name}.bf16",
            shape=value.shape,
            type=onnx_ir.TensorType(onnx_ir.DataType.BFLOAT16),
            const_value=onnx_ir.tensor(rounded, name=f"{name}.bf16"),
        )
        del graph.initializers[name]
        graph.register_initializer(kept)
        value.const_value = None
        cast = onnx_ir.Node("", "Cast", [kept], [onnx_ir.AttrInt64("to", onnx_ir.DataType.FLOAT)], outputs=[value])
        graph.insert_before(graph[0], cast)


def read(path: Path) -> Run:
    """A written file as a function of named tensors, computed on the CPU by as many threads as torch has."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(given: dict[str, Tensor]) -> dict[str, Tensor]:
        arrays = session.run(names, {name: tensor.numpy() for name, tensor in given.items()})
        return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}

    return run


FORMAT = Format(write, read, {"fp32": "fp32", "bf16": "fp32", "fp16": "fp16"}, TOLERANCE, other_kernels=True)
