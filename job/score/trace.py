"""Run a copy of a model once and write down every operator that touched the image, and what it read."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from job.errors import DataError
from job.score.graph import IMAGE, Call, Graph, Operand, Operation
from job.score.stored import Stored, plain_copy, unpack


def trace(model: nn.Module, input_shape: tuple[int, ...], moves: Callable[[str], bool]) -> Graph:
    """Run a copy of `model`, in eval mode, on one image of zeros of `input_shape` and return its graph.

    `moves(name)` tells whether an operator only moves values: a constant that was moved is still the
    stored values it was made of, one that was computed is a new stored value. The model is only read.

    Raises UsageError if the model cannot be copied, DataError if it does not run on such an image.
    """
    replica, stored = plain_copy(model)
    recorder = _Recorder(moves, stored)
    recorder.follow(replica)
    image = _image(replica, input_shape)
    recorder.begin(image)
    try:
        # The function mode changes nothing; that one is active keeps nn.MultiheadAttention and the
        # transformer layers off their fused kernels, which would hide what they compute.
        with torch.no_grad(), recorder, _PlainFunctions():
            result = replica(image)
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        shape = ",".join(map(str, input_shape))
        raise DataError(
            f"the model does not run on an image of {shape}: {error}", "Give its shape with --input"
        ) from error
    return recorder.graph(result)


def _image(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Return zeros [1, *shape] of the dtype and on the device of the model's first floating-point tensor."""
    tensors = [*model.parameters(), *model.buffers()]
    like = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))
    return torch.zeros(1, *shape, dtype=like.dtype, device=like.device)


class _PlainFunctions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@dataclass(eq=False)
class _Origin:
    """Where a tensor's values come from: operations, or else stored values."""

    time: int
    producers: frozenset[int] = frozenset()
    stored: dict[int, Stored] = field(default_factory=dict)

    def merge(self, other: _Origin) -> _Origin:
        return _Origin(self.time, self.producers | other.producers, {**self.stored, **other.stored})


class _Recorder(TorchDispatchMode):
    def __init__(self, moves: Callable[[str], bool], stored: dict[int, Stored]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moves = moves
        self.stored = stored
        self.operations: list[Operation] = []
        self.calls: list[Call] = []
        self.modules: list[tuple[str, nn.Module]] = []  # those running, innermost last
        self.parameters: list[Stored] = []
        self.packed: dict[str, dict[str, Stored]] = {}
        self.origins: dict[int, _Origin] = {}
        self.writes: dict[int, list[_Origin]] = {}  # of a storage, in place
        self.alive: list[Any] = []  # so that no id is used twice
        self.time = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled here, and the default imports the compiler: 900 modules, 1 s.
        return False

    def follow(self, model: nn.Module) -> None:
        """Keep track of the module that is running. `model` is this recorder's own copy: the hooks stay."""
        self.parameters = [self.stored[id(parameter)] for parameter in model.parameters()]
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda module, _, name=name: self.modules.append((name, module)))
            module.register_forward_hook(self._leave)

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        name, _ = self.modules.pop()
        tensors = [value for value in tree_flatten(inputs)[0] if isinstance(value, Tensor)]
        if isinstance(output, Tensor) and not next(module.children(), None):
            self.calls.append(Call(name, module, tuple(value.shape for value in tensors), output.shape))

    def begin(self, image: Tensor) -> None:
        """Mark `image` as the tensor that everything counted depends on."""
        self.alive.append(image)
        self.origins[id(image)] = _Origin(0, frozenset({IMAGE}))

    def graph(self, result: Any) -> Graph:
        """Return what was recorded; `result` is what the model returned."""
        producers = {producer for leaf in _tensors(result) for producer in self._origin(leaf).producers}
        packed = [part for parts in self.packed.values() for part in parts.values()]
        return Graph(
            tuple(self.operations), tuple(sorted(producers)), tuple(self.calls), (*self.parameters, *packed)
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Before the call: an operator that works in place changes what its argument is.
        arguments: dict[str, Any] = {}
        for name, value in _by_name(func, args, kwargs).items():
            if isinstance(value, torch.ScriptObject):
                arguments |= self._unpack(value)
            else:
                arguments[name] = tree_map_only(Tensor, self._operand, value)
        result = func(*args, **kwargs)
        self._record(func, arguments, _written(func, args, kwargs), _tensors(result))
        return result

    def _unpack(self, packed: torch.ScriptObject) -> dict[str, Operand]:
        """Return the operands inside a quantised module's packed weights, the same ones for each call."""
        layer = self.modules[-1][0] if self.modules else ""
        if layer not in self.packed:
            self.packed[layer] = {
                name: Stored.of(f"{layer}.{name}", tensor)
                for name, tensor in unpack(packed, layer).items()
                if tensor is not None
            }
        return {
            name: Operand(tuple(value.tensor.shape), value.tensor.dtype, stored=(value,), tensor=value.tensor)
            for name, value in self.packed[layer].items()
        }

    def _operand(self, tensor: Tensor) -> Operand:
        origin = self._origin(tensor)
        shape = tuple(tensor.shape)
        if origin.producers:
            return Operand(shape, tensor.dtype, producers=tuple(sorted(origin.producers)))
        return Operand(shape, tensor.dtype, stored=tuple(origin.stored.values()), tensor=tensor)

    def _origin(self, tensor: Tensor) -> _Origin:
        known = self.origins.get(id(tensor))
        if known is None:  # first seen: it was not computed, so it is stored with the model
            self.alive.append(tensor)
            layer = self.modules[-1][0] if self.modules else ""
            stored = self.stored.get(id(tensor)) or Stored.of(f"{layer}.(tensor)".lstrip("."), tensor)
            known = self.origins[id(tensor)] = _Origin(0, stored={id(stored): stored})
        origin = known
        for write in self.writes.get(_storage(tensor), ()):
            if write.time > known.time:
                origin = origin.merge(write)
        return origin

    def _record(
        self, func: Any, arguments: dict[str, Any], written: list[Tensor], outputs: list[Tensor]
    ) -> None:
        self.time += 1
        name = _name(func)
        reads = tuple(leaf for leaf in tree_flatten(arguments)[0] if isinstance(leaf, Operand))
        layer, module = self.modules[-1] if self.modules else ("", nn.Module())
        origin = _Origin(self.time)
        if any(operand.is_activation for operand in reads) or _is_random(func):
            origin.producers = frozenset({len(self.operations)})
            described = (Operand(tuple(t.shape), t.dtype, tuple(origin.producers)) for t in outputs)
            self.operations.append(
                Operation(
                    index=len(self.operations),
                    name=name,
                    arguments=arguments,
                    reads=reads,
                    outputs=tuple(described),
                    layer=layer,
                    layer_type=type(module),
                    where=_caller(),
                )
            )
        elif self.moves(name):
            origin.stored = {id(part): part for operand in reads for part in operand.stored}
        else:  # computed ahead of time, so that what the image meets is the result
            results = [Stored.of(f"{layer}.({name})".lstrip("."), tensor) for tensor in outputs]
            origin.stored = {id(result): result for result in results}
        for tensor in outputs + written:
            self.alive.append(tensor)
            self.origins[id(tensor)] = origin
        for tensor in written:
            self.writes.setdefault(_storage(tensor), []).append(origin)


def _by_name(func: Any, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    names = [argument.name for argument in func._schema.arguments]
    defaults = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
    return {**defaults, **dict(zip(names, args, strict=False)), **kwargs}


def _name(func: Any) -> str:
    """Return `aten.add` for add, add_ and every overload of either."""
    name = str(func._overloadpacket)
    return name[:-1] if func._schema.is_mutable and name.endswith("_") else name


def _is_random(func: Any) -> bool:
    """Return whether the result differs from call to call, so that nothing ahead of time can stand for it."""
    return torch.Tag.nondeterministic_seeded in func.tags


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors that the operator changes in place."""
    values = _by_name(func, args, kwargs)
    written = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return [tensor for name in written for tensor in _tensors(values.get(name))]


def _storage(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse layouts have none
        return id(tensor)


_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)


def _caller() -> str:
    """Return `file.py:line in function` of the innermost frame that is neither torch's nor this counter's."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith((_TORCH, _HERE, "<")):
            return f"{Path(path).name}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return "torch"
