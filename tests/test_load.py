"""Filling modules: load_state_dict streams, load_into agrees with torch, a real Qwen3-MoE gives the same logits."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import random_hf, write
from gloo import run_ranks
from safetensors.torch import save_file
from torch import nn

import lazysd
from lazysd.errors import LayoutError
from lazysd.stores.base import File, Parts
from lazysd.testing import recorded_reads


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 6, bias=False)
        self.register_buffer("table", torch.arange(3.0), persistent=False)
        self.head.weight.note = "kept"


def tied() -> Net:
    net = Net()
    net.out = nn.Linear(4, 6, bias=False)
    net.out.weight = net.head.weight
    return net


def saved(net: nn.Module, path: Path, drop: tuple[str, ...] = (), **more: torch.Tensor) -> lazysd.Checkpoint:
    tensors = {key: value.clone() for key, value in net.state_dict().items() if key not in drop}
    save_file({**tensors, **more}, path / "m.safetensors")
    return lazysd.open(path / "m.safetensors")


def randomised(net: Net) -> Net:
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.copy_(torch.randint(1, 99, tensor.shape))
    return net


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_load_state_dict_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = randomised(Net()), Net()
    ckpt = saved(source, tmp_path)
    destinations = []
    read = File.read

    def noted(self: File, parts: Parts) -> None:
        for buffer, _ in parts:
            destinations.append(torch.frombuffer(buffer, dtype=torch.uint8).data_ptr())
        read(self, parts)

    monkeypatch.setattr(File, "read", noted)
    assert str(target.load_state_dict(ckpt)) == "<All keys matched successfully>"
    assert same(source, target)
    assert sorted(destinations) == sorted(t.data_ptr() for t in target.state_dict().values())  # no tensor in between


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("drop", "more"), [(("head.weight",), ()), ((), ("alien",)), (("norm.bias",), ("alien",))])
def test_keys_are_reported_as_torch_does(
    tmp_path: Path, strict: bool, drop: tuple[str, ...], more: tuple[str, ...]
) -> None:
    ckpt = saved(randomised(Net()), tmp_path, drop, **{key: torch.zeros(2) for key in more})
    plain = {key: lazy.materialize() for key, lazy in ckpt.items()}

    def outcome(load: Any, values: Any) -> Any:
        net = Net()
        before = {key: value.clone() for key, value in net.state_dict().items()}
        try:
            report = load(net, values)
        except RuntimeError as error:
            assert load is not into or all(torch.equal(before[key], value) for key, value in net.state_dict().items())
            return str(error)
        return report.missing_keys, report.unexpected_keys

    def state_dict(net: Net, values: Any) -> Any:
        return net.load_state_dict(values, strict=strict)

    def into(net: Net, values: Any) -> Any:
        return lazysd.load_into(net, values, strict=strict)

    expected = outcome(state_dict, plain)
    assert isinstance(expected, str) == strict
    assert outcome(state_dict, ckpt) == expected
    assert outcome(into, ckpt) == expected


def test_wrong_shapes_are_refused_before_anything_moves(tmp_path: Path) -> None:
    ckpt = saved(randomised(Net()), tmp_path, ("head.weight",), **{"head.weight": torch.zeros(6, 5)})
    net = Net()
    before = net.first.weight.clone()
    message = r"size mismatch for head.weight.*torch.Size\(\[6, 5\]\).*torch.Size\(\[6, 4\]\)"
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=message):
            lazysd.load_into(net, ckpt, strict=strict)
    assert torch.equal(net.first.weight, before)
    with pytest.raises(RuntimeError, match=message):
        net.load_state_dict(ckpt)


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("ties", ["a parameter", "memory"])
def test_names_of_one_parameter_have_to_agree(tmp_path: Path, ties: str, meta: bool) -> None:
    source = randomised(tied())
    weight = source.head.weight.detach().clone()

    def target() -> nn.Module:
        with torch.device("meta" if meta else "cpu"):
            made = tied()
        if ties == "memory" and not meta:
            made.out.weight = nn.Parameter(made.head.weight.data)
        return made

    for other in (weight, weight.double().float(), torch.full_like(weight, torch.nan), weight + 1):
        ckpt = saved(source, tmp_path, **{"out.weight": other})
        net = target()
        if torch.equal(other, weight):
            lazysd.load_into(net, ckpt)
            assert torch.equal(net.out.weight, weight)
            assert torch.equal(net.head.weight, weight)
        else:
            with pytest.raises(
                LayoutError, match=r"head\.weight and out\.weight differ.*one tensor for both.*drop\(\)"
            ):
                lazysd.load_into(net, ckpt)
            lazysd.load_into(net, ckpt.drop("head.weight"), strict=ties == "a parameter" or meta)
            assert torch.equal(net.head.weight.isnan(), other.isnan())


def test_meta_modules_get_memory(tmp_path: Path) -> None:
    source = randomised(tied())
    ckpt = saved(source, tmp_path, ("out.weight",))  # as transformers saves tied weights
    with torch.device("meta"):
        net = tied()
    net.first.weight.requires_grad_(False)
    report = lazysd.load_into(net, ckpt)
    assert report == ([], [], ["table"])
    assert same(net, source)
    assert net.out.weight is net.head.weight
    assert net.head.weight.note == "kept"
    assert isinstance(net.head.weight, nn.Parameter)
    assert (net.first.weight.requires_grad, net.first.bias.requires_grad) == (False, True)
    assert net.table.is_meta
    with torch.device("meta"):
        net = Net()
    report = lazysd.load_into(net, ckpt.drop("first.bias"), strict=False)
    assert report.left_on_meta == ["table", "first.bias"]


def test_parameters_keep_identity_and_dtype(tmp_path: Path) -> None:
    source = randomised(Net())
    ckpt = saved(source, tmp_path)
    net = Net().to(torch.bfloat16)
    weight = net.head.weight
    lazysd.load_into(net, ckpt)
    assert net.head.weight is weight
    assert torch.equal(weight, source.head.weight.to(torch.bfloat16))


def test_another_device(tmp_path: Path) -> None:
    """The meta device stands in for a GPU: everything moves, ties hold, buffers too."""
    ckpt = saved(randomised(tied()), tmp_path)
    net = tied()
    report = lazysd.load_into(net, ckpt, device="meta")
    assert all(t.is_meta for t in [*net.parameters(), *net.buffers()])
    assert net.out.weight is net.head.weight
    assert "table" in report.left_on_meta


def test_plain_tensors_and_reads(tmp_path: Path) -> None:
    source, net = randomised(Net()), Net()
    lazysd.load_into(net, source.state_dict())
    assert same(net, source)


def test_assign_says_what_to_use_instead(tmp_path: Path) -> None:
    source, net = randomised(Net()), Net()
    ckpt = saved(source, tmp_path)
    with pytest.raises(
        RuntimeError, match=r"load_into\(module, ckpt\) fills.*dict\(ckpt\.iter_tensors\(\)\) is a state"
    ):
        net.load_state_dict(ckpt, assign=True)
    net.load_state_dict(dict(ckpt.iter_tensors()), assign=True)
    assert same(net, source)


def test_errors_name_few_of_many_keys() -> None:
    module = torch.nn.ModuleDict({f"m{number}": nn.Linear(1, 1) for number in range(40)})
    with pytest.raises(RuntimeError, match=r'"m9\.bias" and 60 more\. ') as raised:
        lazysd.load_into(module, {})
    assert len(str(raised.value)) < 600


PEAK = """
import gc, json, sys, torch, lazysd
from torch import nn
import lazysd.load as load, lazysd.move.fill as fill
def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024
class Experts(nn.Module):
    def __init__(self, E, H, I):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * I, H, dtype=torch.bfloat16))
        self.down_proj = nn.Parameter(torch.empty(E, H, I, dtype=torch.bfloat16))
class Model(nn.Module):
    def __init__(self, E, H, I, layers):
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList()
        for _ in range(layers):
            layer = nn.Module(); layer.mlp = nn.Module(); layer.mlp.experts = Experts(E, H, I)
            self.model.layers.append(layer)
sizes = json.loads(sys.argv[2])
with torch.device("meta"):
    model, small, other = Model(*sizes), Model(2, 8, 8, 1), Model(2, 8, 8, 1)
other.to_empty(device="cpu")  # torch imports what it needs for this: 35 MB
key = "model.layers.0.mlp.experts."
zeros = torch.zeros(8, 8, dtype=torch.bfloat16)
made = {key + f"{e}.{g}_proj.weight": zeros for e in range(2) for g in ("gate", "up", "down")}
made = {key: lazysd.from_torch(tensor) for key, tensor in made.items()}
lazysd.load_into(small, lazysd.convert(made, "hf-fused", family="qwen3_moe"))  # imports
torch.set_num_threads(2)
ckpt = lazysd.open(sys.argv[1]).convert("hf-fused").select("*experts*")
gc.collect()
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
if sys.argv[3] == "load_into":
    report = lazysd.load_into(model, ckpt)
    assert report.left_on_meta == []
else:
    model = model.to_empty(device="cpu")
    model.load_state_dict(ckpt)
growth = status("VmHWM") - before
total = sum(p.double().sum().item() for p in model.parameters())
print(json.dumps([growth, sum(p.nbytes for p in model.parameters()), total]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["load_into", "load_state_dict"])
def test_memory_grows_by_the_model_and_one_expert(tmp_path: Path, way: str) -> None:
    """From per-expert files into grouped parameters of 100 MB in all; a group alone would be 17 or 34 MB."""
    sizes = (16, 1024, 512, 2)
    hf = {key: torch.randint(0, 9, t.shape).to(torch.bfloat16) for key, t in random_hf(*sizes).items()}
    write(tmp_path / "src", hf, shards=3, config={"model_type": "qwen3_moe", "num_experts": 16})
    command = [sys.executable, "-c", PEAK, str(tmp_path / "src"), json.dumps(sizes), way]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    growth, model_nbytes, total = json.loads(done.stdout)
    assert total == sum(t.double().sum().item() for key, t in hf.items() if ".experts." in key)
    expert_nbytes = 2 * 1024 * 512 * 2
    scratch = 10 << 20  # blocks and stacks of two threads, and what the allocator rounds up
    assert growth <= model_nbytes + expert_nbytes + scratch < model_nbytes + 16 * expert_nbytes


def fills_dtensors(folder: Path) -> None:
    """Runs in each of two processes; the oracle is distribute_tensor of the whole tensor."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    rank = dist.get_rank()
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randint(0, 99, dims, generator=generator).to(torch.bfloat16)
        for name, dims in (("rows", (5, 6)), ("columns", (4, 7)), ("both", (3, 2)), ("plain", (2, 2)))
    }
    if rank == 0:
        save_file(tensors, folder / "m.safetensors")
    dist.barrier()
    mesh = init_device_mesh("cpu", (2,))
    placements = {"rows": Shard(0), "columns": Shard(1), "both": Replicate()}
    expected = {name: distribute_tensor(tensors[name], mesh, [place]) for name, place in placements.items()}

    def module(device: str) -> nn.Module:
        made = nn.Module()
        for name, whole in expected.items():
            local = torch.zeros_like(whole.to_local(), device=device)
            parameter = DTensor.from_local(
                local, mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride()
            )
            made.register_parameter(name, nn.Parameter(parameter, requires_grad=name != "both"))
        made.register_parameter("plain", nn.Parameter(torch.zeros(2, 2, dtype=torch.bfloat16, device=device)))
        made.tied = made.rows
        return made

    ckpt = lazysd.open(folder / "m.safetensors", io="pread")
    for device in ("cpu", "meta"):
        net = module(device)
        with recorded_reads() as noted:
            report = lazysd.load_into(net, ckpt)
        assert report == ([], [], []), report
        assert net.tied is net.rows
        for name, whole in expected.items():
            found = getattr(net, name)
            assert isinstance(found, nn.Parameter)
            assert isinstance(found.data, DTensor)
            assert (found.placements, found.shape) == (whole.placements, whole.shape)
            assert found.requires_grad == (name != "both")
            assert torch.equal(found.to_local(), whole.to_local())
        assert torch.equal(net.plain.detach(), tensors["plain"])
        mine = sum(whole.to_local().nbytes for whole in expected.values()) + 8
        gaps = 3 * (7 - expected["columns"].to_local().shape[1]) * 2  # rows cut in two are read along their gaps
        assert sum(nbytes for _, _, nbytes in noted) == mine + gaps
    net = module("cpu")
    with torch.no_grad():
        assert str(net.load_state_dict({**ckpt, "tied": ckpt["rows"]})) == "<All keys matched successfully>"
    for name, whole in expected.items():
        assert torch.equal(getattr(net, name).to_local(), whole.to_local())


@pytest.mark.dist
def test_dtensor_parameters_on_two_ranks(tmp_path: Path) -> None:
    found = run_ranks("test_load", ["fills_dtensors"], 2, tmp_path)
    assert found["fills_dtensors"] == ["", ""], "\n".join(found["fills_dtensors"])


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=6, num_experts_per_tok=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("qwen")
    transformers.Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path, transformers.Qwen3MoeForCausalLM


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(12).reshape(1, 12)).logits


def test_a_real_model_by_load_state_dict(qwen: tuple[Path, Any]) -> None:
    path, kind = qwen
    expected = kind.from_pretrained(path, dtype=torch.bfloat16)
    model = kind(expected.config).to(torch.bfloat16)
    with lazysd.open(path) as ckpt:
        assert ckpt.layout == "hf"
        model.load_state_dict(ckpt.convert("hf-fused"))
        with pytest.raises(RuntimeError, match=re.escape("Missing key(s)")):
            model.load_state_dict(ckpt)
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)  # to(bfloat16) had rounded its buffer
    assert torch.equal(logits(model), logits(expected))


def test_a_real_model_by_load_into(qwen: tuple[Path, Any]) -> None:
    path, kind = qwen
    expected = kind.from_pretrained(path, dtype=torch.bfloat16)
    with torch.device("meta"):
        model = kind(expected.config).to(torch.bfloat16)
    report = lazysd.load_into(model, lazysd.open(path).convert("hf-fused"))
    assert report == ([], [], [])
    assert torch.equal(logits(model), logits(expected))


def test_a_wrong_layout_is_answered_with_the_right_one(qwen: tuple[Path, Any]) -> None:
    path, kind = qwen
    with torch.device("meta"):
        model = kind(kind.config_class.from_pretrained(path))
    with pytest.raises(RuntimeError, match=r'layout "hf-fused": load ckpt.convert\("hf-fused"\) instead'):
        lazysd.load_into(model, lazysd.open(path))
    ckpt = lazysd.open(path).drop("model.norm.weight")
    with pytest.raises(RuntimeError, match="Missing") as caught:
        lazysd.load_into(model, ckpt)  # no layout has that key
    assert "instead" not in str(caught.value)


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                                  "high_freq_factor": 4.0, "original_max_position_embeddings": 16}},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                                                    "original_max_position_embeddings": 16}},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2},
    "mistral": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
    "olmo2": {},
    "glm4_moe": {"first_k_dense_replace": 1, "n_routed_experts": 4, "moe_intermediate_size": 8},
    "deepseek_v3": {"first_k_dense_replace": 1, "n_routed_experts": 4, "moe_intermediate_size": 8, "n_group": 1,
                    "num_key_value_heads": 4, "topk_group": 1, "q_lora_rank": 8, "kv_lora_rank": 8,
                    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_meta_models_run_as_from_pretrained(model_type: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """The same logits and the same buffers, with nothing to do by hand."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "num_experts_per_tok": 2,
    }  # fmt: skip
    config = transformers.AutoConfig.for_model(model_type, **{**sizes, **FAMILIES[model_type]})
    transformers.AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(tmp_path)
    expected = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    saved_keys = set(model.state_dict())
    ckpt = lazysd.open(tmp_path)
    if ckpt.family in ("glm4_moe", "deepseek_v3"):
        ckpt = ckpt.convert("hf-fused")
    assert lazysd.load_into(model, ckpt) == ([], [], [])
    assert torch.equal(logits(model), logits(expected))
    theirs = dict(expected.named_buffers())
    for key, buffer in model.named_buffers():
        if key in saved_keys:
            continue
        assert (buffer.dtype, buffer.device) == (theirs[key].dtype, theirs[key].device), key
        assert torch.equal(buffer, theirs[key]), key
    assert not any(hasattr(tensor, "_is_hf_initialized") for tensor in model.parameters())


def test_from_pretrained_with_lazy_tensors_says_what_to_use_instead(qwen: tuple[Path, Any]) -> None:
    """It moves tensors of a state dict given to it into place, and so wants tensors that have memory."""
    path, kind = qwen
    ckpt, config = lazysd.open(path), kind.config_class.from_pretrained(path)
    with pytest.raises(
        lazysd.errors.LazysdError, match=r"load_into\(module, ckpt\) fills .*dict\(ckpt\.iter_tensors\(\)\)"
    ):
        kind.from_pretrained(None, config=config, state_dict=ckpt)
    expected, ids = kind.from_pretrained(path, dtype=torch.bfloat16), torch.arange(5)[None]
    for given in (ckpt, ckpt.convert("hf-fused")):  # what the error says to write
        model = kind.from_pretrained(None, config=config, state_dict=dict(given.iter_tensors()), dtype=torch.bfloat16)
        assert torch.equal(model(ids).logits, expected(ids).logits)


def test_buffers_that_nothing_computes_stay_on_meta(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ckpt = saved(randomised(Net()), tmp_path)
    with torch.device("meta"):
        net = nn.Sequential(Net())
    report = lazysd.load_into(net, {f"0.{key}": node for key, node in ckpt.items()})
    assert report.left_on_meta == ["0.table"]
    assert "1 buffers are on the meta device" in caplog.text
    line = next(line for line in caplog.text.splitlines() if "_buffers.update" in line)
    assert line.strip() == "model.get_submodule('0')._buffers.update(fresh.get_submodule('0')._buffers)"
    fresh = nn.Sequential(Net())
    exec(line.strip(), {"model": net, "fresh": fresh})
    assert torch.equal(net[0].table, torch.arange(3.0))


def test_a_model_that_leaves_a_buffer_alone_is_found_out(qwen: tuple[Path, Any], tmp_path: Path) -> None:
    """What `_init_weights` does not write must not be taken for computed, though it has memory by then."""
    path, kind = qwen
    with torch.device("meta"):
        model = kind(kind.config_class.from_pretrained(path)).to(torch.bfloat16)
        model.model.norm.register_buffer("own", torch.zeros(3, dtype=torch.bool), persistent=False)
    report = lazysd.load_into(model, lazysd.open(path).convert("hf-fused"))
    assert report.left_on_meta == ["model.norm.own"]
    assert torch.equal(model.model.norm.weight, kind.from_pretrained(path, dtype=torch.bfloat16).model.norm.weight)
