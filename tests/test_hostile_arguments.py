"""Arguments of every kind to everything public: an answer, an error of lazysd, or one that names the argument."""

from __future__ import annotations

import functools
import inspect
import itertools
import traceback
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from checkpoints import random_hf, write

import lazysd
import lazysd.casting
import lazysd.checking
import lazysd.distributed
import lazysd.merging
import lazysd.overview
import lazysd.quantization
import lazysd.renaming
from lazysd import layouts, testing
from lazysd.arguments import MAX_DEPTH, checked
from lazysd.errors import LazysdError

GOLDEN = Path(__file__).resolve().parent / "golden"


def nested(depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for _ in range(depth):
        made = {"a": made}
    return made


def cyclic() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


def lazy() -> lazysd.LazyTensor:
    return lazysd.from_torch(torch.arange(6.0).reshape(2, 3))


# Made anew for each call: calls may use them up.
HOSTILE: dict[str, Callable[[], Any]] = {
    **{repr(value): functools.partial(lambda value: value, value) for value in (None, True, -1, 0, 2**62, 10**30)},
    **{repr(value): functools.partial(float, value) for value in ("nan", "inf")},
    "10 ** 5000": lambda: 10**5000,
    "no text": lambda: "",
    "null character": lambda: "a\0b",
    "half a surrogate pair": lambda: "\ud800",
    "long text": lambda: "x" * 100_000,
    "5,000 digits": lambda: "9" * 5000 + "GB",
    "digits of a device": lambda: "cuda:" + "9" * 30,
    **{text: functools.partial(str, text) for text in ("cuda", "cuda:99", "xla", "**[", "(((((", "{a}.{a}", "a -> b")},
    "bytes": lambda: b"\xff\0",
    "no list": list,
    "list of None": lambda: [None],
    "list of itself": cyclic,
    "tuple of texts": lambda: ("a", "b"),
    "no mapping": dict,
    "mapping to None": lambda: {"a": None},
    "mapping of numbers": lambda: {1: lazy()},
    "mapping of surrogates": lambda: {"\ud800": lazy()},
    "deep mapping": lambda: nested(5000),
    "array": lambda: np.zeros((2, 3)),
    "int8": lambda: torch.zeros(2, dtype=torch.int8),
    "meta": lambda: torch.empty(2, 3, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "complex": lambda: torch.zeros(2, 3, dtype=torch.complex64),
    "dtype": lambda: torch.float16,
    "path": lambda: Path("nowhere"),
    "long path": lambda: Path("x" * 5000),
    "generator": lambda: (item for item in ()),
    "object": object,
    "function": lambda: lambda: None,
    "class": lambda: int,
    "lazy": lazy,
    "module": lambda: torch.nn.Linear(2, 2),
    "error": lambda: ValueError("x"),
}


FUNCTIONS = ("function", "class", "module")


class Case(NamedTuple):
    """A callable and good arguments for it, each made when it is needed."""

    function: Callable[..., Any]
    good: dict[str, Callable[[], Any]]


@functools.cache
def source() -> lazysd.Checkpoint:
    return lazysd.Checkpoint(
        {key: lazysd.from_torch(tensor) for key, tensor in random_hf().items()},
        config={"model_type": "qwen3_moe", "num_experts": 3},
    )


@functools.cache
def golden(name: str) -> lazysd.Checkpoint:
    return lazysd.open(GOLDEN / name)


numbers = itertools.count()


def unused(kind: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    return lambda: kind(f"hostile{next(numbers)}", *args)


def same() -> Callable[[Any], Any]:
    return lambda tensors: tensors


GOOD: dict[str, Callable[[], Any]] = {
    **dict.fromkeys(("a", "b", "self", "ckpt", "checkpoint", "other"), source),
    **dict.fromkeys(("tensors", "mapping"), lambda: dict(source())),
    **dict.fromkeys(("state_dict", "found", "expected"), lambda: {"a": torch.zeros(2)}),
    **dict.fromkeys(("convert", "forward", "backward", "ours", "reference"), same),
    "to": lambda: "nemo",
    "sizes": lambda: {"e": 3, "g": 2, "i": 5, "h": 4},
    "key": lambda: "x",
    "node": lazy,
    "tensor": lambda: torch.zeros(2),
    "family": lambda: "qwen3_moe",
}


def case(function: Callable[..., Any], /, **good: Callable[[], Any]) -> Case:
    return Case(function, {**GOOD, **good})


def cases(folder: Path) -> dict[str, Case]:
    """Everything public by its name."""
    path, layout = folder / "src", layouts.get("nemo")
    write(path, random_hf(), 2, {"model_type": "qwen3_moe", "num_experts": 3})
    sample, module = {"weight": lazy()}, functools.partial(torch.nn.Linear, 3, 2, bias=False)
    of_lazysd = {
        "Checkpoint": case(lazysd.Checkpoint),
        "cached": case(lazysd.cached),
        "compare": case(lazysd.compare),
        "concat": case(lazysd.concat, tensors=lambda: [lazy()] * 2),
        "convert": case(lazysd.convert),
        "from_torch": case(lazysd.from_torch),
        "load_into": case(lazysd.load_into, module=module, ckpt=lambda: sample),
        "open": case(lazysd.open, path=lambda: path),
        "stack": case(lazysd.stack, tensors=lambda: [lazy()] * 2),
        "casting.cast_checkpoint": case(lazysd.casting.cast_checkpoint, dtype=lambda: "f32"),
        "checking.check_folder": case(lazysd.checking.check_folder, path=lambda: path),
        "merging.merge": case(
            lazysd.merging.merge,
            base=lambda: golden("qwen3_moe_tiny"),
            adapter=lambda: golden("peft_paramwrapper_r3"),
        ),
        "overview.overview": case(lazysd.overview.overview),
        "quantization.dequantize": case(lazysd.quantization.dequantize),
        "quantization.quantize": case(lazysd.quantization.quantize, scheme=lambda: "mxfp4"),
        "renaming.rename_keys": case(lazysd.renaming.rename_keys, rules=lambda: [("model*", "b*")]),
        "distributed.save": case(lazysd.distributed.save, dst=lambda: folder / f"out{next(numbers)}"),
        "distributed.LazyStorageReader": case(lazysd.distributed.LazyStorageReader),
        "distributed.experts_of": case(lazysd.distributed.experts_of, mesh=lambda: None, num_experts=lambda: 4),
    }
    of_layouts = {
        "Dialect": case(layouts.Dialect, name=lambda: "x", description=lambda: "x", form=lambda: None),
        "Experts": case(layouts.Experts),
        "Family": case(layouts.Family, name=lambda: "x", model_types=lambda: ("x",)),
        "Layout": case(layouts.Layout, name=lambda: "x"),
        "Rule": case(layouts.Rule, hf=lambda: "{a}.x", to=lambda: "{a}.y"),
        "Speech": case(layouts.Speech),
        "all_layouts": case(layouts.all_layouts),
        "apply": case(layouts.apply, layout=lambda: layout, forward=lambda: True),
        "choose": case(layouts.choose),
        "convert": case(layouts.convert, origin=lambda: layouts.get("hf"), target=lambda: layout),
        "dense_layout": case(layouts.dense_layout),
        "dialects": case(layouts.dialects),
        "explain": case(layouts.explain),
        "families": case(layouts.families),
        "find": case(layouts.find),
        "get": case(layouts.get, name=lambda: "nemo"),
        "load": case(layouts.load, file=lambda: "nowhere.toml"),
        "names": case(layouts.names),
        "parse_axes": case(layouts.parse_axes, text=lambda: "a b -> b a"),
        "parse_key": case(layouts.parse_key, text=lambda: "{a}.x"),
        "register": case(layouts.register, layout=unused(layouts.Layout, "qwen3_moe", layout.rules)),
        "register_dialect": case(layouts.register_dialect, dialect=unused(layouts.Dialect, "x", None)),
        "register_family": case(layouts.register_family, family=unused(layouts.Family, ("x",))),
        "resolve": case(layouts.resolve, name=lambda: "nemo"),
    }
    of_testing = {
        "StateDict": case(testing.StateDict, tensors=lambda: {"a": torch.zeros(2)}),
        "assert_peak_memory": case(testing.assert_peak_memory, action=lambda: dict, max_nbytes=lambda: 1),
        "assert_reads_only": case(testing.assert_reads_only, action=lambda: source),
        "assert_refuses": case(testing.assert_refuses, key=lambda: "a"),
        "assert_round_trip": case(testing.assert_round_trip),
        "assert_same_bytes": case(testing.assert_same_bytes),
        "assert_same_conversion": case(testing.assert_same_conversion),
        "checkpoints": case(testing.checkpoints),
        "lazy_tensors": case(testing.lazy_tensors),
        "recorded_reads": case(testing.recorded_reads),
        "slices": case(testing.slices, shape=lambda: (2, 3)),
        "state_dict": case(testing.state_dict, entries=lambda: {"a": ("F32", (2,))}),
        "state_dicts": case(testing.state_dicts),
        "state_dicts_like": case(testing.state_dicts_like, model=lambda: {"a": torch.zeros(2)}),
    }
    of_checkpoint = {
        name: case(getattr(lazysd.Checkpoint, name), dst=lambda: folder / f"out{next(numbers)}", globs=lambda: "*")
        for name in ("__contains__", "__getitem__", "__or__", "convert", "drop", "get", "iter_tensors", "plan", "save")
    }
    of_checkpoint |= {
        "like": case(lazysd.Checkpoint.like),
        "map": case(lazysd.Checkpoint.map, function=lambda: lambda *given: given[-1]),
        "rename": case(lazysd.Checkpoint.rename, names=dict),
        "select": case(lazysd.Checkpoint.select, globs=lambda: "*"),
        "stats": case(lazysd.Checkpoint.stats, globs=lambda: "*"),
    }
    of_tensors = {
        name: case(getattr(lazysd.LazyTensor, name), self=lazy)
        for name in ("__getitem__", "cuda", "is_contiguous", "materialize", "numpy", "stats", "to")
    }
    return {
        **of_lazysd,
        **{f"layouts.{name}": one for name, one in of_layouts.items()},
        **{f"testing.{name}": one for name, one in of_testing.items()},
        **{f"Checkpoint.{name}": one for name, one in of_checkpoint.items()},
        **{f"LazyTensor.{name}": one for name, one in of_tensors.items()},
    }


# Public names that are no door of their own: rooms, results, and what other tests give arguments to.
ASIDE = {
    *("__version__", "adapters", "dialects", "distributed", "errors", "families", "layouts", "testing"),
    *("LazyTensor", "layouts.Choice", "layouts.Found", "layouts.LayoutError", "testing.Drawn"),
    *("distributed.LazyDTensor", "distributed.world"),
    *(f"Checkpoint.{name}" for name in ("close", "items", "keys", "values")),
}


def test_everything_public_is_here(tmp_path: Path) -> None:
    public = {*lazysd.__all__}
    for room in (layouts, testing, lazysd.distributed):
        public |= {f"{room.__name__.removeprefix('lazysd.')}.{name}" for name in room.__all__}
    public |= {
        f"Checkpoint.{name}"
        for name in dir(lazysd.Checkpoint)
        if not name.startswith("_") and callable(getattr(lazysd.Checkpoint, name))
    }
    known = cases(tmp_path)
    assert public - known.keys() - ASIDE == set()
    assert not known.keys() & ASIDE


def calls(one: Case) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """(parameter, hostile value, the call) for every parameter and value."""
    parameters = inspect.signature(one.function).parameters.values()
    for parameter, (label, hostile) in itertools.product(parameters, HOSTILE.items()):
        is_called = "Callable" in str(parameter.annotation) or "Convert" in str(parameter.annotation)
        if parameter.name == "self" or (is_called and label in FUNCTIONS):  # what these raise is theirs
            continue
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for other in parameters:
            if other is not parameter and (other.default is not other.empty or other.name not in one.good):
                continue  # optional
            value = hostile() if other is parameter else one.good[other.name]()
            if other.kind is other.VAR_KEYWORD:
                kwargs["anything"] = value
            elif other.name == "self" or other.kind in (other.VAR_POSITIONAL, other.POSITIONAL_ONLY):
                args.append(value)
            else:
                kwargs[other.name] = value
        yield parameter.name, label, functools.partial(one.function, *args, **kwargs)


def use(result: Any) -> None:
    """Look at a result, as whoever called would."""
    if isinstance(result, types.GeneratorType):
        for _ in result:
            pass
    elif isinstance(result, lazysd.Checkpoint):
        repr(result)
        result.plan()
    elif isinstance(result, lazysd.LazyTensor):
        result.materialize()


def fault_of(error: BaseException, called: str) -> str | None:
    """What is wrong with an exception: its class, or that nobody raised it on purpose."""
    if isinstance(error, LazysdError) or (called.startswith("testing.assert") and type(error) is AssertionError):
        return None
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{type(error).__name__}: {str(error)[:150]} ({last.filename}:{last.lineno})"
    if type(error) not in (TypeError, ValueError, IndexError, RuntimeError):
        return where
    on_purpose = (last.line or "").strip().startswith("raise") and "lazysd" in Path(last.filename).parts
    binding = "argument" in str(error) and Path(last.filename).name in ("inspect.py", "dataclasses.py")
    unhashable = "unhashable type" in str(error) and called.endswith("__contains__")  # as of a dict
    return None if on_purpose or binding or unhashable else where


def test_what_checked_understands() -> None:
    """Each form of annotation, by a value that fits and one that does not."""

    @checked
    def function(
        text: str = "",
        number: int | None = None,
        ratio: float = 0.0,
        flag: bool = False,
        table: Mapping[str, Any] | None = None,
        names: Iterable[str] = (),
        pair: tuple[str, int] = ("", 0),
        tensor: torch.Tensor | None = None,
        lazies: Mapping[str, lazysd.LazyTensor] | None = None,
        call: Callable[[int], int] | None = None,
        *rest: str,
    ) -> int:
        return 1

    fit: dict[str, Any] = {
        "text": "é",
        "number": np.int64(3),
        "ratio": 1,
        "flag": np.bool_(True),
        "table": nested(MAX_DEPTH - 1),
        "names": {"a"},
        "pair": ("a", 1),
        "tensor": torch.nn.Parameter(torch.zeros(1)),
        "lazies": {"a": lazy()},
        "call": int,
    }
    unfit: dict[str, Any] = {
        "text": "\udc00",
        "number": True,
        "ratio": "1",
        "flag": 1,
        "table": nested(MAX_DEPTH + 1),
        "names": "abc",
        "pair": ("a", "b"),
        "tensor": lazy(),
        "lazies": {"a": torch.zeros(1)},
        "call": 3,
    }
    assert function(**fit) == 1
    for name, value in unfit.items():
        with pytest.raises(TypeError, match=rf"function\(\): {name} has to be "):
            function(**{name: value})
    with pytest.raises(TypeError, match="rest has to be str, not tuple"):
        function(*fit.values(), "a", 3)


def test_hostile_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(layouts.registry, "_LAYOUTS", dict(layouts.registry._LAYOUTS))
    for table in ("_FAMILIES", "_DIALECTS", "_DERIVED"):
        monkeypatch.setattr(layouts.registry, table, dict(getattr(layouts.registry, table)))
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    faults, count = [], 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, one in cases(tmp_path).items():
            for parameter, label, call in calls(one):
                count += 1
                try:
                    use(call())
                except BaseException as error:  # noqa: BLE001 - its class is what is looked at
                    if (fault := fault_of(error, name)) is not None:
                        faults.append(f"{name}({parameter}={label}): {fault}")
    torch.distributed.destroy_process_group()
    assert not faults, f"{len(faults)} of {count}:\n" + "\n".join(faults)
    assert count > 5000
