"""Any arguments to methods and torch functions: torch's result, or an exception; never another value."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lazysd
from lazysd.errors import LazysdError

MAX_EXAMPLES = 60  # of each name
REFUSALS = (TypeError, ValueError, IndexError, RuntimeError, NotImplementedError, LazysdError)

DIMS = st.lists(st.sampled_from((0, 1, 1, 2, 3, 4, 6)), max_size=4).map(tuple)
INTS = st.integers(-6, 7)
ODD = st.sampled_from(
    (
        *(None, True, np.bool_(True), torch.tensor(True), 1.5, float("nan"), float("inf"), 1j, "1", b"1", "cpu"),
        *(10**30, -(10**30), 2**63, [], [0], [None], (), (0, 0), (1, 0), range(2), slice(1), {}, ..., object()),
        *(np.array([0, 1]), np.array(1.5), torch.tensor([1, 0]), torch.float16, torch.device("cpu")),
    )
)
INT = st.one_of(INTS, INTS, INTS, INTS, INTS, ODD)
INT_LIST = st.one_of(*([st.lists(INTS, max_size=4)] * 4), st.lists(INT, max_size=4), ODD, INTS)
INT_LIST = st.one_of(INT_LIST, INT_LIST.map(lambda x: tuple(x) if isinstance(x, list) else x))
PLACE = st.sampled_from(
    (torch.float16, torch.float64, torch.int32, "cpu", "meta", torch.device("cpu"), "nowhere", 10**30, -1)
)

# What each takes: a strategy an argument.
ARGUMENTS: dict[str, tuple[st.SearchStrategy[Any], ...]] = {
    "permute": (INT_LIST,),
    "transpose": (INT, INT),
    "swapaxes": (INT, INT),
    "swapdims": (INT, INT),
    "movedim": (INT_LIST, INT_LIST),
    "moveaxis": (INT_LIST, INT_LIST),
    "t": (),
    "reshape": (INT_LIST,),
    "flatten": (INT, INT),
    "unflatten": (INT, INT_LIST),
    "unsqueeze": (INT,),
    "squeeze": (INT_LIST,),
    "select": (INT, INT),
    "narrow": (INT, INT, INT),
    "split": (INT_LIST, INT),
    "chunk": (INT, INT),
    "unbind": (INT,),
    "to": (st.one_of(PLACE, ODD), st.one_of(PLACE, ODD, st.booleans()), st.one_of(st.booleans(), ODD)),
    **dict.fromkeys(("float", "double", "half", "bfloat16", "contiguous", "detach", "clone"), ()),
    **dict.fromkeys(("dim", "ndimension", "numel", "nelement", "element_size"), ()),
    **dict.fromkeys(("is_floating_point", "is_complex", "is_contiguous"), ()),
    "size": (INT,),
    "stride": (INT,),
    "__getitem__": (INT_LIST,),
    "__reversed__": (),
    "T": (),
    "mT": (),
    "H": (),
    "mH": (),
}
KEYWORDS = {
    "transpose": ("dim0", "dim1"),
    "movedim": ("source", "destination"),
    "flatten": ("start_dim", "end_dim"),
    "unflatten": ("dim", "sizes"),
    "unsqueeze": ("dim",),
    "squeeze": ("dim",),
    "select": ("dim", "index"),
    "narrow": ("dim", "start", "length"),
    "split": ("split_size", "dim"),
    "chunk": ("chunks", "dim"),
    "unbind": ("dim",),
    "permute": ("dims",),
    "reshape": ("shape",),
    "size": ("dim",),
    "to": ("dtype", "device", "copy"),
}


def outcome(call: Any) -> Any:
    """What a call gives, as plain tensors and numbers; or the exception."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # .T of other than matrices is deprecated by torch
            result = call()
    except Exception as error:  # noqa: BLE001 - the exception is what is compared
        return error
    return result


def plain(result: Any) -> Any:
    if isinstance(result, lazysd.LazyTensor):
        return result.materialize()
    if isinstance(result, (tuple, list)) and not isinstance(result, torch.Size):
        return [plain(item) for item in result]
    return result


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, torch.Tensor):
        if not isinstance(ours, torch.Tensor) or (ours.shape, ours.dtype, ours.device) != (
            theirs.shape,
            theirs.dtype,
            theirs.device,
        ):
            return False
        return theirs.is_meta or not theirs.numel() or torch.equal(bits(ours), bits(theirs))
    if isinstance(theirs, (list, tuple)):
        return len(ours) == len(theirs) and all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    return type(ours) is type(theirs) and bool(ours == theirs)


def check(call: Any, lazy: Any, eager: Any) -> bool:
    """Whether both gave the same result. An exception of ours has to be one for users; torch's has to be met by one."""
    theirs, ours = outcome(lambda: call(eager)), outcome(lambda: plain(call(lazy)))
    if isinstance(ours, Exception):
        assert isinstance(ours, REFUSALS), (ours, theirs)
        assert str(ours).strip(), ours
        return False
    assert not isinstance(theirs, Exception), f"torch refuses ({theirs}), we gave {ours}"
    assert same(ours, plain(theirs)), (ours, theirs)
    return True


def eager_of(dims: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    numel = int(np.prod(dims)) if dims else 1
    return torch.arange(numel).reshape(dims).to(dtype)


def sensible(draw: Any, name: str, dims: tuple[int, ...]) -> tuple[Any, ...]:
    """Arguments that torch takes, as a rule."""
    ndim = len(dims)
    axis = draw(st.integers(-ndim, ndim - 1)) if ndim else 0
    size = dims[axis] if ndim else 0
    inside = st.integers(0, size)
    some = list(draw(st.permutations(range(ndim))))[: draw(st.integers(0, ndim))]
    if name in ("permute", "reshape"):
        order = list(draw(st.permutations(range(ndim))))
        return (order if name == "permute" else [dims[k] for k in order],)
    if name in ("movedim", "moveaxis"):
        return some, list(draw(st.permutations(range(ndim))))[: len(some)]
    if name == "unflatten":
        return axis, draw(st.sampled_from(([size, 1], [1, -1], [-1], [2, size // 2], (1, size, 1))))
    start, at = draw(inside), draw(st.integers(-size, max(size - 1, 0)))
    cuts = [0, *sorted((start, draw(inside))), size]
    return {
        "flatten": (0, axis),
        "unsqueeze": (axis,),
        "squeeze": (draw(st.sampled_from((axis, tuple(some)))),),
        "select": (axis, at),
        "narrow": (axis, draw(st.sampled_from((start, start - size))), draw(st.integers(0, size - start))),
        "split": (draw(st.sampled_from((max(start, 1), [b - a for a, b in pairwise(cuts)]))), axis),
        "chunk": (start + 1, axis),
        "unbind": (axis,),
        "to": (draw(st.sampled_from((torch.float16, "cpu", torch.device("cpu"), torch.ones(1).double()))),),
        "size": (axis,),
        "stride": (axis,),
        "__getitem__": (at,),
    }.get(name, (axis, -1)[: len(ARGUMENTS[name])])


@st.composite
def calls(draw: Any, name: str, dims: tuple[int, ...]) -> Any:
    """One call of a method or torch function: (description, function of the tensor)."""
    args = sensible(draw, name, dims) if draw(st.booleans()) else tuple(draw(kind) for kind in ARGUMENTS[name])
    if draw(st.integers(0, 3)) == 0:
        args = args[: draw(st.integers(0, len(args)))]
    if draw(st.integers(0, 15)) == 0:
        args = (*args, draw(ODD))
    if name == "squeeze":  # None is our default, torch has none
        args = tuple(arg for arg in args if arg is not None)
    if name in ("T", "mT", "H", "mH"):
        return name, lambda x: getattr(x, name)
    if name in KEYWORDS and draw(st.integers(0, 3)) == 0:
        first = draw(st.integers(0, len(args)))
        kwargs = dict(zip(KEYWORDS[name][first:], args[first:], strict=False))
        if draw(st.integers(0, 9)) == 0:
            kwargs["alien"] = 1
        return (name, args[:first], kwargs), lambda x: getattr(x, name)(*args[:first], **kwargs)
    if callable(getattr(torch, name, None)) and draw(st.booleans()):
        return ("torch", name, args), lambda x: getattr(torch, name)(x, *args)
    if args and isinstance(args[0], (list, tuple)) and len(args) == 1 and name in ("permute", "reshape"):
        return (name, *args[0]), lambda x: getattr(x, name)(*args[0])
    return (name, args), lambda x: getattr(x, name)(*args)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_any_arguments(name: str) -> None:
    @settings(max_examples=MAX_EXAMPLES)
    @given(DIMS, st.sampled_from((torch.float32, torch.bfloat16, torch.int64, torch.complex64)), st.data())
    def run(dims: tuple[int, ...], dtype: torch.dtype, data: Any) -> None:
        if dtype.is_complex and name in ("H", "mH"):
            return  # conjugated, so these have to be read, and say so
        eager = eager_of(dims, dtype)
        _, call = data.draw(calls(name, dims))
        check(call, lazysd.from_torch(eager.clone()), eager)

    run()


PLAIN: dict[str, tuple[Any, ...]] = {
    "permute": ((2, 0, 1),),
    "movedim": ((0, 1), (1, -1)),
    "moveaxis": (0, 2),
    "reshape": ((4, -1),),
    "flatten": (1, 2),
    "unflatten": (2, (2, -1)),
    "squeeze": ((0, 1),),
    "narrow": (2, -3, 2),
    "split": ([1, 2], 1),
    "chunk": (2, -1),
    "to": (torch.float64,),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims", "select"), (1, 2)),
    **dict.fromkeys(("unsqueeze", "unbind", "size", "stride", "__getitem__"), (1,)),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_plain_arguments_are_taken(name: str) -> None:
    """So that the properties do not pass because everything is refused."""
    eager = eager_of((2, 2) if name in ("t", "H", "mH") else (2, 3, 4), torch.float32)
    lazy = lazysd.from_torch(eager.clone())
    if name in ("T", "mT", "H", "mH"):
        assert check(lambda x: getattr(x, name), lazy, eager)
        return
    args = PLAIN.get(name, ())
    assert check(lambda x: getattr(x, name)(*args), lazy, eager)
    if callable(getattr(torch, name, None)):
        assert check(lambda x: getattr(torch, name)(x, *args), lazy, eager)


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.uint8, torch.int64, torch.bool)
DTYPES += (torch.complex64, torch.float8_e4m3fn, torch.complex128)


@st.composite
def joined(draw: Any) -> list[tuple[str, torch.Tensor]]:
    """Tensors to join, as a rule of shapes that fit: (lazy or plain, tensor)."""
    dims = draw(DIMS)
    axis = draw(st.integers(0, max(len(dims) - 1, 0)))
    parts = []
    for _ in range(draw(st.integers(1, 11))):
        kind = draw(st.integers(0, 19))
        size = draw(st.integers(0, 3))
        shape = (
            (0,) if kind == 0 else draw(DIMS) if kind == 1 else (*dims[:axis], size, *dims[axis + 1 :]) if dims else ()
        )
        dtype = draw(st.sampled_from(DTYPES if draw(st.booleans()) else DTYPES[:2]))
        parts.append((draw(st.sampled_from(("lazy", "lazy", "plain"))), eager_of(shape, dtype)))
    return parts


@settings(max_examples=400)
@given(
    st.sampled_from(("cat", "stack", "concat", "concatenate")), joined(), st.one_of(st.integers(-3, 3), ODD), st.data()
)
def test_joining_any_tensors(name: str, parts: list[tuple[str, torch.Tensor]], dim: Any, data: Any) -> None:
    if name == "stack":
        parts = [(kind, parts[0][1].to(tensor.dtype)) for kind, tensor in parts]
    keyword = data.draw(st.sampled_from(("", "dim", "axis")))
    function = getattr(torch, name)

    def call(tensors: Any) -> Any:
        if data_default:
            return function(tensors)
        return function(tensors, **{keyword: dim}) if keyword else function(tensors, dim)

    data_default = data.draw(st.booleans())
    # complex128 has no place in a file: such tensors stay plain
    lazy = [
        lazysd.from_torch(tensor.clone()) if kind == "lazy" and tensor.dtype != torch.complex128 else tensor
        for kind, tensor in parts
    ]
    check(call, lazy, [tensor for _, tensor in parts])


@pytest.mark.parametrize("name", ["cat", "stack"])
def test_joining_is_lazy_and_promotes(name: str) -> None:
    for dtypes in ((torch.bfloat16, torch.float16), (torch.uint8, torch.int8), (torch.bool, torch.complex64)):
        eager = [torch.ones(2, 3).to(dtype) for dtype in dtypes]
        made = getattr(torch, name)([lazysd.from_torch(eager[0]), eager[1]])
        assert isinstance(made, lazysd.LazyTensor)
        assert same(made.materialize(), getattr(torch, name)(eager))
    empty = torch.cat([torch.empty(0, dtype=torch.float64), lazysd.from_torch(torch.ones(2, 3))])
    assert isinstance(empty, lazysd.LazyTensor)
    assert same(empty.materialize(), torch.ones(2, 3).double())  # the empty vector counts for the dtype


INDEX = st.one_of(
    *([st.integers(-4, 4)] * 3),
    st.slices(5),
    st.builds(slice, INT, INT, INT),
    st.sampled_from(
        (None, ..., [0, -1], [True, False, True], torch.tensor([1, 0]), np.array([0, 0, 1]), torch.tensor(2))
    ),
    ODD,
)


@settings(max_examples=600)
@given(DIMS, st.one_of(INDEX, st.lists(INDEX, max_size=4).map(tuple)))
def test_any_subscript(dims: tuple[int, ...], key: Any) -> None:
    eager = eager_of(dims, torch.float32)
    theirs, ours = outcome(lambda: eager[key]), outcome(lambda: lazysd.from_torch(eager)[key].materialize())
    if isinstance(ours, Exception):
        assert isinstance(ours, REFUSALS), ours
        assert str(ours).strip()
    elif isinstance(theirs, Exception):
        assert isinstance(theirs, (TypeError, OverflowError, IndexError, RuntimeError)), theirs
        assert same(ours, torch.from_numpy(eager.numpy()[key].copy())), "what torch cannot read means what numpy means"
    else:
        assert same(ours, theirs)
