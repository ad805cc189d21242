"""Family x dialect -> Layout. Both sides name the same axes, so a rule is one of each, joined by an arrow."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..errors import LayoutError
from .family import PER_EXPERT, Dialect, Experts, Family, Form, Rename, Speech
from .rule import Layout, Rule


def derive(family: Family, dialect: Dialect | None, name: str) -> Layout:
    """The layout of a family in a dialect. Raises LayoutError saying why there is none.

    Args:
        dialect: None for a form that only this family has, whose table stands in `family.speaks`.
        name: of the layout.
    """
    said = family.speaks.get(name)
    if isinstance(said, str):
        raise LayoutError(f"family {family.name!r} has no layout {name!r}: {said}")
    if family.dense:
        return _dense(family, dialect, name)
    if said is None and dialect is not None and not dialect.everywhere:
        raise LayoutError(f"family {family.name!r} has no layout {name!r}: {dialect.unless}")
    speech = said or Speech()
    rules: list[Rule] = []
    sizes: dict[str, tuple[str, ...]] = {**(dialect.sizes if dialect else {}), **family.sizes}
    firsts: dict[str, tuple[str, ...]] = {}
    for number, experts in enumerate(family.stacks):
        suffix = str(number + 1) if number else ""
        said_form = speech.form[number] if isinstance(speech.form, tuple) else speech.form
        form = said_form or (dialect.form if dialect else None) or experts.disk
        at = _place(experts, dialect, speech, number)
        rules += _rules(experts, form, at, suffix, f"family {family.name!r} has no layout {name!r}", speech.prefix)
        sizes |= _sizes(experts, suffix)
        if experts.first:
            firsts["e" + suffix] = tuple(_in_config(experts, text) for text in experts.first)
    if name != "hf":
        rules += [_apart(prefix, family) for prefix in family.apart]
        renames = speech.renames if speech.renames is not None else dialect.renames if dialect else ()
        rules += [_rename(rename) for rename in renames]
    description = speech.description or (dialect.description if dialect else "")
    source = speech.source or (dialect.source if dialect else "") or family.source
    layout = Layout(
        name,
        family.name,
        tuple(rules),
        description,
        sizes=sizes,
        refuses={**family.refuses, **(dialect.refuses if dialect else {}), **speech.refuses},
        beside=_beside(family),
        firsts=firsts,
        source=source,
    )
    return dialect.complete(layout, family) if dialect is not None and dialect.complete is not None else layout


_LAYER = "{prefix}layers.{layer}."
_DENSE = tuple(  # what dense families are recognised by; they stay as they are in "hf"
    Rule(_LAYER + key, _LAYER + key, f"{axes} -> {axes}")
    for key, axes in (
        ("self_attn.{p:q_proj|k_proj|v_proj}.weight", "[p] q|k|v h"),
        ("self_attn.{p:q_proj|k_proj|v_proj}.bias", "[p] q|k|v"),
        ("mlp.{g:gate_proj|up_proj}.weight", "[g] f h"),
        ("mlp.{g:gate_proj|up_proj}.bias", "[g] f"),
    )
)
_DENSE_BESIDE = (_LAYER + "self_attn.{x:o_proj|q_norm|k_norm|rotary_emb}.{y:*}", _LAYER + "mlp.down_proj.{y:*}")


def _dense(family: Family, dialect: Dialect | None, name: str) -> Layout:
    """The layout of a family without experts."""
    if dialect is None or not (dialect.dense or name == "hf"):
        raise LayoutError(f"family {family.name!r} has no layout {name!r}: it groups experts, and this family has none")
    rules = _DENSE if name == "hf" else tuple(_rename(rename) for rename in dialect.dense)
    about = "Hugging Face on disk" if name == "hf" else dialect.description
    sizes = {"h": ("hidden_size",), "f": ("intermediate_size",), **dialect.sizes, **family.sizes}
    source = dialect.source or family.source
    return Layout(name, family.name, rules, about, sizes, refuses=family.refuses, beside=_DENSE_BESIDE, source=source)


def _beside(family: Family) -> tuple[str, ...]:
    """Keys on disk that some dialect renames: known, so no strangers among the experts."""
    speeches = [said for said in family.speaks.values() if isinstance(said, Speech)]
    renames = (rename for said in speeches for rename in said.renames or ())
    return tuple(dict.fromkeys(rename.hf if isinstance(rename, Rule) else rename[0] for rename in renames))


def module_of(family: Family) -> str:
    """Where transformers has the experts' module in memory, by which other programs name it: a key template."""
    said = family.speaks.get("hf-fused")
    at = said.at if isinstance(said, Speech) else None
    return (at[0] if isinstance(at, tuple) else at) or family.stacks[0].at


def middle(experts: Experts) -> dict[str, tuple[str, str]]:
    """The virtual middle of a stack: one tensor for each expert and projection, whether or not any file has it."""
    return {kind: (experts.at + key, axes) for kind, (key, axes) in PER_EXPERT.items() if kind in experts.kinds}


def _place(experts: Experts, dialect: Dialect | None, speech: Speech, number: int) -> str:
    at = speech.at[number] if isinstance(speech.at, tuple) else speech.at
    return at or (dialect.at if dialect else None) or experts.at


def _rules(experts: Experts, form: Form, at: str, suffix: str, none: str, prefix: str) -> Iterator[Rule]:
    hub = middle(experts)
    for kind in experts.kinds:
        if kind not in form:
            raise LayoutError(f"{none}: it has no place for {kind} of its experts")
        below, axes = form[kind]
        (key, middle_axes), there = hub[kind], (at + below, axes)
        if "{prefix}" not in at:  # the dialect has no prefix: it means the whole model
            key = key.replace("{prefix}", prefix)
        here = (key, middle_axes)
        (hf, left), (to, right) = (_spelt(experts, *side, suffix, kind) for side in (here, there))
        yield Rule(hf, to, f"{left} -> {right}")


def _spelt(experts: Experts, key: str, axes: str, suffix: str, kind: str) -> tuple[str, str]:
    """Key template and axes of one stack: words filled in, axes numbered, gate taken out where there is none."""
    if experts.gate is None:
        axes = (
            re.sub(r"\(\s*(\w+)\s*\)", r"\1", re.sub(r"\bg\b\s*", "", axes))
            .replace("[]", "")
            .replace(" ]", "]")
            .strip()
        )
        key = re.sub(r"\{g(?::[^}]*)?\}", experts.up, key)
    key = key.replace("{g}", f"{{g:{experts.gate}|{experts.up}}}").replace("{down}", experts.down)
    letter = f"z{suffix}{'du'[kind.startswith('gate_up')]}" if kind in experts.num_of else "e" + suffix
    axes = re.sub(r"\be\b", letter, axes)
    key = re.sub(r"\{e\}", f"{{{letter}}}", key)
    if suffix:
        axes = re.sub(r"\b([ihg])\b", rf"\g<1>{suffix}", axes)
        key = re.sub(r"\{g:", f"{{g{suffix}:", key)
    return key, axes


def _sizes(experts: Experts, suffix: str) -> dict[str, tuple[str, ...]]:
    named = {"e": experts.num, "h": experts.hidden, "i": experts.inner}
    found = {axis + suffix: tuple(_in_config(experts, text) for text in texts) for axis, texts in named.items()}
    for kind, texts in experts.num_of.items():
        found[f"z{suffix}{'du'[kind.startswith('gate_up')]}"] = tuple(_in_config(experts, text) for text in texts)
    return found


def _in_config(experts: Experts, text: str) -> str:
    """Names with the path of the sub-config that the stack's sizes stand in."""
    return re.sub(r"[A-Za-z_][\w.]*", lambda word: f"{experts.config}.{word[0]}", text) if experts.config else text


def _rename(rename: Rename) -> Rule:
    if isinstance(rename, Rule):
        return rename
    hf, to, *axes = rename
    return Rule(hf, to, axes[0] if axes else "... -> ...", rename=True)


def _apart(prefix: str, family: Family) -> Rule:
    text = prefix + "{rest:**}"
    return Rule(text, text, "... -> ...")
