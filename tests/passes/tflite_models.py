"""TensorFlow Lite models of one operator, written with the schema's own builders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
import tflite
from numpy.typing import NDArray

_TYPES = {"float32": 0, "int32": 2, "uint8": 3, "int64": 4, "int16": 7, "int8": 9}


@dataclass(frozen=True)
class Tensor:
    """A tensor of the model; ``value`` makes it a constant."""

    shape: tuple[int, ...]
    dtype: str = "int8"
    scale: Sequence[float] = ()
    zero_point: Sequence[int] = ()
    axis: int = 0
    value: NDArray[Any] | None = None


def constant(value: NDArray[Any], scale: Any = (), zero_point: Any = (), axis: int = 0) -> Tensor:
    """Make a constant tensor."""
    scales, zeros = (tuple(np.ravel(v).tolist()) for v in (scale, zero_point))
    return Tensor(value.shape, str(value.dtype), scales, zeros, axis, value)


def model(
    operator: str,
    inputs: Sequence[Tensor | None],
    outputs: Sequence[Tensor],
    options: tuple[str, dict[str, Any]] | None = None,
    version: int = 1,
) -> bytes:
    """Write a model of one operator.

    Args:
        operator: the builtin's name (``CONV_2D``).
        inputs: its inputs; the constants among them are no inputs of the model.
        outputs: its outputs.
        options: name of the options' table (``Conv2DOptions``) and its fields.
        version: of the operator.
    """
    b = flatbuffers.Builder(1024)
    given = [tensor for tensor in inputs if tensor is not None]
    tensors = [*given, *outputs]

    def vector(start: Callable[..., Any], offsets: Sequence[int]) -> int:
        start(b, len(offsets))
        for offset in reversed(offsets):
            b.PrependUOffsetTRelative(offset)
        return int(b.EndVector())

    buffers = []
    for number in range(len(tensors) + 1):
        value = tensors[number - 1].value if number else None
        data = None if value is None else b.CreateByteVector(np.ascontiguousarray(value).tobytes())
        tflite.BufferStart(b)
        if data is not None:
            tflite.BufferAddData(b, data)
        buffers.append(tflite.BufferEnd(b))

    places = []
    for number, tensor in enumerate(tensors):
        name = b.CreateString(f"t{number}")
        shape = b.CreateNumpyVector(np.array(tensor.shape, np.int32))
        quantization = None
        if len(tensor.scale):
            scale = b.CreateNumpyVector(np.array(tensor.scale, np.float32))
            zero = b.CreateNumpyVector(np.array(tensor.zero_point, np.int64))
            tflite.QuantizationParametersStart(b)
            tflite.QuantizationParametersAddScale(b, scale)
            tflite.QuantizationParametersAddZeroPoint(b, zero)
            tflite.QuantizationParametersAddQuantizedDimension(b, tensor.axis)
            quantization = tflite.QuantizationParametersEnd(b)
        tflite.TensorStart(b)
        tflite.TensorAddShape(b, shape)
        tflite.TensorAddType(b, _TYPES[tensor.dtype])
        tflite.TensorAddBuffer(b, number + 1)
        tflite.TensorAddName(b, name)
        if quantization is not None:
            tflite.TensorAddQuantization(b, quantization)
        places.append(tflite.TensorEnd(b))

    table = None
    if options is not None:
        kind, fields = options
        arrays = {
            field: b.CreateNumpyVector(np.array(value, np.int32))
            for field, value in fields.items()
            if isinstance(value, list)
        }
        getattr(tflite, f"{kind}Start")(b)
        for field, value in fields.items():
            getattr(tflite, f"{kind}Add{field}")(b, arrays.get(field, value))
        table = getattr(tflite, f"{kind}End")(b)

    numbers = iter(range(len(given)))
    reads = [-1 if tensor is None else next(numbers) for tensor in inputs]
    writes = [len(given) + i for i in range(len(outputs))]
    read, write = (b.CreateNumpyVector(np.array(v, np.int32)) for v in (reads, writes))
    tflite.OperatorStart(b)
    tflite.OperatorAddOpcodeIndex(b, 0)
    tflite.OperatorAddInputs(b, read)
    tflite.OperatorAddOutputs(b, write)
    if options is not None and table is not None:
        tflite.OperatorAddBuiltinOptionsType(b, getattr(tflite.BuiltinOptions, options[0]))
        tflite.OperatorAddBuiltinOptions(b, table)
    call = tflite.OperatorEnd(b)

    free = [i for i, tensor in enumerate(given) if tensor.value is None]
    ins, outs = (b.CreateNumpyVector(np.array(v, np.int32)) for v in (free, writes))
    tensor_vector = vector(tflite.SubGraphStartTensorsVector, places)
    call_vector = vector(tflite.SubGraphStartOperatorsVector, [call])
    tflite.SubGraphStart(b)
    tflite.SubGraphAddTensors(b, tensor_vector)
    tflite.SubGraphAddInputs(b, ins)
    tflite.SubGraphAddOutputs(b, outs)
    tflite.SubGraphAddOperators(b, call_vector)
    graph = tflite.SubGraphEnd(b)

    code = getattr(tflite.BuiltinOperator, operator)
    tflite.OperatorCodeStart(b)
    tflite.OperatorCodeAddDeprecatedBuiltinCode(b, min(code, 127))
    tflite.OperatorCodeAddBuiltinCode(b, code)
    tflite.OperatorCodeAddVersion(b, version)
    opcode = tflite.OperatorCodeEnd(b)
    codes = vector(tflite.ModelStartOperatorCodesVector, [opcode])
    graphs = vector(tflite.ModelStartSubgraphsVector, [graph])
    buffer_vector = vector(tflite.ModelStartBuffersVector, buffers)
    tflite.ModelStart(b)
    tflite.ModelAddVersion(b, 3)
    tflite.ModelAddOperatorCodes(b, codes)
    tflite.ModelAddSubgraphs(b, graphs)
    tflite.ModelAddBuffers(b, buffer_vector)
    b.Finish(tflite.ModelEnd(b), b"TFL3")
    return bytes(b.Output())


def judged(data: bytes, samples: Sequence[Sequence[NDArray[Any]]]) -> list[list[NDArray[Any]]]:
    """Run LiteRT's reference kernels; ``samples`` hold the inputs in order."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    judge = Interpreter(
        model_content=data, experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    judge.allocate_tensors()
    results = []
    for inputs in samples:
        for detail, value in zip(judge.get_input_details(), inputs, strict=True):
            judge.set_tensor(detail["index"], value)
        judge.invoke()
        results.append([judge.get_tensor(d["index"]).copy() for d in judge.get_output_details()])
    return results
