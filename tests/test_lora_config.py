"""adapter_config.json in and out, NeMo's stamp, and adapters on the command line."""

from __future__ import annotations

import json
import shutil
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import assert_same, bits
from lora_adapters import (
    PREFIX,
    adapter_config,
    apart,
    experts_at,
    folded,
    in_layout,
    native_lora,
    read_json,
    write_adapter,
)
from safetensors.torch import load_file, save_file

import lazysd
from lazysd.cli.main import main
from lazysd.errors import LayoutError
from lazysd.peft.config import AdapterConfig

LAYOUTS = ("nemo", "peft-0.18", "peft-0.19", "peft-per-expert")
CONFIG, STAMP = "adapter_config.json", "automodel_peft_config.json"
ABOUT_EXPERTS = {"target_modules", "target_parameters", "peft_version"}


def converted(tmp_path: Path, source: str, target: str, stamp: Any = None, **fields: Any) -> Path:
    write_adapter(tmp_path / "a", in_layout(native_lora(), source), adapter_config(source, **fields), stamp)
    lazysd.open(tmp_path / "a").convert(target).save(tmp_path / "b")
    return tmp_path / "b"


# what is kept


@pytest.mark.parametrize(("source", "target"), list(permutations(LAYOUTS, 2)))
def test_what_is_not_about_experts_is_kept(tmp_path: Path, source: str, target: str) -> None:
    fields = {"revision": "abc", "layers_to_transform": None, "somebody_elses": {"x": [1, 2.5, None]}, "r": 2}
    before = adapter_config(source, **fields)
    after = read_json(converted(tmp_path, source, target, **fields) / CONFIG)
    assert {k: v for k, v in after.items() if k not in ABOUT_EXPERTS} == {
        k: v for k, v in before.items() if k not in ABOUT_EXPERTS
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_unchanged_files_are_copied_byte_for_byte(tmp_path: Path, layout: str) -> None:
    folder = write_adapter(tmp_path / "a", in_layout(native_lora(), layout), adapter_config(layout))
    (folder / "README.md").write_text("trained on a Tuesday")
    (folder / "tokenizer.json").write_text("{}")
    lazysd.open(folder).save(tmp_path / "b")
    for name in (CONFIG, "README.md", "tokenizer.json"):
        assert (tmp_path / "b" / name).read_bytes() == (folder / name).read_bytes()
    other = "nemo" if layout != "nemo" else "peft-0.19"
    lazysd.open(folder).convert(other).save(tmp_path / "c")
    assert (tmp_path / "c" / "README.md").read_text() == "trained on a Tuesday"


@pytest.mark.parametrize("name", ["peft_paramwrapper_r3", "peft_paramwrapper_0181_r3"])
def test_a_trained_adapter_says_the_same_after_a_detour(golden: Path, tmp_path: Path, name: str) -> None:
    layout = lazysd.open(golden / name).layout
    lazysd.open(golden / name).convert("nemo").save(tmp_path / "n")
    lazysd.open(tmp_path / "n").convert(str(layout)).save(tmp_path / "b")
    assert read_json(tmp_path / "b" / CONFIG) == read_json(golden / name / CONFIG)
    assert_same(lazysd.open(tmp_path / "b"), load_file(golden / name / "adapter_model.safetensors"))


@pytest.mark.parametrize(("source", "target"), list(permutations(LAYOUTS, 2)))
def test_version_and_targets(tmp_path: Path, source: str, target: str) -> None:
    after = read_json(converted(tmp_path, source, target) / CONFIG)
    if target == "peft-per-expert":
        assert after["target_parameters"] is None
        names = {f"{e}.{word}" for e in range(3) for word in ("gate_proj", "up_proj", "down_proj")}
        assert set(after["target_modules"]) == {f"model.layers.0.mlp.experts.{name}" for name in names}
    else:
        assert sorted(after["target_parameters"]) == ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
        assert after["target_modules"] == []
    if target in ("peft-0.18", "peft-0.19"):
        assert after["peft_version"] == {"peft-0.18": "0.18.1", "peft-0.19": "0.19.1"}[target]


def test_a_version_of_the_right_generation_stays(tmp_path: Path) -> None:
    assert (
        read_json(converted(tmp_path, "nemo", "peft-0.19", peft_version="0.20.3") / CONFIG)["peft_version"] == "0.20.3"
    )


@pytest.mark.parametrize(("source", "target"), list(permutations(LAYOUTS, 2)))
def test_the_stamp_is_kept_and_right(tmp_path: Path, source: str, target: str) -> None:
    stamps = {"peft-0.18": "peft-0.18", "peft-0.19": "peft-0.19.1"}
    stamp = {"dim": 2, "alpha": 8, "use_dora": False}
    said = stamp | ({"paramwrapper_layout": stamps[source]} if source in stamps else {})
    after = read_json(converted(tmp_path, source, target, stamp=said) / STAMP)
    assert after == stamp | ({"paramwrapper_layout": stamps[target]} if target in stamps else {})
    assert lazysd.open(tmp_path / "b").layout == target


# target_modules of adapters that also cover other modules


def with_others() -> dict[str, torch.Tensor]:
    others = {}
    for module in ("layers.0.self_attn.q_proj", "layers.1.mlp.gate_proj", "layers.0.mlp.shared_expert.down_proj"):
        others |= {f"{PREFIX}{module}.lora_{x}.weight": torch.randn(2, 2) for x in "AB"}
    others |= {f"{PREFIX}embed_tokens.lora_embedding_{x}": torch.randn(2, 2) for x in "AB"}
    return others


STILL_NAMED = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.mlp.gate_proj",
    "model.layers.0.mlp.shared_expert.down_proj",
    "model.embed_tokens",
)


def names(targets: list[str], module: str) -> bool:
    """PEFT's rule for a list: the whole name or its end after a dot."""
    return any(module == target or module.endswith("." + target) for target in targets)


@pytest.mark.parametrize("target", ["nemo", "peft-0.18", "peft-0.19"])
@pytest.mark.parametrize(
    "targets",
    [
        ["q_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens"],
        ["q_proj", "mlp.gate_proj", "experts.0.gate_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens"],
        "all-linear",
        r".*(_proj|embed_tokens)",
    ],
    ids=["ends", "longer ends", "all-linear", "regex"],
)
def test_experts_leave_target_modules_and_others_stay(tmp_path: Path, target: str, targets: Any) -> None:
    tensors = apart(native_lora()) | with_others()
    write_adapter(tmp_path / "a", tensors, adapter_config("peft-per-expert", target_modules=targets))
    lazysd.open(tmp_path / "a").convert(target).save(tmp_path / "b")
    after = read_json(tmp_path / "b" / CONFIG)
    for module in STILL_NAMED:
        assert names(after["target_modules"], module), module
    for e in range(3):
        assert not names(after["target_modules"], f"model.layers.0.mlp.experts.{e}.gate_proj")
    assert set(after["target_parameters"]) == {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}


@pytest.mark.parametrize("source", ["nemo", "peft-0.18", "peft-0.19"])
@pytest.mark.parametrize("targets", [["q_proj", "mlp.gate_proj"], "all-linear", None])
def test_experts_join_target_modules_and_others_stay(tmp_path: Path, source: str, targets: Any) -> None:
    tensors = in_layout(native_lora(), source) | with_others()
    config = adapter_config(source, target_modules=targets)
    config["target_parameters"].append("lm_head.weight")
    write_adapter(tmp_path / "a", tensors, config)
    lazysd.open(tmp_path / "a").convert("peft-per-expert").save(tmp_path / "b")
    after = read_json(tmp_path / "b" / CONFIG)
    everything = [f"model.layers.0.mlp.experts.{e}.{w}_proj" for e in range(3) for w in ("gate", "up", "down")]
    for module in (*STILL_NAMED, *everything):
        assert names(after["target_modules"], module), module
    assert after["target_parameters"] == ["lm_head.weight"]


@pytest.mark.parametrize("wrapped", ["gate_up", "down"])
@pytest.mark.parametrize("target", ["peft-0.18", "peft-0.19"])
def test_a_parameter_without_lora_is_named_no_longer(tmp_path: Path, target: str, wrapped: str) -> None:
    """NeMo names both; PEFT would then nest two wrappers and look for other keys."""
    config = adapter_config("nemo")
    write_adapter(tmp_path / "a", native_lora(wrapped=(wrapped,)), config)
    lazysd.open(tmp_path / "a").convert(target).save(tmp_path / "b")
    assert read_json(tmp_path / "b" / CONFIG)["target_parameters"] == [f"mlp.experts.{wrapped}_proj"]


# ranks and alphas that have to be written down


def test_a_stale_pattern_gives_way(tmp_path: Path) -> None:
    tensors = apart(native_lora(finite=True))
    stale = {"rank_pattern": {"mlp.experts.gate_up_proj": 7}, "alpha_pattern": {"mlp.experts.gate_up_proj": 7}}
    write_adapter(tmp_path / "a", tensors, adapter_config("peft-per-expert", **stale))
    ckpt = lazysd.open(tmp_path / "a").convert("peft-0.19", merge_rank=True)
    assert ckpt.adapter is not None
    assert ckpt.adapter.rank("model.layers.0.mlp.experts.gate_up_proj") == 4
    assert ckpt.adapter.alpha("model.layers.0.mlp.experts.gate_up_proj") == 16
    assert ckpt.adapter.rank("model.layers.0.mlp.experts.down_proj") == 2
    plain = lazysd.open(tmp_path / "a").convert("peft-0.19").adapter
    assert plain is not None
    assert (plain.rank("mlp.experts.gate_up_proj"), plain.alpha("mlp.experts.gate_up_proj")) == (2, 8)


def test_alphas_that_one_parameter_cannot_have(tmp_path: Path) -> None:
    config = adapter_config("peft-per-expert", alpha_pattern={r"experts.1.gate_proj": 3})
    write_adapter(tmp_path, apart(native_lora()), config)
    with pytest.raises(LayoutError, match=r"gate_up_proj: alpha_pattern gives its experts different alphas"):
        lazysd.open(tmp_path).convert("nemo")


def test_tensors_of_another_rank_than_stated(tmp_path: Path) -> None:
    write_adapter(tmp_path, native_lora(r=2), adapter_config("nemo", r=4))
    with pytest.raises(LayoutError, match=r"its tensors have rank 2, adapter_config.json says 4"):
        lazysd.open(tmp_path).convert("peft-0.19")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only LORA"),
        ({"rank_pattern": [3]}, "rank_pattern should map names to numbers"),
        ({"alpha_pattern": "x"}, "alpha_pattern should map names to numbers"),
        ({"target_parameters": "mlp"}, "target_parameters should be a list of names"),
        ({"target_parameters": ["mlp", 3]}, "target_parameters should be a list of names"),
        ({"target_modules": [["q_proj"]]}, "target_modules should be a list of names"),
        ({"target_modules": {"q_proj": 1}}, "target_modules should be a list of names"),
        ({"rank_pattern": {"(" * 9999: 3}}, "is no regular expression"),
        ({"rank_pattern": {"a{99999999999}": 3}}, "is no regular expression"),
        ({"r": 0}, "should be a positive whole number, it is 0"),
        ({"r": "2"}, "should be a positive whole number, it is '2'"),
        ({"r": True}, "should be a positive whole number, it is True"),
        ({"lora_alpha": "8"}, "should be a number, it is '8'"),
        ({"rank_pattern": {"(": 3}}, r"pattern '\(' is no regular expression"),
    ],
)
def test_nonsense_is_an_error_of_ours(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    write_adapter(tmp_path, folded(native_lora(), "peft-0.19"), adapter_config("peft-0.19", **fields))
    with pytest.raises(LayoutError, match=said):
        lazysd.open(tmp_path).convert("nemo")


def test_a_stamp_that_is_no_word(tmp_path: Path) -> None:
    write_adapter(tmp_path, folded(native_lora(), "peft-0.19"), adapter_config("nemo"), {"paramwrapper_layout": ["x"]})
    with pytest.raises(LayoutError, match=r"paramwrapper_layout is \['x'\]"):
        lazysd.open(tmp_path).convert("nemo")


def test_a_stamp_alone_decides(tmp_path: Path) -> None:
    native = native_lora(2, 8, 8, 3, wrapped=("down",))
    write_adapter(tmp_path, folded(native, "peft-0.18"), None, {"paramwrapper_layout": "peft-0.18"})
    stated = {"r": 3, "target_parameters": ["mlp.experts.down_proj"]}
    assert_same(lazysd.open(tmp_path).convert("nemo", config=stated), native)


@pytest.mark.parametrize("lost", [{"lora_alpha": None}, {"r": None}])
def test_a_file_that_lacks_numbers_is_not_left_stale(tmp_path: Path, lost: dict[str, Any]) -> None:
    """Left as it was, it would state the generation that the tensors no longer have."""
    config = adapter_config("peft-0.18") | lost
    write_adapter(tmp_path / "a", folded(native_lora(), "peft-0.18"), config)
    lazysd.open(tmp_path / "a").convert("peft-0.19", config={"num_experts": 3}).save(tmp_path / "b")
    after = read_json(tmp_path / "b" / CONFIG)
    assert (after["peft_version"], after["lora_alpha"]) == ("0.19.1", config["lora_alpha"])
    assert_same(lazysd.open(tmp_path / "b").convert("nemo", config={"num_experts": 3}), native_lora())


def test_merge_rank_needs_an_alpha_to_double(tmp_path: Path) -> None:
    config = adapter_config("peft-per-expert")
    del config["lora_alpha"]
    write_adapter(tmp_path, apart(native_lora()), config)
    with pytest.raises(LayoutError, match=r"lora_alpha has to double, and adapter_config\.json states none"):
        lazysd.open(tmp_path).convert("peft-0.19", merge_rank=True)
    ckpt = lazysd.open(tmp_path).convert("peft-0.19", merge_rank=True, config={"lora_alpha": 5})
    assert ckpt.adapter is not None
    assert ckpt.adapter.values["alpha_pattern"] == {"mlp.experts.gate_up_proj": 10}


def test_scale() -> None:
    assert AdapterConfig({"use_rslora": True}).scale(4, 6) == 3
    assert AdapterConfig({}).scale(4, 6) == 1.5
    with pytest.raises(LayoutError, match="should be a number, it is nan"):
        AdapterConfig().stating({"lora_alpha": float("nan")}).alpha("q_proj")


# files without a folder, folders without numbers


def test_the_file_inside_the_folder_keeps_its_numbers(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", native_lora(), adapter_config("nemo", lora_alpha=32))
    for target in ("nemo", "peft-0.19"):
        ckpt = lazysd.open(tmp_path / "a" / "adapter_model.safetensors").convert(target)
        ckpt.save(tmp_path / target)
        assert read_json(tmp_path / target / CONFIG)["lora_alpha"] == 32


def test_adapters_are_one_file(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", native_lora(layers=range(4)), adapter_config("nemo"))
    lazysd.open(tmp_path / "a").convert("peft-0.19").save(tmp_path / "b", max_shard_size=100)
    assert [path.name for path in (tmp_path / "b").glob("*.safetensors*")] == ["adapter_model.safetensors"]


def test_alpha_is_never_made_up(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PEFT would take 8 for an alpha that is not there."""
    src = str(golden / "lora_native_r3.safetensors")
    assert main(["convert", src, str(tmp_path / "a"), "--to", "peft"]) == 0
    assert "nothing states lora_alpha; state it with --lora-alpha" in capsys.readouterr().err
    assert not (tmp_path / "a" / CONFIG).exists()
    assert main(["convert", src, str(tmp_path / "b"), "--to", "peft", "--lora-alpha", "16"]) == 0
    assert capsys.readouterr().err == ""
    after = read_json(tmp_path / "b" / CONFIG)
    assert (after["r"], after["lora_alpha"], after["peft_type"]) == (3, 16, "LORA")
    assert_same(
        lazysd.open(tmp_path / "b"),
        load_file(golden / "lora_paramwrapper_peft0212_r3" / "adapter_model.safetensors"),
    )
    with pytest.raises(SystemExit):
        main(["convert", src, str(tmp_path / "c"), "--to", "peft", "--lora-alpha", "many"])
    assert "'many' is not a number" in capsys.readouterr().err


# the command line


def test_merge_rank_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = apart(native_lora(finite=True))
    tensors[experts_at(0) + "0.up_proj.lora_A.weight"] += 1
    src = str(write_adapter(tmp_path / "a", tensors, adapter_config("peft-per-expert")))
    assert main(["convert", src, str(tmp_path / "b"), "--to", "peft"]) == 3
    assert "--merge-rank" in capsys.readouterr().err
    assert main(["plan", src, "--to", "peft", "--merge-rank", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lossy"] == []
    assert main(["convert", src, str(tmp_path / "b"), "--to", "peft", "--merge-rank", "--verify"]) == 0
    after = read_json(tmp_path / "b" / CONFIG)
    assert after["rank_pattern"] == {"mlp.experts.gate_up_proj": 4}
    assert after["alpha_pattern"] == {"mlp.experts.gate_up_proj": 16}
    assert lazysd.open(tmp_path / "b")[experts_at(0) + "base_layer.lora_A.weight"].shape == (12, 4)
    assert main(["verify", str(tmp_path / "b"), "--against", src, "--merge-rank"]) == 0
    assert main(["convert", str(tmp_path / "b"), str(tmp_path / "c"), "--to", "nemo", "--merge-rank"]) == 3
    assert "in layout 'peft-0.19' they share it" in capsys.readouterr().err


@pytest.fixture
def two(golden: Path, tmp_path: Path) -> tuple[str, str]:
    """The golden adapter of peft 0.21 and the same as peft 0.18 stores it."""
    shutil.copytree(golden / "lora_paramwrapper_peft0212_r3", tmp_path / "new")
    tensors = load_file(golden / "lora_paramwrapper_nemo_r3.safetensors")
    write_adapter(tmp_path / "old", tensors, adapter_config("peft-0.18", r=3))
    return str(tmp_path / "new"), str(tmp_path / "old")


def test_verify_and_diff_across_generations(two: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    new, old = two
    for a, b in ((new, old), (old, new)):
        assert main(["verify", a, "--against", b]) == 0
        assert "8 tensors" in capsys.readouterr().out
        assert main(["diff", a, b]) == 0
    path = Path(old) / "adapter_model.safetensors"
    tensors = load_file(path)
    bits(tensors[experts_at(1) + "lora_A.weight"])[3 * 4 + 2, 5] ^= 1  # expert 4, rank 2, column 5
    save_file(tensors, path)
    capsys.readouterr()
    assert main(["verify", new, "--against", old]) == 1
    assert (
        f"{experts_at(1)}lora_B.weight: values: 1 of 576 elements differ; the first at [5, 16]"
        in capsys.readouterr().out
    )
    assert main(["diff", old, new]) == 1
    assert "values: 1 of 576 elements differ; the first at [14, 5]" in capsys.readouterr().out


@pytest.mark.parametrize("fields", [{"lora_alpha": 9}, {"use_rslora": True}, {"alpha_pattern": {"down_proj": 9}}])
def test_verify_and_diff_see_another_scale(
    two: tuple[str, str], fields: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    new, old = two
    path = Path(old) / CONFIG
    path.write_text(json.dumps(read_json(path) | fields))
    for command in (["verify", new, "--against", old], ["diff", new, old], ["diff", old, old]):
        equal = command[1:] == [old, old]
        assert main(command) == (0 if equal else 1)
        out = capsys.readouterr().out
        assert equal or "model.layers.{0-1}.mlp.experts.down_proj: scale: " in out


def test_verify_and_diff_of_undecidable_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    native = native_lora(2, 8, 8, 3, wrapped=("down",))
    said = adapter_config("nemo", r=3, target_parameters=["mlp.experts.down_proj"])
    old = str(write_adapter(tmp_path / "old", folded(native, "peft-0.18"), said))
    new = str(write_adapter(tmp_path / "new", folded(native, "peft-0.19"), said))
    nemo = str(write_adapter(tmp_path / "nemo", native, said))
    for command in (["verify", new, "--against", old], ["verify", nemo, "--against", old], ["diff", nemo, old]):
        assert main(command) == 3
        assert "--from peft-0.18 or --from peft-0.19" in capsys.readouterr().err
    both = ["--from", "peft-0.18", "--to", "peft-0.19"]
    assert main(["verify", new, "--against", old, *both]) == 0
    assert main(["verify", nemo, "--against", old, "--from", "peft-0.18"]) == 0
    assert main(["verify", nemo, "--against", old, "--from", "peft-0.19"]) == 1
    assert main(["verify", old, "--against", nemo, "--to", "peft-0.18"]) == 0
    assert main(["verify", old, "--against", nemo, "--to", "peft-0.19"]) == 1
    assert main(["diff", new, old, *both]) == 0
    assert main(["diff", nemo, old, "--from", "peft-0.18"]) == 0
    assert main(["diff", old, nemo, "--to", "peft-0.18"]) == 0
    assert main(["diff", old, old, "--from", "peft-0.18", "--to", "peft-0.18"]) == 0


def test_inspect_shows_an_adapter(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(golden / "peft_paramwrapper_0181_r3")
    assert main(["inspect", path]) == 0
    out = capsys.readouterr().out
    assert "LoRA of rank 3, alpha 8, scale alpha / rank, 6 experts" in out
    assert "peft-0.18 (peft 0.18.1)" in out
    assert "targets down_proj, gate_up_proj, q_proj, v_proj" in out
    assert main(["inspect", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["adapter"]
    expected = {"rank": 3, "alpha": 8, "rslora": False, "generation": "peft-0.18", "num_experts": 6, "tensors": 16}
    assert found | expected | {"problem": None} == found
    assert found["nbytes"] == sum(t.nbytes for t in load_file(Path(path) / "adapter_model.safetensors").values())
    assert main(["inspect", str(golden / "qwen3_moe_tiny"), "--json"]) == 0
    assert "adapter" not in json.loads(capsys.readouterr().out)


def test_inspect_shows_ranks_that_differ_and_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = adapter_config("peft-0.19", rank_pattern={"mlp.experts.down_proj": 3}, use_rslora=True)
    write_adapter(tmp_path / "a", folded(native_lora(r_down=3), "peft-0.19"), config)
    assert main(["inspect", str(tmp_path / "a")]) == 0
    assert "LoRA of rank 2, 3, alpha 8, scale alpha / sqrt(rank), 3 experts" in capsys.readouterr().out
    said = adapter_config("nemo", r=3, target_parameters=["mlp.experts.down_proj"])
    write_adapter(tmp_path / "b", folded(native_lora(2, 8, 8, 3, wrapped=("down",)), "peft-0.18"), said)
    assert main(["inspect", str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    assert "generation undecided (no peft_version)" in out
    assert "problem: this adapter may be of PEFT up to 0.19.0 or of a later one" in out
    assert main(["inspect", str(tmp_path / "b"), "--json"]) == 0
    assert "--from peft-0.18 or --from peft-0.19" in json.loads(capsys.readouterr().out)["adapter"]["problem"]
