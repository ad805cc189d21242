"""Mutations of checkpoints' files, by structure and byte by byte, and what must hold of each: `make fuzz`.

A mutated checkpoint opens, converts, plans and reads, or is refused by an error of lazysd. Headers are held against the
safetensors package, files of torch against torch: what lazysd accepts they accept too, with the same tensors.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import re
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from checkpoints import random_hf, write
from mutators import Kind, TooMuch, mutated_bytes, mutated_json, mutated_value, mutated_zip, toml
from quantised_experts import SCHEMES, experts
from safetensors import SafetensorError
from safetensors.torch import load, save
from state_mutations import Graph, Journal, Manifest, Server, Snapshot
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint import metadata as said_of

import lazysd
from lazysd import layouts
from lazysd.errors import LazysdError
from lazysd.merging import merge
from lazysd.overview import overview
from lazysd.quantization import dequantize

GOLDEN = Path(__file__).resolve().parent / "golden"
READ_NBYTES = 1 << 20  # larger tensors are looked at, not read
Files = dict[str, bytes]


def tensors_of_two_dtypes() -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.arange(4, dtype=torch.int8)}
    return made | {"s": torch.tensor(3.0), "e": torch.zeros(0, 4, dtype=torch.bfloat16)}


def read_files(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], of: object) -> None:
    """The same names, dtypes, shapes and bits."""
    assert found.keys() == expected.keys(), of
    for key, tensor in expected.items():
        assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape), (key, of)
        ours, theirs = (one.contiguous().reshape(-1).view(torch.uint8) for one in (found[key], tensor))
        assert torch.equal(ours, theirs), (key, of)


class Header(Kind):
    """A safetensors file, against the safetensors package."""

    def run(self) -> str:
        if not hasattr(self, "raw"):
            self.raw = save(tensors_of_two_dtypes(), {"format": "pt"})
        raw = self.raw
        size = int.from_bytes(raw[:8], "little")
        if self.draw.random() < 0.1:
            text, prefix = raw[8 : 8 + size], mutated_bytes(raw[:8], self.draw)[:8]
        else:
            text = mutated_json(raw[8 : 8 + size], self.draw)
            prefix = len(text).to_bytes(8, "little")
        data = raw[8 + size :] if self.draw.random() < 0.9 else mutated_bytes(raw[8 + size :], self.draw)
        file = prefix + text + data
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
        assert_same(found, expected, file)
        return "accepted"


class InMemory(Kind):
    """A checkpoint in memory, one of whose files is mutated."""

    def files(self) -> Files:
        """What is there before; made once."""
        raise NotImplementedError

    def mutated(self, files: Files) -> Files:
        """The files with some changed."""
        raise NotImplementedError

    def use(self, ckpt: lazysd.Checkpoint) -> None:
        """Whatever looks at them."""
        repr(ckpt)

    def run(self) -> str:
        if not hasattr(self, "made"):
            self.made = self.files()
        files = self.mutated(dict(self.made))
        try:
            self.use(lazysd.open(files))
        except LazysdError:
            return "refused"
        except Exception as error:
            changed = {name: raw[:3000] for name, raw in files.items() if raw != self.made.get(name)}
            raise AssertionError(f"{changed!r}") from error
        return "accepted"

    def one_of(self, *actions: Callable[[], Any]) -> None:
        """One of them, which may be refused."""
        with suppress(LazysdError):
            self.draw.choice(actions)()


class Keys(InMemory):
    """Names of tensors: numbers, words and letters of a mixture of experts changed, through everything that asks."""

    def files(self) -> Files:
        config = {"model_type": "qwen3_moe", "num_experts": 3, "hidden_size": 4, "moe_intermediate_size": 5}
        return {"model.safetensors": save(random_hf()), "config.json": json.dumps(config).encode()}

    def mutated(self, files: Files) -> Files:
        tensors = load(files["model.safetensors"])
        for _ in range(self.draw.randint(1, 3)):
            key = self.draw.choice(list(tensors))
            tensors[self._renamed(key, list(tensors))] = tensors.pop(key)
        files["model.safetensors"] = save(tensors)
        if self.draw.random() < 0.5:
            del files["config.json"]
        return files

    def _renamed(self, key: str, others: list[str]) -> str:
        what = self.draw.randrange(5)
        if what == 0:
            return re.sub(r"\d+", lambda _: str(self.draw.choice((0, 1, 3, 12, 99999999, 10**30, "01"))), key, count=1)
        if what == 1:
            words = key.split(".")
            words[self.draw.randrange(len(words))] = self.draw.choice(self.draw.choice(others).split("."))
            return ".".join(words)
        if what == 2:
            return mutated_bytes(key.encode(), self.draw).decode("utf-8", "replace")
        if what == 3:
            return key + self.draw.choice(
                (".", ".bias", "_scale_inv", ".lora_A.weight", "_packed", ".0", "\0", "\u202e")
            )
        return "".join(filter(None, (self.draw.choice(("", "base_model.model.", "model.", "x" * 70_000)), key)))

    def use(self, ckpt: lazysd.Checkpoint) -> None:
        self.one_of(lambda: overview(ckpt), lambda: repr(ckpt), lambda: dequantize(ckpt).plan())
        with suppress(LazysdError):
            for layout in ("nemo", "hf-fused"):
                made = ckpt.convert(layout)
                made.plan()
                assert sum(one.nbytes for one in made.values()) == ckpt.nbytes, "not all of it, or some of it twice"


class Slices(InMemory):
    """Files of rank slices: where each lies is said in their headers."""

    def files(self) -> Files:
        made = {}
        for rank in (1, 2):
            offsets = {"a": {"saved_offsets": [2 * rank - 2, 0]}, "b": {"saved_offsets": [rank - 1]}}
            tensors = {"a": torch.full((2, 3), float(rank)), "b": torch.full((1,), rank, dtype=torch.int8)}
            said = {"DCP_SHARDING_INFO": json.dumps(offsets)}
            made[f"shard-{rank:05d}-model-00001-of-00001.safetensors"] = save(tensors, said)
        return made | {"config.json": b'{"vocab_size": 4, "hidden_size": 3}'}

    def mutated(self, files: Files) -> Files:
        name = self.draw.choice(list(files))
        raw = files[name]
        if name == "config.json":
            return {**files, name: mutated_json(raw, self.draw)}
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])
        if self.draw.random() < 0.8:
            said = header["__metadata__"]["DCP_SHARDING_INFO"].encode()
            header["__metadata__"]["DCP_SHARDING_INFO"] = mutated_json(said, self.draw).decode("utf-8", "replace")
        else:
            mutated_value(header, self.draw)
        text = json.dumps(header).encode()
        return {**files, name: len(text).to_bytes(8, "little") + text + raw[8 + size :]}

    def use(self, ckpt: lazysd.Checkpoint) -> None:
        ckpt.plan()
        [lazy.materialize() for lazy in ckpt.values() if lazy.nbytes < READ_NBYTES]


class Config(InMemory):
    """config.json of a mixture of experts, plain or quantised, through everything that asks it."""

    def files(self) -> Files:
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

    def mutated(self, files: Files) -> Files:
        return {**files, "config.json": mutated_json(files["config.json"], self.draw)}

    def use(self, ckpt: lazysd.Checkpoint) -> None:
        self.one_of(
            lambda: overview(ckpt),
            lambda: repr(ckpt),
            lambda: ckpt.convert("nemo").plan(),
            lambda: dequantize(ckpt).plan(),
        )


class Quantised(InMemory):
    """Codes, scales and quantization_config of every few-bit scheme."""

    def files(self) -> Files:
        self.schemes = {name: experts(name, E=2, I=32, H=32) for name in SCHEMES}
        return {}

    def mutated(self, files: Files) -> Files:
        tensors, config = self.schemes[self.draw.choice(list(self.schemes))]
        text = json.dumps(config).encode()
        if self.draw.random() < 0.6:
            text = mutated_json(text, self.draw)
        if self.draw.random() < 0.6:
            tensors = dict(tensors)
            key = self.draw.choice(list(tensors))
            made = tensors.pop(key)
            if self.draw.random() < 0.8:
                dims = [self.draw.choice((0, 1, 2, 3, 16, 31, 33, *made.shape)) for _ in range(self.draw.randint(0, 3))]
                dtypes = (made.dtype, torch.uint8, torch.float32, torch.int32, torch.float8_e4m3fn)
                tensors[key] = torch.zeros(dims, dtype=self.draw.choice(dtypes))
        return {"model.safetensors": save(tensors), "config.json": text}

    def use(self, ckpt: lazysd.Checkpoint) -> None:
        def decode() -> None:
            plain = dequantize(ckpt)
            plain[self.draw.choice(list(plain))].materialize()

        self.one_of(decode, decode, lambda: ckpt.convert("nemo").plan(), lambda: overview(ckpt))


class Index(InMemory):
    """model.safetensors.index.json of two shards."""

    def files(self) -> Files:
        return read_files(write(self.folder / "indexed", random_hf(), 2, {"model_type": "qwen3_moe"}))

    def mutated(self, files: Files) -> Files:
        name = "model.safetensors.index.json"
        return {**files, name: mutated_json(files[name], self.draw)}

    def use(self, ckpt: lazysd.Checkpoint) -> None:
        ckpt.plan()
        assert_same({key: lazy.materialize() for key, lazy in ckpt.items()}, random_hf(), ckpt)


class Adapter(InMemory):
    """adapter_config.json and NeMo's own, of both generations of PEFT, through conversion and merging."""

    def files(self) -> Files:
        self.base = lazysd.open(GOLDEN / "qwen3_moe_tiny")
        names = ("peft_paramwrapper_r3", "peft_paramwrapper_0181_r3", "lora_paramwrapper_peft0212_r3")
        self.adapters = [read_files(GOLDEN / name) for name in names]
        return {}

    def mutated(self, files: Files) -> Files:
        files = dict(self.draw.choice(self.adapters))
        if self.draw.random() < 0.3:
            files["automodel_peft_config.json"] = mutated_json(b'{"paramwrapper_layout": "peft-0.19.1"}', self.draw)
        if self.draw.random() < 0.9:
            files["adapter_config.json"] = mutated_json(files["adapter_config.json"], self.draw)
        return files

    def use(self, ckpt: lazysd.Checkpoint) -> None:
        def merged() -> None:
            made = merge(self.base, ckpt)
            made[self.draw.choice(list(made))].materialize()

        self.one_of(lambda: overview(ckpt), lambda: repr(ckpt), lambda: ckpt.convert("peft-per-expert").plan(), merged)


class Pickled(Kind):
    """A folder with pickles, mutated byte by byte or by their archive's records, against what torch itself reads."""

    def files(self) -> Files:
        raise NotImplementedError

    def mutated(self, files: Files) -> Files:
        raise NotImplementedError

    def by_torch(self, files: Files) -> dict[str, torch.Tensor]:
        """What torch reads; no code of the files runs."""
        raise NotImplementedError

    def run(self) -> str:
        if not hasattr(self, "made"):
            self.made = self.files()
        files = self.mutated(dict(self.made))
        try:
            with lazysd.open(files) as ckpt:
                found = {key: lazy.materialize() for key, lazy in ckpt.items() if lazy.nbytes < READ_NBYTES}
                if len(found) < len(ckpt):
                    return "accepted"
        except LazysdError:
            return "refused"
        except Exception as error:
            raise AssertionError(f"{files!r}") from error
        try:
            expected = self.by_torch(files)
        except Exception:  # noqa: BLE001 - torch also wants records that say nothing of tensors: a version, an alignment
            return "accepted"
        assert_same(found, expected, files)
        return "accepted"


class TorchZip(Pickled):
    """A file of torch.save."""

    def files(self) -> Files:
        held = io.BytesIO()
        torch.save({**tensors_of_two_dtypes(), "nested": {"list": [torch.ones(2, 2).T]}, "step": 3}, held)
        return {"pytorch_model.bin": held.getvalue()}

    def mutated(self, files: Files) -> Files:
        how = mutated_zip if self.draw.random() < 0.7 else mutated_bytes
        return {name: how(raw, self.draw) for name, raw in files.items()}

    def by_torch(self, files: Files) -> dict[str, torch.Tensor]:
        return dict(tensors_in("", torch.load(io.BytesIO(files["pytorch_model.bin"]), "cpu", weights_only=True)))


def tensors_in(name: str, value: Any) -> list[tuple[str, torch.Tensor]]:
    """(name, tensor) of all tensors in dicts and lists, names joined by dots."""
    if isinstance(value, torch.Tensor):
        return [(name, value)]
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, part in pairs for found in tensors_in(f"{name}.{key}" if name else str(key), part)]


class OnlyMetadata(pickle._Unpickler):  # type: ignore[name-defined,misc] # the one in C allocates by claimed sizes
    """Reads .metadata as torch does, where it names nothing but torch's classes for it."""

    def find_class(self, module: str, name: str) -> Any:
        if module == said_of.__name__ or (module, name) == (filesystem.__name__, "_StorageInfo"):
            return getattr(said_of if module == said_of.__name__ else filesystem, name)
        known = {("torch", "Size"): torch.Size, ("torch.serialization", "_get_layout"): torch.serialization._get_layout}
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return known[module, name]


class Dcp(Pickled):
    """A folder of torch.distributed.checkpoint."""

    def files(self) -> Files:
        made = lazysd.Checkpoint({key: lazysd.from_torch(value) for key, value in tensors_of_two_dtypes().items()})
        made.save(self.folder / "dcp", format="dcp", overwrite=True)
        return {name: raw for name, raw in read_files(self.folder / "dcp").items() if "manifest" not in name}

    def mutated(self, files: Files) -> Files:
        name = ".metadata" if self.draw.random() < 0.8 else next(name for name in files if name.endswith(".distcp"))
        return {**files, name: mutated_bytes(files[name], self.draw)}

    def by_torch(self, files: Files) -> dict[str, torch.Tensor]:
        meta: Any = OnlyMetadata(io.BytesIO(files[".metadata"])).load()
        found = {}
        for key, said in meta.state_dict_metadata.items():
            if not isinstance(said, said_of.TensorStorageMetadata):
                continue
            found[key] = torch.zeros(said.size, dtype=said.properties.dtype)
            for chunk in said.chunks:
                at = meta.storage_data[said_of.MetadataIndex(key, chunk.offsets)]
                raw = files[at.relative_path][at.offset : at.offset + at.length]
                part = found[key]
                for axis, (start, size) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
                    part = part.narrow(axis, start, size)
                part.copy_(torch.load(io.BytesIO(raw), "cpu", weights_only=True))
        return found


class Toml(Kind):
    """A table of layouts, by its bytes and by what it says; what is accepted converts, or is refused."""

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
        import tomllib

        text = mutated_bytes(self.TEXT, self.draw)
        if self.draw.random() < 0.6:
            value = mutated_value(json.loads(json.dumps(tomllib.loads(self.TEXT.decode()))), self.draw)
            text = "\n".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()).encode(
                "utf-8", "replace"
            )
        path = self.folder / "table.toml"
        path.write_bytes(text)
        tables = {name: dict(getattr(layouts.registry, name)) for name in ("_LAYOUTS", "_FAMILIES", "_DIALECTS")}
        derived = dict(layouts.registry._DERIVED)
        try:
            layouts.load(path, overwrite=True)
            if self.draw.random() < 0.1:
                with suppress(LazysdError):
                    moe().convert("odd").plan()
        except LazysdError:
            return "refused"
        except Exception as error:
            raise AssertionError(f"{text!r}") from error
        finally:
            for name, held in {**tables, "_DERIVED": derived}.items():
                getattr(layouts.registry, name).clear()
                getattr(layouts.registry, name).update(held)
        return "accepted"


@cache
def moe() -> lazysd.Checkpoint:
    return lazysd.open({"model.safetensors": save(random_hf()), "config.json": b'{"model_type": "qwen3_moe"}'})


KINDS: dict[str, type[Kind]] = {
    "header": Header,
    "keys": Keys,
    "slices": Slices,
    "index": Index,
    "config": Config,
    "quantised": Quantised,
    "adapter": Adapter,
    "torch": TorchZip,
    "dcp": Dcp,
    "toml": Toml,
    "manifest": Manifest,
    "journal": Journal,
    "graph": Graph,
    "snapshot": Snapshot,
    "server": Server,
}
# How many of each million: more of what is read in less than a millisecond.
SHARES = {"header": 330_000, "index": 220_000, "manifest": 130_000, "graph": 110_000, "slices": 100_000}
SHARES |= {"config": 20_000, "torch": 20_000, "dcp": 20_000, "toml": 12_000, "adapter": 10_000, "journal": 10_000}
SHARES |= {"keys": 4_000, "quantised": 5_000, "snapshot": 5_000, "server": 4_000}


def campaign(
    kind: str,
    folder: Path,
    seed: int,
    count: int,
    failed: Callable[[str], Any],
    bounded: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, int]:
    """So many mutations of one kind; what is wrong goes to `failed`, how the others ended is counted.

    `bounded` is around each; what it raises is wrong too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(f"{kind} {seed}")
    one, counts = KINDS[kind](folder, draw), {"accepted": 0, "refused": 0}
    for _ in range(count):
        try:
            with bounded():
                counts[one.run()] += 1
        except (Exception, TooMuch) as error:  # noqa: BLE001 - counted, and shown
            cause = error.__cause__ or error
            at = traceback.extract_tb(cause.__traceback__)[-1]
            failed(f"{kind}: {type(cause).__name__}: {cause} ({at.filename}:{at.lineno}): {str(error)[:3000]}")
    return counts
