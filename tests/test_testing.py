"""lazysd.testing: what it must catch is caught, what it draws is what it says, and its documents run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import noise
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException
from safetensors.torch import save_file

import lazysd
from lazysd import layouts, testing
from lazysd.testing import assert_reads_only, assert_round_trip, assert_same_bytes, recorded_reads

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = sorted({layout.family for layout in layouts.all_layouts()})


def test_every_bit_counts() -> None:
    nan = torch.tensor([0x7FC0, 0x7FC1], dtype=torch.int16).view(torch.bfloat16)
    assert_same_bytes(nan, nan.clone())
    with pytest.raises(AssertionError, match=r"1 of 2 .* at \(1,\): found bits 0x7fc0, expected 0x7fc1"):
        assert_same_bytes(nan[:1].expand(2), nan)
    with pytest.raises(AssertionError, match="0x80000000"):
        assert_same_bytes(torch.tensor(0.0), torch.tensor(-0.0))
    with pytest.raises(AssertionError, match=r"found torch.float32 \[2\], expected torch.int32 \[2\]"):
        assert_same_bytes(torch.zeros(2), torch.zeros(2, dtype=torch.int32))
    with pytest.raises(AssertionError, match=r"\[2, 1\], expected torch.float32 \[2\]"):
        assert_same_bytes(torch.zeros(2, 1), torch.zeros(2))
    assert_same_bytes(torch.zeros(0, 3), torch.zeros(0, 3))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float8_e5m2, torch.float16, torch.float64])
def test_one_flipped_bit_is_found(dtype: torch.dtype) -> None:
    raw = torch.randint(0, 2, (24 * dtype.itemsize,), dtype=torch.uint8)
    tensor = raw.clone().view(dtype).view(2, 3, 4)
    raw[11 * dtype.itemsize] ^= 1
    with pytest.raises(AssertionError, match=r"1 of 24 .*\(0, 2, 3\)"):
        assert_same_bytes({"w": raw.view(dtype).view(2, 3, 4)}, {"w": tensor})


def test_keys_are_listed() -> None:
    tensors = {f"k{n}": torch.zeros(1) for n in range(9)}
    with pytest.raises(AssertionError, match="8 missing: k1, k2, k3, k4, k5, …\n1 unexpected: x"):
        assert_same_bytes({"k0": torch.zeros(1), "x": torch.zeros(1)}, tensors)
    with pytest.raises(AssertionError, match=r"k4: 1 of 1(.|\n)*and 4 more"):
        assert_same_bytes({key: tensor + 1 for key, tensor in tensors.items()}, tensors)


def test_lazy_tensors_on_either_side() -> None:
    tensor = noise((3, 4))
    lazy = lazysd.from_torch(tensor)
    assert_same_bytes({"w": lazy.T}, {"w": tensor.T})
    assert_same_bytes(tensor, lazy)
    with pytest.raises(AssertionError, match="differ"):
        assert_same_bytes(lazy.T.reshape(3, 4), tensor)


def identity(tensors: dict[str, Any]) -> dict[str, Any]:
    return tensors


def popping(tensors: dict[str, Any]) -> dict[str, Any]:
    return {key: tensors.pop(key) for key in list(tensors)}


BROKEN: dict[str, Any] = {
    "loses a key": (lambda tensors: dict(list(tensors.items())[1:]), "1 missing"),
    "adds a key": (lambda tensors: {**tensors, "more": torch.zeros(1)}, "1 unexpected: more"),
    "rounds": (lambda tensors: {k: t.to(torch.float8_e4m3fn).to(t.dtype) for k, t in tensors.items()}, "differ"),
    "swaps": (lambda tensors: dict(zip(tensors, reversed(tensors.values()), strict=True)), "there and back"),
    "edits": (lambda tensors: {k: t.view(torch.uint8).add_(1).view(t.dtype) for k, t in tensors.items()}, "edited its"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_converters_are_caught(name: str) -> None:
    broken, message = BROKEN[name]
    key = "model.layers.0.mlp.experts.{}.gate_proj.weight"
    state_dict = testing.state_dict({key.format(e): ("BF16", (3, 4)) for e in range(7)}, seed=1)
    for forward, backward in ((broken, identity), (identity, broken)):
        with pytest.raises(AssertionError, match=message):
            assert_round_trip(forward, backward, {key: tensor.clone() for key, tensor in state_dict.items()})


@given(testing.checkpoints(), st.sampled_from(["nemo", "hf-fused"]))
def test_lazysd_itself_passes(state_dict: dict[str, torch.Tensor], layout: str) -> None:
    def forward(tensors: dict[str, Any]) -> Any:
        return lazysd.convert(popping(tensors), layout, family="qwen3_moe")

    def backward(tensors: dict[str, Any]) -> Any:
        return lazysd.convert(tensors, "hf", source=layout, family="qwen3_moe")

    assert_round_trip(forward, backward, state_dict)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_drawn(family: str) -> None:
    """And is recognised, and every rule of its layout `hf` has keys in it."""

    @given(testing.checkpoints(family))
    @settings(max_examples=10, suppress_health_check=[HealthCheck.differing_executors])
    def check(state_dict: testing.StateDict) -> None:
        lazy = {key: lazysd.from_torch(t) for key, t in state_dict.items()}
        ckpt = lazysd.convert(lazy, "hf", family=family, config=state_dict.config)
        assert ckpt.layout == "hf"
        for template in layouts.get("hf", family).own_keys:
            assert any(template.match(key) for key in state_dict)
        assert_same_bytes(ckpt, state_dict)

    check()


def test_nan_payloads_are_drawn() -> None:
    def payloads(state_dict: dict[str, torch.Tensor]) -> bool:
        found = [t.view(torch.int16)[t.isnan()] for t in state_dict.values() if t.dtype == torch.bfloat16]
        return bool(found) and len(torch.cat(found).unique()) > 1

    assert find(testing.checkpoints(), payloads)


@given(st.lists(st.integers(0, 5), max_size=4), st.data())
def test_slices_fit_the_shape(shape: list[int], data: st.DataObject) -> None:
    tensor = torch.arange(torch.Size(shape).numel()).view(shape)
    key = data.draw(testing.slices(shape))
    assert torch.equal(lazysd.from_torch(tensor)[key].materialize(), tensor[key])


@pytest.mark.parametrize("kind", [int, slice, list, torch.Tensor, type(None), type(...)])
def test_slices_of_every_kind_are_drawn(kind: type) -> None:
    assert find(testing.slices((3, 4)), lambda key: any(isinstance(item, kind) for item in key)) is not None


@given(testing.lazy_tensors(codes=("BF16", "F8_E4M3"), max_ops=3))
def test_expected_is_what_torch_has(drawn: Any) -> None:
    assert drawn.expected.dtype in (torch.bfloat16, torch.float8_e4m3fn)
    assert_same_bytes(drawn.node, drawn.expected)


@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_reads_beyond_what_is_allowed_are_caught(tmp_path: Path, io: str) -> None:
    save_file({"a": torch.zeros(4, 100), "b": torch.ones(4, 100)}, tmp_path / "m.safetensors")
    ckpt = lazysd.open(tmp_path / "m.safetensors", io=io)
    a, b = ckpt["a"], ckpt["b"]
    assert_reads_only(lambda: (repr(a), a[1:], a.reads()))
    assert torch.equal(assert_reads_only(a.materialize, [a], exactly=True), torch.zeros(4, 100))
    assert_reads_only(a[1].materialize, [b, a])
    with pytest.raises(
        AssertionError, match=r"1 ranges were read, but not part of what is allowed:\n  .*m.safetensors"
    ):
        assert_reads_only(a.materialize)
    with pytest.raises(AssertionError, match="400 bytes"):
        assert_reads_only(b[2].materialize, [a])
    with pytest.raises(AssertionError, match="not part of what is allowed"):
        assert_reads_only(a[0:2].materialize, [a[0:1]])
    with pytest.raises(AssertionError, match=r"allowed, but not read:(.|\n)*400 bytes"):
        assert_reads_only(a[1].materialize, [a[1], b[3]], exactly=True)
    with recorded_reads() as noted:
        a[3].materialize()
    assert sum(nbytes for _, _, nbytes in noted) == 400
    a.materialize()
    assert len(noted) == 1  # what happens afterwards is not noted


def run(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error::DeprecationWarning:lazysd", "-c", code, *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_without_hypothesis() -> None:
    code = """
import sys
sys.modules["hypothesis"] = None  # as if it were not installed
import torch, lazysd
lazysd.testing.assert_same_bytes(torch.zeros(2), torch.zeros(2))
for name in ("checkpoints", "lazy_tensors", "slices"):
    try:
        getattr(lazysd.testing, name)
    except ImportError as error:
        assert "pip install hypothesis" in str(error), error
    else:
        raise SystemExit(f"{name} came without hypothesis")
"""
    done = run(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_hypothesis_is_imported_by_the_strategies_only() -> None:
    code = "import sys, lazysd; lazysd.testing.assert_round_trip; print('hypothesis' in sys.modules)"
    assert run(code).stdout == "False\n"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        testing.nothing  # noqa: B018


TAUGHT = (ROOT / "docs" / "testing.md").read_text().partition("## Found in other")[0]
BLOCKS = re.findall(r"^```python\n(.*?)^```", TAUGHT, re.DOTALL | re.MULTILINE)
ELSE = "        else:\n            result[key] = tensor\n    for module"
SORTED = "sorted(experts.items())"
MUTANTS: dict[str, list[tuple[str, str]]] = {
    "sorts the experts as text": [(SORTED, "sorted(experts.items(), key=lambda item: str(item[0]))")],
    "experts of one digit": [(r"\.(\d+)\.(gate", r"\.(\d)\.(gate")],
    "layers of one digit": [(r"(.*\.experts)", r"(.*layers\.\d\..*\.experts)")],
    "takes layer 10 for layer 1": [
        ("found.groups()", 'found.groups()\n            module = re.sub(r"(layers.1)0", r"\\1", module)')
    ],
    "forgets q_proj": [(ELSE, ELSE.replace("else:", 'elif "q_proj" not in key:'))],
    "forgets shared experts": [(ELSE, ELSE.replace("else:", 'elif "shared_expert" not in key:'))],
    "forgets biases": [(ELSE, ELSE.replace("else:", 'elif not key.endswith("bias"):'))],
    "casts all to the first dtype": [
        ("modules, result = {}, {}", "modules, result, first = {}, {}, next(iter(tensors.values())).dtype"),
        (ELSE, ELSE.replace("= tensor", "= tensor.to(first)")),
    ],
    "reshapes for transposes, both ways": [
        ("t.T for _, t", "t.reshape(t.shape[::-1]) for _, t"),
        ('_proj.weight": t.T', '_proj.weight": t.reshape(t.shape[::-1])'),
    ],
    "up before gate, both ways": [
        ('stacked["gate"], stacked["up"]', 'stacked["up"], stacked["gate"]'),
        ('("gate", "up")', '("up", "gate")'),
    ],
    "converts one layer only": [
        ("for module, named in modules.items():", "for module, named in list(modules.items())[:1]:")
    ],
    "converts one layer, passes the others": [
        ("if found :=", 'if ("layers.1." not in key) and (found :='),
        ("fullmatch(key):", "fullmatch(key)):"),
    ],
    "does nothing at all": [
        ("    modules, result = {}, {}\n", "    return dict(tensors)\n    modules, result = {}, {}\n")
    ],
    "forgets the last expert": [("in enumerate(part)}", "in enumerate(part[:-1])}")],
    "up before gate on the way back": [('("gate", "up")', '("up", "gate")')],
    "rounds": [("torch.stack([t.T for", "torch.stack([t.T.to(torch.bfloat16).to(t.dtype) for")],
    "edits in place": [
        (
            "            module, expert",
            "            tensor.view(torch.uint8).bitwise_not_()\n            module, expert",
        )
    ],
    "adds a key": [
        ("    return result\n\n\ndef split", "    return {**result, 'more': torch.zeros(1)}\n\n\ndef split")
    ],
    "drops the sign of zeros": [("result[key] = tensor\n    for", "result[key] = tensor + 0\n    for")],
}


@pytest.mark.parametrize("fault", MUTANTS)
def test_planted_faults_are_found(fault: str) -> None:
    """Each in the code of docs/testing.md, within Hypothesis's usual 100 examples."""
    code = BLOCKS[0]
    for old, new in MUTANTS[fault]:
        assert code.count(old) == 1, f"{old!r} stands {code.count(old)} times in the example"
        code = code.replace(old, new)
    names: dict[str, Any] = {}
    exec(compile(code, fault, "exec"), names)
    quick = settings(max_examples=100, derandomize=True, database=None, deadline=None, phases=[Phase.generate])
    with pytest.raises(Exception) as caught:  # noqa: PT011 - a KeyError of the broken converter counts as well
        quick(names["test_there_and_back"])()
    assert not isinstance(caught.value, (HypothesisException, NameError, SyntaxError)), caught.value


def test_the_code_without_a_fault_passes_the_same_examples() -> None:
    names: dict[str, Any] = {}
    exec(compile(BLOCKS[0], "docs/testing.md", "exec"), names)
    settings(max_examples=100, derandomize=True, database=None, deadline=None)(names["test_there_and_back"])()


@pytest.mark.slow
def test_the_documented_examples_run(tmp_path: Path) -> None:
    assert len(BLOCKS) == 3
    for number, block in enumerate(BLOCKS):
        (tmp_path / f"test_block{number}.py").write_text(block)
    (tmp_path / "test_broken.py").write_text(BLOCKS[0].replace(SORTED, MUTANTS["sorts the experts as text"][0][1]))
    no_deadline = 'import hypothesis\nhypothesis.settings.register_profile("here", deadline=None)\n'  # busy machines
    (tmp_path / "conftest.py").write_text(no_deadline + 'hypothesis.settings.load_profile("here")\n')
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert "1 failed, 3 passed" in done.stdout, done.stdout
    assert "there and back is not the same" in done.stdout
    assert "lazysd.testing.state_dict({" in done.stdout


def test_what_is_drawn_is_what_breaks_converters() -> None:
    wanted: dict[str, Any] = {
        "ten and more experts": lambda sd: sd.sizes["e"] >= 10,
        "layers 1 and 10": lambda sd: (
            {"1", "10"} <= {key.split("layers.")[1].split(".")[0] for key in sd if "layers." in key}
        ),
        "a gap between layers": lambda sd: (
            any("layers.0." in key for key in sd)
            and not any("layers.1." in key for key in sd)
            and any("layers.2." in key for key in sd)
        ),
        "2I == H": lambda sd: sd.sizes["h"] == 2 * sd.sizes["i"] > 2,
        "I == H": lambda sd: sd.sizes["h"] == sd.sizes["i"] > 1,
        "size one": lambda sd: sd.sizes["h"] == 1,
        "odd": lambda sd: sd.sizes["h"] % 2 and sd.sizes["i"] % 2 and sd.sizes["i"] > 1,
        "two dtypes": lambda sd: len({t.dtype for t in sd.values()}) == 2,
        "no scenery": lambda sd: all(".experts." in key for key in sd),
    }
    for name, predicate in wanted.items():
        assert find(testing.state_dicts(), predicate, settings=settings(max_examples=2000, phases=[Phase.generate])), (
            name
        )


def test_sizes_are_fixed_bounded_and_tied() -> None:
    @given(testing.state_dicts(sizes={"e": 4, "h": (2, 3)}, tied=[("i", "h")], dtypes=lambda key: torch.int8))
    @settings(max_examples=25)
    def check(state_dict: testing.StateDict) -> None:
        assert state_dict.sizes["e"] == 4
        assert state_dict.sizes["h"] in (2, 3)
        down = next(t for key, t in state_dict.items() if "down_proj" in key)
        assert down.shape == (state_dict.sizes["h"],) * 2
        assert {t.dtype for t in state_dict.values()} == {torch.int8}
        assert state_dict.config["num_experts"] == 4

    check()


@pytest.mark.parametrize("bounds", [(9, 13), (7, 7), (1, 2), (10, 40)])
def test_bounds_of_experts_may_lie_anywhere(bounds: tuple[int, int]) -> None:
    @given(testing.state_dicts(sizes={"e": bounds}, max_layers=1, scenery=False))
    @settings(max_examples=10)
    def check(state_dict: testing.StateDict) -> None:
        assert bounds[0] <= state_dict.sizes["e"] <= bounds[1]

    check()


@pytest.mark.parametrize("layout", ["hf", "hf-fused", "nemo"])
def test_any_layout_can_be_drawn(layout: str) -> None:
    @given(testing.state_dicts("qwen3_moe", layout))
    @settings(max_examples=20)
    def check(state_dict: testing.StateDict) -> None:
        made = lazysd.convert(dict(state_dict), layout, source=layout, family="qwen3_moe", config=state_dict.config)
        assert_same_bytes(made, state_dict)
        assert len(lazysd.convert(dict(state_dict), "hf", source=layout, family="qwen3_moe")) >= len(state_dict)

    check()


def test_lora_can_be_drawn() -> None:
    @given(testing.state_dicts("qwen3_moe", "nemo", lora=True, scenery=False))
    @settings(max_examples=10)
    def check(state_dict: testing.StateDict) -> None:
        assert {key.rpartition(".")[2] for key in state_dict} == {
            "lora_gate_and_up_A", "lora_gate_and_up_B", "lora_down_A", "lora_down_B"
        }  # fmt: skip
        e, r = state_dict.sizes["e"], state_dict.sizes["r"]
        shapes = [tuple(t.shape) for t in list(state_dict.values())[:4]]
        h, i = state_dict.sizes["h"], state_dict.sizes["i"]
        assert shapes == [(e, h, r), (e, r, 2 * i), (e, i, r), (e, r, h)]

    check()


def test_a_counterexample_is_code() -> None:
    for seed in (0, 5):
        made = testing.state_dict({"a": ("BF16", (2, 3)), "b": ("I8", (4,)), "c": ("BOOL", (3,))}, seed)
        assert_same_bytes(eval(repr(made), {"lazysd": lazysd}), made)
    assert testing.state_dict({"a": ("F32", (2,)), "b": ("F32", (2,))})["b"].tolist() == [2, 3]
    for entry in lazysd.dtypes.DTYPES.values():
        if entry.torch_name and entry.bits >= 8:
            made = testing.state_dict({"x": (entry.code, (300,))})
            assert made["x"].dtype == lazysd.dtypes.to_torch(entry.code)


def test_state_dicts_like_a_model_on_meta() -> None:
    with torch.device("meta"):
        module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    made = find(testing.state_dicts_like(module), lambda sd: sd.seed != 0)
    assert {k: (t.dtype, t.shape) for k, t in made.items()} == {
        k: (t.dtype, t.shape) for k, t in module.state_dict().items()
    }


DIFFERENT: dict[str, tuple[Any, Any, str]] = {
    "None": (None, torch.zeros(1), "found NoneType None, expected a tensor torch.float32"),
    "int": (1, 2, "found 1, expected 2"),
    "bytes": (b"a", b"b", "found b'a', expected b'b'"),
    "bool for int": (True, 1, "found bool True, expected int 1"),
    "nested": ({"x": {"y": torch.zeros(2)}}, {"x": {"y": torch.ones(2)}}, "x: y: 2 of 2 elements differ"),
    "list": ([1, 2], [1, 2, 3], "found 2 items, expected 3"),
    "list item": ([1, torch.zeros(1)], [1, torch.ones(1)], r"\[1\] 1 of 1"),
    "meta": (torch.zeros(2, device="meta"), torch.zeros(2), "found it on meta, expected it on cpu"),
    "meta shape": (torch.zeros(2, device="meta"), torch.zeros(3, device="meta"), r"\[2\], expected"),
    "FP4": (
        torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        torch.ones(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        "2 of 2 elements differ",
    ),
    "complex": (torch.zeros(1, dtype=torch.complex64), torch.ones(1, dtype=torch.complex64), "elements differ"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_whatever_differs_is_an_assertion(name: str) -> None:
    found, expected, message = DIFFERENT[name]
    assert_same_bytes({"v": found}, {"v": found})
    assert_same_bytes({"v": expected}, {"v": expected})
    with pytest.raises(AssertionError, match=message):
        assert_same_bytes({"v": found}, {"v": expected})


def test_terms_of_a_comparison() -> None:
    one, other = {"w": torch.tensor([0.0, 1.0]), "x": torch.zeros(1)}, {"w": torch.tensor([-0.0, 1.0 + 1e-6])}
    assert_same_bytes(one, other, ignore=["x"], atol=1e-5)
    with pytest.raises(AssertionError, match="1 of 2 elements differ, the first at \\(1,\\)"):
        assert_same_bytes(one, other, ignore=["x"], zero_signs=False)
    with pytest.raises(AssertionError, match=r"expected 1\.00000095"):
        assert_same_bytes(one, other, ignore=["x"], rtol=1e-9)


def test_a_converter_that_does_nothing_does_not_pass() -> None:
    sd = {"w": torch.arange(4.0).view(2, 2)}
    assert_round_trip(identity, identity, sd)
    with pytest.raises(AssertionError, match="forward changed nothing"):
        assert_round_trip(identity, identity, sd, changes=True)
    with pytest.raises(AssertionError, match=r"forward left keys that match 'w\*' as they were:\nw"):
        assert_round_trip(identity, identity, sd, consumes=["w*"])
    with pytest.raises(AssertionError, match="no key of the state dict matches 'x'"):
        assert_round_trip(identity, identity, sd, consumes=["x"])


def test_memory_of_results() -> None:
    sd = {"w": torch.arange(6.0).view(2, 3)}

    def turn(tensors: dict[str, Any]) -> dict[str, Any]:
        return {key: tensor.T for key, tensor in tensors.items()}

    with pytest.raises(AssertionError, match=r"forward's result:\nw is not contiguous: strides \(1, 3\)"):
        assert_round_trip(turn, turn, sd, contiguous=True)
    with pytest.raises(AssertionError, match=r"w shares its memory with the input's w"):
        assert_round_trip(turn, turn, sd, shares_storage=False)


def test_silence_is_no_refusal() -> None:
    sd = {"a": torch.zeros(2), "b": torch.zeros(2)}

    def strict(tensors: dict[str, Any]) -> dict[str, Any]:
        if sorted(tensors) != ["a", "b"] or tensors["a"].shape != (2,):
            raise ValueError("not what I know")
        return tensors

    for fault in ({}, {"rename": "c"}, {"add": {"c": 1}}, {"reshape": True}):
        assert "not what I know" in str(testing.assert_refuses(strict, sd, "a", **fault))  # type: ignore[arg-type]
        with pytest.raises(AssertionError, match="said nothing"):
            testing.assert_refuses(identity, sd, "a", **fault)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="refused as it is"):
        testing.assert_refuses(strict, {"a": torch.zeros(2)}, "a")


def test_peak_memory_is_measured() -> None:
    testing.assert_peak_memory(lambda: bytearray(1 << 20), 40 << 20)
    # in a process of its own: here, what earlier tests left may be given back meanwhile, and hide the growth
    grows = "from lazysd.testing import assert_peak_memory as a; a(lambda: b'x' * 240_000_000, 10_000_000)"
    done = subprocess.run([sys.executable, "-c", grows], capture_output=True, text=True, check=False)
    assert re.search(
        r"AssertionError: the process grew by 2[34]\d,\d{3},\d{3} bytes, 10,000,000 are allowed", done.stderr
    )
