"""Record every operator that reads the image or what is computed from it, and where it is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from job.errors import UsageError
from job.score.graph import (
    IMAGE,
    Call,
    Graph,
    Operand,
    Operation,
    Stored,
    by_name,
    is_random,
    plain_name,
    tensors,
    written,
)
from job.score.operations import is_fill, is_move
from job.score.quantised import computed, levels_bits


@dataclass(eq=False)
class _Origin:
    """Where a tensor's values come from: from operations, or else from stored values."""

    time: int
    producers: frozenset[int] = frozenset()
    stored: dict[int, Stored] = field(default_factory=dict)

    def merge(self, other: _Origin) -> _Origin:
        return _Origin(self.time, self.producers | other.producers, {**self.stored, **other.stored})


class Recorder(TorchDispatchMode):
    """Records the graph of one run of one copy of a model, while it is active."""

    def __init__(self, stored: dict[int, Stored]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stored = stored
        self.parameters: list[Stored] = []
        self.packed: dict[str, dict[str, Stored]] = {}
        self.constants: dict[tuple[str | int, ...], list[Stored]] = {}
        self.operations: list[Operation] = []
        self.calls: list[Call] = []
        self.modules: list[tuple[str, nn.Module]] = [("", nn.Module())]  # those running, innermost last
        self.origins: dict[int, _Origin] = {}
        self.writes: dict[int, list[_Origin]] = {}  # into a storage, by any tensor that shares it
        self.alive: list[Tensor] = []  # so that no id is used twice
        self.time = 0
        self.inside = False  # an operator that is being recorded

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled here, and the default imports the compiler: 900 modules, 1 s.
        return False

    def follow(self, model: nn.Module) -> None:
        """Keep track of the module that is running. `model` is this recorder's own copy: the hooks stay."""
        self.parameters = [self.stored[id(parameter)] for parameter in model.parameters()]
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks: its operators are counted under the module that calls it
            module.register_forward_pre_hook(
                lambda module, _, name=name: self.modules.append((name, module)), prepend=True
            )
            module.register_forward_hook(self._leave)

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        name, _ = self.modules.pop()
        leaf = not next(module.children(), None)
        reads_image = any(self._origin(tensor).producers for tensor in tensors(inputs))
        if leaf and isinstance(output, Tensor) and reads_image:
            self.calls.append(Call(name, module))

    def begin(self, image: Tensor) -> None:
        """Mark `image` as the tensor that everything counted depends on."""
        self._keep(image, _Origin(0, frozenset({IMAGE})))

    def graph(self, result: Any) -> Graph:
        """Return what was recorded; `result` is what the model returned."""
        leaves = tensors(result)
        producers = {producer for leaf in leaves for producer in self._origin(leaf).producers}
        packed = [part for parts in self.packed.values() for part in parts.values()]
        return Graph(
            tuple(self.operations), tuple(sorted(producers)), tuple(self.calls), (*self.parameters, *packed)
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.observe(func, func, args, kwargs or {})

    def observe(self, operator: Any, call: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """Return what `call` returns, and record it as one `operator`, whatever it runs inside."""
        if self.inside:
            return call(*args, **kwargs)
        named = by_name(operator, args, kwargs)
        # Before the call: an operator that works in place changes what its argument is.
        arguments: dict[str, Any] = {}
        for name, value in named.items():
            if isinstance(value, torch.ScriptObject):  # the packed weights of a quantised module
                arguments |= {"input": self._operand(args[0]), **self._unpack(value)}
            else:
                arguments[name] = tree_map_only(Tensor, self._operand, value)
        self.inside = True
        try:
            result = call(*args, **kwargs)
        finally:
            self.inside = False
        self._record(operator, arguments, written(operator, named), tensors(result))
        return result

    def _unpack(self, packed: torch.ScriptObject) -> dict[str, Operand]:
        """Return the operands inside a quantised module's packed weights, the same values for each call."""
        layer, _ = self.modules[-1]
        if layer not in self.packed:
            self.packed[layer] = {
                name: Stored.of(f"{layer}.{name}", tensor)
                for name, tensor in _unpacked(packed, layer).items()
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
        known = self.origins.get(id(tensor)) or self._first_seen(tensor)
        origin = known
        for write in self.writes.get(_storage(tensor), ()):
            if write.time > known.time:
                origin = origin.merge(write)
        return origin

    def _first_seen(self, tensor: Tensor) -> _Origin:
        """Treat a tensor that no operator wrote as a stored one; a single number is part of the code."""
        if id(tensor) in self.stored or tensor.dim() > 0:
            stored = self.stored.get(id(tensor)) or Stored.of(self._label("tensor"), tensor)
            return self._keep(tensor, _Origin(0, stored={id(stored): stored}))
        return self._keep(tensor, _Origin(0))

    def _keep(self, tensor: Tensor, origin: _Origin) -> _Origin:
        self.alive.append(tensor)
        self.origins[id(tensor)] = origin
        return origin

    def _label(self, what: str) -> str:
        return f"{self.modules[-1][0]}.({what})".lstrip(".")

    def _record(
        self, operator: Any, arguments: dict[str, Any], changed: list[Tensor], outputs: list[Tensor]
    ) -> None:
        self.time += 1
        name = plain_name(operator)
        # A fill reads only the shape of what it fills.
        sources = {key: value for key, value in arguments.items() if not (is_fill(name) and key == "self")}
        reads = tuple(leaf for leaf in tree_flatten(sources)[0] if isinstance(leaf, Operand))
        origins = [_Origin(self.time) for _ in outputs + changed]
        if any(operand.is_activation for operand in reads) or is_random(operator):
            for origin in origins:
                origin.producers = frozenset({len(self.operations)})
            self.operations.append(self._operation(name, arguments, reads, outputs))
        elif is_move(name) and levels_bits(arguments) is None:
            for origin in origins:
                origin.stored = {id(part): part for operand in reads for part in operand.stored}
        else:  # computed ahead of time, so that what the image meets is the result
            for origin, tensor in zip(origins, outputs + changed, strict=True):
                result = self._computed(name, tensor, arguments, reads)
                origin.stored = {id(result): result}
        for tensor, origin in zip(outputs + changed, origins, strict=True):
            self._keep(tensor, origin)
        for tensor in changed:
            self.writes.setdefault(_storage(tensor), []).append(self.origins[id(tensor)])

    def _computed(
        self, name: str, tensor: Tensor, arguments: dict[str, Any], reads: tuple[Operand, ...]
    ) -> Stored:
        """Return the stored value that a computed constant is: the same one if it is computed again."""
        result = computed(self._label(name), tensor, arguments, reads)
        alike = self.constants.setdefault((result.name, *map(id, result.sources)), [])
        for known in alike:
            if known.tensor is tensor or (not tensor.is_meta and _equal(known.tensor, result.tensor)):
                return known
        alike.append(result)
        return result

    def _operation(
        self, name: str, arguments: dict[str, Any], reads: tuple[Operand, ...], outputs: list[Tensor]
    ) -> Operation:
        index = len(self.operations)
        layer, module = self.modules[-1]
        return Operation(
            index=index,
            name=name,
            arguments=arguments,
            reads=reads,
            outputs=tuple(Operand(tuple(tensor.shape), tensor.dtype, (index,)) for tensor in outputs),
            layer=layer,
            layer_type=type(module),
            where=_caller(),
        )


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def _unpacked(packed: torch.ScriptObject, layer: str) -> dict[str, Tensor | None]:
    """Return the weight and bias inside the packed parameters of a PyTorch quantised module."""
    try:
        weight, bias = packed.unpack()  # type: ignore[attr-defined]
    except (AttributeError, RuntimeError) as error:
        raise UsageError(f"the packed weights of {layer or 'the model'} cannot be read: {error}") from error
    return {"weight": weight, "bias": bias}


def _storage(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse layouts have none
        return id(tensor)


NOT_THE_MODEL = tuple(f"{Path(path).parent}{os.sep}" for path in (torch.__file__, __file__))


def _caller() -> str:
    """Return `file.py:line in function` of the innermost frame that is neither torch's nor this counter's."""
    frame: FrameType | None = sys._getframe(3)
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith((*NOT_THE_MODEL, "<")):
            return f"{Path(path).name}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return "torch"
