"""A graph as rows, each naming its inputs by their place: what a deep graph is pickled as, and what JSON says of it.

JSON of a graph is data: reading it back checks every row, by the rules of its op, and opens no file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from math import prod
from typing import Any, TypeVar

from .. import dtypes
from ..errors import FormatError, LazysdError, UnsupportedCheckpointError
from ..stores.base import Cost, File
from ..stores.strict_json import show
from .base import Leaf, Op
from .checks import check_fields
from .leaves import FileRange
from .node import Node
from .walk import nodes

N = TypeVar("N", bound=Node)
VERSION = 1
LIMIT = 2**63  # sizes, offsets and other whole numbers stay below
Row = tuple[type[Node], Any, tuple[int, ...], tuple[int, ...], str]  # class, op, inputs, dims, code


def flatten(root: Node) -> list[Row]:
    """The rows of a graph, inputs first, the root last."""
    place: dict[int, int] = {}
    rows: list[Row] = []
    for node in nodes([root]):
        place[id(node)] = len(rows)
        rows.append((type(node), node.op, tuple(place[id(part)] for part in node.inputs), node.dims, node.code))
    return rows


def rebuild(rows: list[Row]) -> Node:
    """The root of a graph from its rows."""
    made: list[Node] = []
    for kind, op, inputs, dims, code in rows:
        made.append(kind(op, tuple(made[place] for place in inputs), dims, code))
    return made[-1]


def to_json(roots: Mapping[str, Node]) -> dict[str, Any]:
    """The graphs of some tensors as what json.dumps takes. Reads nothing; what tensors share stands there once.

    Returns:
        version; files, by their paths; nodes, inputs first: op, with (its fields), inputs (places in this list), dims,
        dtype; tensors: key -> place of its node. Floats are written as float.hex() does, ranges as three numbers.

    Raises:
        UnsupportedCheckpointError: tensors in memory, ranks' parts and caches are of this process alone.
    """
    place: dict[int, int] = {}
    files: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    ops = _ops()
    for node in nodes(roots.values()):
        place[id(node)] = len(rows)
        inputs = [place[id(part)] for part in node.inputs]
        said = {"op": type(node.op).__name__, "with": _written(node.op, ops, files), "inputs": inputs}
        rows.append({**said, "dims": list(node.dims), "dtype": node.code})
    tensors = {key: place[id(node)] for key, node in roots.items()}
    return {"version": VERSION, "files": list(files), "nodes": rows, "tensors": tensors}


def from_json(spec: Any, kind: type[N], open_file: Callable[[str], File] | None = None) -> dict[str, N]:
    """The graphs that JSON describes. Every row is checked before anything is made of it; no file is read.

    Args:
        spec: what json.loads gives.
        kind: the class of the nodes.
        open_file: makes a File of a path, once for each. Without it, the graph can be looked at and planned, not read.

    Raises:
        FormatError: what is no graph: unknown ops and fields, inputs that come later, shapes that do not fit, ranges
            that leave their file. Whatever `open_file` raises.
    """
    try:
        rows, keys = _table(spec)
        files = [(open_file or _Unopened)(path) for path in spec["files"]]
        made: list[N] = []
        ops = _ops()
        for number, row in enumerate(rows):
            try:
                made.append(_node(row, made, ops, files, kind))
            except (*_WRONG, LazysdError) as error:
                raise FormatError(f"node {number}: {error}") from None
        for key, at in keys.items():
            _want(_is_int(at) and 0 <= at < len(made), f"tensor {show(key)}: expected the place of a node, found", at)
    except FormatError as error:
        raise FormatError(f"cannot read this graph: {error}") from None
    return {key: made[at] for key, at in keys.items()}


_WRONG = (ValueError, TypeError, IndexError, KeyError, ArithmeticError, AttributeError)  # of fields that do not fit


class _Unopened(File):
    """Stands for a file that nobody has opened."""

    cost = Cost(gap_nbytes=8 << 10, block_nbytes=1 << 20, num_in_flight=1)  # as of a local file

    def __init__(self, path: str):
        self.name = self.path = path

    @property
    def size(self) -> int:
        return LIMIT

    @property
    def identity(self) -> tuple[Any, ...]:
        return ("unopened", self.path)

    def _fill(self, parts: Any) -> None:
        raise UnsupportedCheckpointError(f"{self.path} was not opened: this graph was read without files (open_file=)")

    def check_unchanged(self) -> None:
        self._fill(())

    def close(self) -> None:
        pass


def _want(holds: bool, expected: str, found: Any) -> None:
    if not holds:
        raise FormatError(f"{expected} {show(found)}")


def _is_int(value: Any) -> bool:
    return type(value) is int and -LIMIT < int(value) < LIMIT


def _table(spec: Any) -> tuple[list[Any], dict[str, Any]]:
    """The rows and the tensors of JSON that looks like a graph from outside."""
    _want(type(spec) is dict, "expected an object, found", spec)
    names = {"version", "files", "nodes", "tensors"}
    _want(spec.keys() == names, "expected the fields version, files, nodes, tensors, found", list(spec))
    _want(spec["version"] == VERSION, f"expected version {VERSION}, found", spec["version"])
    _want(type(spec["nodes"]) is list, "expected nodes to be a list, found", spec["nodes"])
    paths, keys = spec["files"], spec["tensors"]
    _want(type(paths) is list and set(map(type, paths)) <= {str}, "expected files to be paths, found", paths)
    _want(type(keys) is dict and set(map(type, keys)) <= {str}, "expected tensors to be an object, found", keys)
    return spec["nodes"], keys


def _node(row: Any, made: list[N], ops: Mapping[str, type[Op]], files: list[File], kind: type[N]) -> N:
    names = {"op", "with", "inputs", "dims", "dtype"}
    _want(type(row) is dict and row.keys() == names, "expected op, with, inputs, dims and dtype, found", row)
    places, code = row["inputs"], row["dtype"]
    _want(type(places) is list and all(_is_int(at) and 0 <= at < len(made) for at in places),
          "expected inputs to be places of nodes before this one, found", places)  # fmt: skip
    _want(type(code) is str and code in dtypes.DTYPES, "expected a dtype, found", code)
    dims = _read_ints(row["dims"], least=0)
    _want(
        prod(size or 1 for size in dims) * dtypes.itemsize(code) < LIMIT,
        "expected fewer than 2**63 bytes, found shape",
        list(dims),
    )
    op = _read_op(row["op"], row["with"], ops, files)
    inputs = tuple(made[at] for at in places)
    node = kind(op, inputs, dims, code)
    if isinstance(op, Leaf):
        _want(not inputs, f"expected {row['op']} to have no inputs, found", places)
        if isinstance(op, FileRange):
            stop, size = op.offset + node.nbytes, op.file.size
            _want(stop <= size, f"expected {size} bytes in {show(op.file.path)} at most, found some up to", stop)
        return node
    check_fields(op, inputs)
    found = op.infer(inputs)
    if found != (dims, code):
        raise FormatError(f"{row['op']} gives {found[1]}{list(found[0])}, stated is {code}{list(dims)}")
    return node


def _ops(above: type[Op] = Op) -> dict[str, type[Op]]:
    """Every op that can be written, by its name: those whose fields are plain data."""
    found: dict[str, type[Op]] = {}
    for one in above.__subclasses__():
        found |= _ops(one)
        if not one.__name__.startswith("_") and _is_plain(one):
            found[one.__name__] = one
    return found


def _is_plain(kind: type[Any]) -> bool:
    if getattr(sys.modules[kind.__module__], kind.__name__, None) is not kind:
        return False  # slots leave a twin of a class behind
    return kind is FileRange or (is_dataclass(kind) and all(str(field.type) in _READ for field in fields(kind)))


def _written(op: Op, ops: Mapping[str, type[Op]], files: dict[str, int]) -> dict[str, Any]:
    """The fields of an op; the paths of files are noted in `files`."""
    if isinstance(op, FileRange):
        return {"file": files.setdefault(op.file.path, len(files)), "offset": op.offset}
    if ops.get(type(op).__name__) is not type(op):
        raise UnsupportedCheckpointError(f"{type(op).__name__} cannot be written as JSON: it is of this process alone")
    parts: Any = fields(type(op))  # type: ignore[arg-type]
    return {field.name: _plain(getattr(op, field.name), str(field.type)) for field in parts}


def _plain(value: Any, kind: str) -> Any:
    if isinstance(value, range):
        return [value.start, value.stop, value.step]
    if isinstance(value, tuple):
        return [_plain(one, kind) for one in value]
    return float(value).hex() if "float" in kind and value is not None else value


def _read_op(name: Any, said: Any, ops: Mapping[str, type[Op]], files: list[File]) -> Op:
    _want(type(name) is str and name in ops, "expected the name of an op, found", name)
    kind: Any = ops[name]
    parts = {field.name: field for field in fields(kind)}
    _want(type(said) is dict and said.keys() == parts.keys(), f"expected the fields of {name}, found", said)
    if kind is FileRange:
        at, offset = _read_ints([said["file"], said["offset"]], least=0)
        _want(at < len(files), "expected the number of a file, found", at)
        return FileRange(files[at], offset)
    op: Op = kind(**{key: _READ[str(field.type)](said[key]) for key, field in parts.items()})
    return op


def _read_one(wanted: type, value: Any) -> Any:
    _want(type(value) is wanted and (wanted is not int or _is_int(value)), f"expected {wanted.__name__}, found", value)
    return value


def _read_float(value: Any) -> float:
    _want(type(value) is str and len(value) < 100, "expected a number as float.hex() writes it, found", value)
    return float.fromhex(value)


def _read_maybe(value: Any) -> float | None:
    return None if value is None else _read_float(value)


def _read_many(one: Callable[[Any], Any], value: Any) -> tuple[Any, ...]:
    _want(type(value) is list, "expected a list, found", value)
    return tuple(map(one, value))


def _read_ints(value: Any, least: int = -LIMIT) -> tuple[int, ...]:
    _want(type(value) is list and all(_is_int(one) and one >= least for one in value), "expected numbers, found", value)
    return tuple(value)


def _read_range(value: Any) -> range:
    bounds = _read_ints(value, least=0)
    _want(len(bounds) == 3 and bounds[2] > 0, "expected [start, stop, step], found", value)
    return range(*bounds)


_READ: dict[str, Callable[[Any], Any]] = {
    **{kind.__name__: partial(_read_one, kind) for kind in (int, str, bool)},
    "float": _read_float,
    "float | None": _read_maybe,
    "Dims": partial(_read_ints, least=0),
    **dict.fromkeys(("tuple[int, ...]", "tuple[int, int]"), _read_ints),
    "tuple[str, ...]": partial(_read_many, partial(_read_one, str)),
    "tuple[float, ...]": partial(_read_many, _read_float),
    "Box": partial(_read_many, _read_range),
}
