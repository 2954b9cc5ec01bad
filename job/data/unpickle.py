"""Read untrusted pickles: only numpy arrays and plain containers, within bounds.

Every global that a pickle may name is replaced by a function of `stand_ins`, so that neither code of the
archive's choice nor numpy's own reconstruction of unchecked shapes and dtypes ever runs. The result is a
tree: its size, its depth and the time to read it are bounded by the file's, whatever the pickle shares.
"""

from __future__ import annotations

import codecs
import io
import pickle
import pickletools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from job.data.stand_ins import GLOBALS, Array, Dtype
from job.errors import DataError
from job.store.files import explain

MAX_PICKLE_BYTES = 4 * 2**30
"""CIFAR-100's largest is 155 MB; reading takes about four times the file's size in memory."""

MAX_OPCODES = 1_000_000
"""CIFAR-100's largest has 200,000, read in 0.4 s. A container that is used twice counts twice."""

MAX_DEPTH = 8  # containers in containers
MAX_NUMBER_BITS = 64

_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_CONTAINERS = (list, tuple, dict)


def read_pickle(path: Path) -> dict[str, Any]:
    """Return the dictionary in a pickle, its keys as text, its arrays as writable integer ndarrays.

    Raises DataError when the file holds anything else, names any other global (the error says which), is
    cut, or is beyond the bounds of this module.
    """
    try:
        size = path.stat().st_size
        if size > MAX_PICKLE_BYTES:
            raise _unreadable(path, f"{size} bytes are more than the {MAX_PICKLE_BYTES} allowed")
        return _dictionary(_Reader(path.read_bytes()).read())
    except OSError as error:
        raise explain(error, path) from error
    except DataError as error:
        raise _unreadable(path, error.message) from error
    except MemoryError:
        raise _unreadable(path, "it asks for more memory than there is") from None
    except Exception as error:  # a damaged pickle can raise nearly anything, by design of the format
        raise _unreadable(path, f"not a pickle, or damaged ({type(error).__name__})") from error


def _unreadable(path: Path, reason: str) -> DataError:
    name = f"{path.parent.name}/{path.name}"
    return DataError(
        f"cannot read {name}: {reason}", "Use an archive in the format of cifar-100-python.tar.gz"
    )


def _dictionary(content: Any) -> dict[str, Any]:
    if type(content) is not dict:
        raise DataError(f"it holds a {type(content).__name__}, not a dictionary")
    return {_text(key): value.array if isinstance(value, Array) else value for key, value in content.items()}


def _text(key: str | bytes) -> str:
    """Return a key as text: archives that Python 3 wrote again with `encoding="bytes"` have bytes."""
    return key.decode("latin1") if isinstance(key, bytes) else key


class _Reader:
    """A machine for those of pickle's opcodes that a data set needs.

    The standard library's machines share an object as often as a pickle asks, so that a few hundred bytes
    become a key of 2^60 leaves to be hashed, and the one in C allocates 16 bytes for every memo index up to
    the largest named. Here a container has one place: one that is used again is copied, and the copy counted.
    """

    def __init__(self, data: bytes) -> None:
        self._stream = io.BytesIO(data)
        self._steps_left = MAX_OPCODES
        self._bytes_left = 2 * len(data)  # of arrays and of text that is encoded for them
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def read(self) -> Any:
        """Return what the pickle holds; raises DataError, and nearly anything for a damaged one."""
        while (code := self._stream.read(1)) != pickle.STOP:
            opcode = _OPCODES[code.decode("latin1")]
            action = _ACTIONS.get(opcode.name)
            if action is None:
                raise DataError(f"its pickle uses {opcode.name}, which no data set needs")
            self._spend(1)
            action(self, opcode.arg.reader(self._stream) if opcode.arg and code != pickle.STRING else None)
        return self._stack.pop()

    def _spend(self, steps: int) -> None:
        self._steps_left -= steps
        if self._steps_left < 0:
            raise DataError(f"it takes more than {MAX_OPCODES:,} steps to read")

    def _push(self, value: Any) -> None:
        if isinstance(value, int) and value.bit_length() > MAX_NUMBER_BITS:
            raise DataError(f"it holds a number of more than {MAX_NUMBER_BITS} bits")
        self._stack.append(value)

    def _push_string(self, _argument: None) -> None:
        """Read Python 2's quoted text, of which `pickletools` takes ASCII only."""
        text, _ = codecs.escape_decode(self._stream.readline().strip()[1:-1])
        self._stack.append(text.decode("latin1"))

    def _push_global(self, name: str) -> None:
        """Push the stand-in for `module name`."""
        dotted = name.replace(" ", ".", 1)
        if dotted not in GLOBALS:
            raise DataError(f"its pickle asks for {ascii(dotted)[1:-1]:.100}, which no data set needs")
        self._stack.append(GLOBALS[dotted])

    def _push_stack_global(self, _argument: None) -> None:
        module, name = self._pop(2)
        self._push_global(f"{module} {name}" if isinstance(module, str) and isinstance(name, str) else "")

    def _memoize(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._stack[-1]

    def _recall(self, index: int) -> None:
        value = self._memo[index]
        if isinstance(value, _CONTAINERS):
            self._spend(len(value))
            if isinstance(value, dict) or any(isinstance(item, _CONTAINERS) for item in value):
                raise DataError("it uses a container of containers twice")
            value = type(value)(value)
        self._stack.append(value)

    def _mark(self, _argument: None) -> None:
        self._marks.append(len(self._stack))

    def _pop(self, count: int) -> list[Any]:
        items = self._stack[-count:]
        if len(items) < count:
            raise DataError("it is damaged")
        del self._stack[-count:]
        return items

    def _pop_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _push_tuple(self, items: list[Any]) -> None:
        _check_depth(items)
        self._stack.append(tuple(items))

    def _append(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise DataError("it appends to something that is not a list")
        _check_depth(items)
        self._stack[-1].extend(items)

    def _set(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not dict:
            raise DataError("it sets a key of something that is not a dictionary")
        if not all(isinstance(key, str | bytes) for key in items[::2]):
            raise DataError("a key of a dictionary is not text")
        _check_depth(items)
        self._stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _push_and(self, container: list[Any] | dict[Any, Any], fill: Callable[[list[Any]], None]) -> None:
        items = self._pop_mark()
        self._stack.append(container)
        fill(items)

    def _reduce(self, _argument: None) -> None:
        function, arguments = self._pop(2)
        if not callable(function) or not isinstance(arguments, tuple):
            raise DataError("it calls something that is not a function")
        self._pay_for(arguments)
        self._stack.append(function(*arguments))

    def _build(self, _argument: None) -> None:
        (state,) = self._pop(1)
        target = self._stack[-1]
        self._pay_for(state)
        if isinstance(target, Array):
            _version, shape, dtype, fortran, raw = state
            target.fill(raw, dtype, shape, "F" if fortran else "C")
        elif isinstance(target, Dtype):
            target.set_byte_order(state[1])
        else:
            raise DataError("it sets the state of something that is not an array")

    def _pay_for(self, arguments: tuple[Any, ...]) -> None:
        """Count the bytes that a call may copy; a pickle could ask for the same ones any number of times."""
        self._bytes_left -= sum(len(part) for part in arguments if isinstance(part, str | bytes | bytearray))
        if self._bytes_left < 0:
            raise DataError("it copies more bytes than it holds")


def _check_depth(items: Iterable[Any], levels: int = MAX_DEPTH) -> None:
    if levels == 0:
        raise DataError(f"it nests more than {MAX_DEPTH} containers")
    for item in items:
        if isinstance(item, _CONTAINERS):
            _check_depth(item.values() if isinstance(item, dict) else item, levels - 1)


def _constant(value: Any) -> Callable[[_Reader, None], None]:
    return lambda reader, _: reader._stack.append(value)


_ACTIONS: dict[str, Callable[[_Reader, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda _reader, _argument: None),
    **dict.fromkeys(("INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4"), _Reader._push),
    **dict.fromkeys(("FLOAT", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING"), _Reader._push),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _Reader._push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _Reader._push),
    "STRING": _Reader._push_string,
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "GLOBAL": _Reader._push_global,
    "STACK_GLOBAL": _Reader._push_stack_global,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Reader._memoize),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Reader._recall),
    "MARK": _Reader._mark,
    "EMPTY_TUPLE": _constant(()),
    "TUPLE": lambda reader, _: reader._push_tuple(reader._pop_mark()),
    "TUPLE1": lambda reader, _: reader._push_tuple(reader._pop(1)),
    "TUPLE2": lambda reader, _: reader._push_tuple(reader._pop(2)),
    "TUPLE3": lambda reader, _: reader._push_tuple(reader._pop(3)),
    "EMPTY_LIST": lambda reader, _: reader._stack.append([]),
    "LIST": lambda reader, _: reader._push_and([], reader._append),
    "APPEND": lambda reader, _: reader._append(reader._pop(1)),
    "APPENDS": lambda reader, _: reader._append(reader._pop_mark()),
    "EMPTY_DICT": lambda reader, _: reader._stack.append({}),
    "DICT": lambda reader, _: reader._push_and({}, reader._set),
    "SETITEM": lambda reader, _: reader._set(reader._pop(2)),
    "SETITEMS": lambda reader, _: reader._set(reader._pop_mark()),
    "REDUCE": _Reader._reduce,
    "BUILD": _Reader._build,
}
