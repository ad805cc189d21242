"""Mutations of checkpoints' files, by structure and byte by byte, and what must hold of each: `make fuzz`.

A mutated checkpoint opens, converts, plans and reads, or is refused by an error of lazysd. Headers are held against the
safetensors package: what lazysd accepts it accepts too, with the same tensors.
"""

from __future__ import annotations

import json
import random
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

import lazysd
from lazysd import layouts
from lazysd.errors import LazysdError

GOLDEN = Path(__file__).resolve().parent / "golden"
WORDS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, -0.0, 2, 3, 127, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 1.5, 1e308),
    *(float("nan"), float("inf"), "", "a", "\0", "..", "../x", "/", "\ud800", "\u202e", "\x1b[2J", "x" * 300, "(a+)+$"),
    *([], [[]], {}, {"": ""}, [0, 10**9, 4], [-1], ["a"], {"a": {"a": {}}}, "BF16", "F4", "model.safetensors"),
)
BYTES = (b"", b"\0", b"\xff", b"{", b"}", b'"', b"[", b"]", b",", b":", b"9" * 40, b"-", b"\\u", b"e9", b" ", b"\n")


def nested(value: Any) -> list[tuple[Any, Any]]:
    """(holder, key or index) of every value in a nest of JSON."""
    found, todo = [], [value]
    while todo:
        one = todo.pop()
        keys: Any = list(one) if isinstance(one, dict) else range(len(one))
        for key in keys:
            found.append((one, key))
            if isinstance(one[key], (dict, list)):
                todo.append(one[key])
    return found


def mutated_json(raw: bytes, draw: random.Random) -> bytes:
    """The text of a JSON value with one to three of its parts changed, or its bytes."""
    if draw.random() < 0.4:
        return mutated_bytes(raw, draw)
    value = json.loads(raw)
    for _ in range(draw.randint(1, 3)):
        places = nested(value)
        if not places:
            break
        holder, key = draw.choice(places)
        what = draw.randrange(6)
        if what == 0:
            del holder[key]
        elif what == 1 and isinstance(holder, dict):
            holder[str(draw.choice(WORDS))] = holder.pop(key)
        elif what == 2 and isinstance(holder[key], int):
            holder[key] += draw.choice((-1, 1, 8, -(2**40), 2**40))
        elif what == 3:
            other, there = draw.choice(places)
            if there in other if isinstance(other, dict) else there < len(other):
                holder[key] = json.loads(json.dumps(other[there]))
        else:
            holder[key] = draw.choice(WORDS)
            holder[key] = json.loads(json.dumps(holder[key]))
    text = json.dumps(value, ensure_ascii=True).encode()
    if draw.random() < 0.05 and text.startswith(b"{"):  # a key twice
        inner = text[1:-1]
        text = b"{" + inner + b"," + inner + b"}"
    if draw.random() < 0.02:
        deep = draw.choice((60, 70, 3000, 100_000))
        text = text.replace(b"1", b"[" * deep + b"]" * deep, 1)
    if draw.random() < 0.02:
        text = text.replace(b"1", b"1" * draw.choice((20, 310, 5000)), 1)
    return text


def mutated_bytes(raw: bytes, draw: random.Random) -> bytes:
    """Bytes with a few flipped, cut, doubled or put in."""
    made = bytearray(raw)
    for _ in range(draw.randint(1, 4)):
        at, what = draw.randrange(len(made) + 1), draw.randrange(5)
        length = draw.choice((1, 1, 2, 8, 40))
        if what == 0 and at < len(made):
            made[at] ^= 1 << draw.randrange(8)
        elif what == 1:
            del made[at : at + length]
        elif what == 2:
            made[at:at] = draw.choice(BYTES)
        elif what == 3:
            made[at:at] = made[at : at + length]
        else:
            made[at : at + 1] = draw.choice(BYTES)
    return bytes(made)


class Kind:
    """Files, which of them is mutated and how, and what is done with the result."""

    def __init__(self, folder: Path, draw: random.Random):
        self.folder, self.draw = folder, draw

    def run(self) -> str:
        """One mutation: "accepted" or "refused". Raises what is wrong with lazysd."""
        raise NotImplementedError


def tensors_of_two_dtypes() -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.arange(4, dtype=torch.int8)}
    return made | {"s": torch.tensor(3.0), "e": torch.zeros(0, 4, dtype=torch.bfloat16)}


class Header(Kind):
    """A safetensors file, against the safetensors package."""

    def run(self) -> str:
        raw = save(tensors_of_two_dtypes(), {"format": "pt"})
        size = int.from_bytes(raw[:8], "little")
        if self.draw.random() < 0.1:
            text, prefix = raw[8 : 8 + size], mutated_bytes(raw[:8], self.draw)[:8]
        else:
            text = mutated_json(raw[8 : 8 + size], self.draw)
            prefix = len(text).to_bytes(8, "little")
        file = (
            prefix + text + (raw[8 + size :] if self.draw.random() < 0.9 else mutated_bytes(raw[8 + size :], self.draw))
        )
        try:
            found = {key: lazy.materialize() for key, lazy in lazysd.open(file).items()}
        except LazysdError:
            return "refused"
        try:
            expected = load(file)
        except KeyError:  # a dtype that the package knows and its half for torch does not: F4
            return "accepted"
        except (SafetensorError, ValueError, RuntimeError, AttributeError, TypeError) as error:
            raise AssertionError(f"safetensors refuses what lazysd accepts: {error!r}: {file!r}") from error
        assert found.keys() == expected.keys(), file
        for key, tensor in expected.items():
            assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape), (key, file)
            assert torch.equal(found[key].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), file
        return "accepted"


class Json(Kind):
    """A JSON file of a checkpoint in memory."""

    name = "config.json"

    def files(self) -> dict[str, bytes]:
        raise NotImplementedError

    def use(self, ckpt: lazysd.Checkpoint) -> None:
        """Whatever looks at the file."""
        repr(ckpt)

    def run(self) -> str:
        if not hasattr(type(self), "made"):
            type(self).made = self.files()  # type: ignore[attr-defined]
        files: dict[str, bytes] = dict(type(self).made)  # type: ignore[attr-defined]
        files[self.name] = mutated_json(files[self.name], self.draw)
        try:
            self.use(lazysd.open(files))
        except LazysdError:
            return "refused"
        except Exception as error:
            raise AssertionError(f"{files[self.name][:3000]!r}") from error
        return "accepted"


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


class Config(Json):
    """config.json of a mixture of experts, plain or quantised, through everything that asks it."""

    def files(self) -> dict[str, bytes]:
        from checkpoints import random_hf

        made = {f"model.layers.0.self_attn.{p}_proj.weight": torch.zeros(8, 8) for p in "qkvo"}
        config = {
            "model_type": "qwen3_moe",
            "num_experts": 3,
            "hidden_size": 4,
            "moe_intermediate_size": 5,
            "num_experts_per_tok": 2,
            "torch_dtype": "bfloat16",
            "text_config": {"num_experts": 3},
            "quantization_config": {
                "quant_method": "fp8",
                "weight_block_size": [128, 128],
                "modules_to_not_convert": ["lm_head"],
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 16}}},
            },
        }
        return {"model.safetensors": save(random_hf() | made), "config.json": json.dumps(config).encode()}

    def use(self, ckpt: lazysd.Checkpoint) -> None:
        from lazysd.overview import overview
        from lazysd.quantization import dequantize

        overview(ckpt)
        repr(ckpt)
        for make in (lambda: ckpt.convert("nemo").plan(), lambda: dequantize(ckpt).plan()):
            with suppress(LazysdError):
                make()


class Index(Json):
    """model.safetensors.index.json of two shards."""

    name = "model.safetensors.index.json"

    def files(self) -> dict[str, bytes]:
        from checkpoints import random_hf, write

        return read_files(write(self.folder / "indexed", random_hf(), 2, {"model_type": "qwen3_moe"}))

    def use(self, ckpt: lazysd.Checkpoint) -> None:
        ckpt.plan()
        [lazy.materialize() for lazy in ckpt.values()]


class Adapter(Json):
    """adapter_config.json, through conversion and merging."""

    name = "adapter_config.json"

    def files(self) -> dict[str, bytes]:
        return read_files(GOLDEN / "peft_paramwrapper_r3")

    def use(self, ckpt: lazysd.Checkpoint) -> None:
        from lazysd.merging import merge
        from lazysd.overview import overview

        overview(ckpt)
        repr(ckpt)
        base = lazysd.open(GOLDEN / "qwen3_moe_tiny")
        for make in (lambda: ckpt.convert("peft-per-expert").plan(), lambda: merge(base, ckpt)):
            with suppress(LazysdError):
                make()


class Pickled(Kind):
    """A file that holds a pickle, byte by byte: pytorch_model.bin, or DCP's .metadata."""

    def run(self) -> str:
        if not hasattr(type(self), "made"):
            type(self).made = self.files()  # type: ignore[attr-defined]
        files: dict[str, bytes] = dict(type(self).made)  # type: ignore[attr-defined]
        name = self.draw.choice([name for name in files if name.endswith((".bin", ".metadata"))])
        files[name] = mutated_bytes(files[name], self.draw)
        folder = self.folder / "pickled"
        folder.mkdir(exist_ok=True)
        for other, raw in files.items():
            (folder / other).write_bytes(raw)
        try:
            with lazysd.open(folder) as ckpt:
                [lazy.materialize() for lazy in ckpt.values() if lazy.nbytes < 1 << 20]
        except LazysdError:
            return "refused"
        except Exception as error:
            raise AssertionError(f"{files[name]!r}") from error
        finally:
            for other in files:
                (folder / other).unlink()
        return "accepted"

    def files(self) -> dict[str, bytes]:
        raise NotImplementedError


class TorchZip(Pickled):
    """A file of torch.save."""

    def files(self) -> dict[str, bytes]:
        path = self.folder / "saved.bin"
        torch.save(tensors_of_two_dtypes(), path)
        return {"pytorch_model.bin": path.read_bytes()}


class Dcp(Pickled):
    """A folder of torch.distributed.checkpoint."""

    def files(self) -> dict[str, bytes]:
        made = lazysd.Checkpoint({key: lazysd.from_torch(value) for key, value in tensors_of_two_dtypes().items()})
        made.save(self.folder / "dcp", format="dcp")
        return read_files(self.folder / "dcp")


class Toml(Kind):
    """A table of layouts."""

    TEXT = b"""[[family]]
name = "mine"
model_types = ["mine_moe"]
[family.experts]
at = "{prefix}layers.{layer}.mlp.experts."
num = ["num_experts"]
[family.speaks.vllm]
form = "fused"
[[layout]]
name = "odd"
family = "qwen3_moe"
sizes = { q = "num_q" }
[[layout.rule]]
hf = "{prefix}layers.{layer}.mlp.experts.{e}.{g:gate|up}_proj.weight"
to = "{prefix}layers.{layer}.ffn.experts.w13"
axes = "[e g] i h -> e (g i) h"
"""

    def run(self) -> str:
        path = self.folder / "table.toml"
        path.write_bytes(mutated_bytes(self.TEXT, self.draw))
        tables = {name: dict(getattr(layouts.registry, name)) for name in ("_LAYOUTS", "_FAMILIES", "_DIALECTS")}
        try:
            layouts.load(path, overwrite=True)
        except LazysdError:
            return "refused"
        except Exception as error:
            raise AssertionError(f"{path.read_bytes()!r}") from error
        finally:
            for name, held in tables.items():
                getattr(layouts.registry, name).clear()
                getattr(layouts.registry, name).update(held)
            layouts.registry._DERIVED.clear()
        return "accepted"


class Manifest(Kind):
    """lazysd.manifest.json: what is read is sound, or has a fault that is named."""

    def run(self) -> str:
        from lazysd.checking import check_folder

        folder = self.folder / "written"
        if not folder.exists():
            made = {key: lazysd.from_torch(value) for key, value in tensors_of_two_dtypes().items()}
            lazysd.Checkpoint(made, config={"a": 1}).save(folder)
        path = folder / "lazysd.manifest.json"
        good = path.read_bytes()
        path.write_bytes(mutated_json(good, self.draw))
        try:
            return "accepted" if check_folder(folder).sound else "refused"
        except LazysdError:
            return "refused"
        except Exception as error:
            raise AssertionError(f"{path.read_bytes()!r}") from error
        finally:
            path.write_bytes(good)


KINDS: dict[str, type[Kind]] = {
    "header": Header,
    "index": Index,
    "config": Config,
    "adapter": Adapter,
    "torch": TorchZip,
    "dcp": Dcp,
    "toml": Toml,
    "manifest": Manifest,
}


def campaign(kind: str, folder: Path, seed: int, count: int, failed: Callable[[str], Any]) -> dict[str, int]:
    """So many mutations of one kind; what is wrong goes to `failed`, how the others ended is counted."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(f"{kind} {seed}")
    one, counts = KINDS[kind](folder, draw), {"accepted": 0, "refused": 0}
    for _ in range(count):
        try:
            counts[one.run()] += 1
        except Exception as error:  # noqa: BLE001 - counted, and shown
            cause = error.__cause__ or error
            at = traceback.extract_tb(cause.__traceback__)[-1]
            failed(f"{kind}: {type(cause).__name__}: {cause} ({at.filename}:{at.lineno}): {str(error)[:3000]}")
    return counts
