"""The notation: what a rule may say, what is refused as it is written, and what comes of it, against eager torch."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest
import torch
from checkpoints import assert_same, noise
from hypothesis import given, settings
from hypothesis import strategies as st

import lazysd
from lazysd.errors import LayoutError, MissingExpertsError
from lazysd.layouts import Layout, Rule, convert, parse_axes, parse_key
from lazysd.layouts.keys import KeyTemplate, kind_of
from lazysd.layouts.reading import is_ambiguous

HUB = Layout("hub", "f")


def hub_of(*rules: Rule) -> Layout:
    """The hub that rules start from, so that it is checked as a layout's."""
    sides = [str(parse_axes(rule.axes)[0]) for rule in rules]
    return Layout(
        "hub",
        "f",
        [Rule(r.hf, r.hf, f"{side} -> {side}", rename=r.rename) for r, side in zip(rules, sides, strict=True)],
    )


def both_ways(rules: list[Rule], hub: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], **sizes: int) -> None:
    """There is what eager torch says, and back are the very leaves."""
    mine, start = Layout("mine", "f", rules), hub_of(*rules)
    lazies = {key: lazysd.from_torch(tensor) for key, tensor in hub.items()}
    found = convert(lazies, start, mine, sizes)
    assert_same(found, expected)
    back = convert(found, mine, start, sizes)
    assert set(back) == set(lazies)
    assert all(back[key] is lazies[key] for key in lazies)


def refused(*rule: str, reason: str, **more: Any) -> None:
    with pytest.raises(LayoutError, match=f"bad rule .*{reason}"):
        Rule(*rule, **more)


@pytest.mark.parametrize(
    ("hf", "to", "axes", "reason"),
    [
        ("a.{g:x|y}.w", "b.{g:x|y|z}.w", "[g] i -> [g] i", "2 words on one side and 3 on the other"),
        ("a.{g:x|y}.w", "b.{g:y|z}.w", "i -> i", "words of g do not correspond"),
        ("a.{g:x|y}.w", "b.{g}.w", "i -> i", "words of g do not correspond"),
        ("a.{g:x|x}.w", "b.w", "[g] i -> g i", "words of g should differ"),
        ("a.{g:x|}.w", "b.w", "[g] i -> g i", "words of g should differ"),
        ("a.{e}{f}.w", "b.w", "[e f] i -> e f i", "cannot be told apart"),
        ("a.{g:x|x1}{e}.w", "b.w", "[g e] i -> g e i", "cannot be told apart"),
        ("{prefix}a.{rest:**}", "{prefix}b.{rest:**}", "... -> ...", "cannot be told apart"),
        ("a.{x:*}_{y:*}", "b.{x:*}.{y:*}", "... -> ...", "cannot be told apart"),
        ("a.{prefix}", "b", "[prefix] i -> prefix i", "should be a number or words"),
        ("a.{x:*}", "b", "[x] i -> x i", "should be a number or words"),
        ("a.{1e}", "b", "i -> i", "no name for a field"),
        ("a.{prefix:x|y}", "b", "i -> i", "takes no words"),
        ("a.{é}", "b", "[é] i -> é i", "no name for a field"),
        ("a.{e}", "b", "[e] i -> e i j", r"\['j'\] stand on one side only"),
        ("a", "b", "... i -> i", r"\['...'\] stand on one side only"),
        ("a", "b", "(... i) -> (... i)", "cannot read"),
        ("a.{p:q|k}", "b", "[p] q|k h -> (q + v) h", "parts are written"),
        ("a.{p:q|k|v}", "b", "[p] q|k h -> (q + k) h", "one word of p for each part"),
        ("a", "b", "(q + ) h -> h q", "cannot read"),
    ],
)
def test_rules_that_are_no_bijections(hf: str, to: str, axes: str, reason: str) -> None:
    """Refused as they are made, as LayoutError: never IndexError, KeyError or re.error."""
    refused(hf, to, axes, reason=reason)


def texts(template: KeyTemplate) -> st.SearchStrategy[str]:
    """Keys of a template, by its own parts."""
    parts = []
    for token in template.tokens:
        choices = {
            "literal": [token.text],
            "prefix": ["", "a.", "a.b.", "0.a."],
            "number": ["0", "1", "10", "12"],
            "words": list(token.words),
            "name": ["a", "0", "ab"],
            "text": ["a", "a.b", "0.1.a"],
        }
        parts.append(st.sampled_from(choices[token.kind]))
    return st.tuples(*parts).map("".join)


PIECES = ["a", ".", "b.", "0", "{prefix}", "{e}", "{l}", "{w:a|ab|b.a}", "{v:0|1}", "{x:*}", "{y:**}"]


@given(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=6, unique_by=lambda text: text if "{" in text else object())
)
@settings(max_examples=400)
def test_what_is_called_unambiguous_is(pieces: list[str]) -> None:
    """Every split of a short key into the pieces, found by brute force: never two where the template was taken."""
    kinds = {"prefix": r"(?:[ab01.]*\.)?", "e": r"0|[1-9]\d*", "l": r"0|[1-9]\d*", "x": r"[^.]+", "y": r".+"}
    words = {"w": ("a", "ab", "b.a"), "v": ("0", "1")}
    regexes, tokens = [], []
    for piece in pieces:
        name = piece.strip("{}").split(":")[0]
        if not piece.startswith("{"):
            regexes.append(re.escape(piece))
            tokens.append(("literal", (piece,)))
        elif name in words:
            regexes.append("|".join(map(re.escape, words[name])))
            tokens.append(("words", words[name]))
        else:
            regexes.append(kinds[name])
            kind = {"prefix": "prefix", "x": "name", "y": "text"}.get(name, "number")
            tokens.append((kind, (name,)))

    def splits(key: str, at: int) -> int:
        if at == len(regexes):
            return int(not key)
        return sum(
            splits(key[cut:], at + 1) for cut in range(len(key) + 1) if re.fullmatch(regexes[at], key[:cut], re.DOTALL)
        )

    if not is_ambiguous(tokens):
        for length in range(1, 5):
            for key in product("a.0", repeat=length):
                assert splits("".join(key), 0) <= 1, "".join(key)


@given(st.data())
@settings(max_examples=60)
def test_a_key_comes_back_as_it_was(data: st.DataObject) -> None:
    template = parse_key(data.draw(st.sampled_from(["{prefix}l.{e}.{g:a|b}.w", "m.{rest:**}", "{prefix}x{e}.{n:*}.k"])))
    key = data.draw(texts(template))
    fields = template.match(key)
    assert fields is not None
    assert template.format(fields) == key


def test_an_ambiguous_example_pinned() -> None:
    assert is_ambiguous([("number", ("e",)), ("number", ("f",))])
    assert not is_ambiguous([("number", ("e",)), ("literal", ("x",)), ("number", ("f",))])
    assert is_ambiguous([("prefix", ("prefix",)), ("literal", ("a.",)), ("text", ("rest",))])


def test_renames_of_any_rank_and_free_text() -> None:
    hub = {"backbone.norm": noise((3,)), "backbone.a.b.weight": noise((2, 3, 4)), "backbone.x": noise(())}
    both_ways(
        [Rule("backbone.{rest:**}", "model.{rest:**}", rename=True)],
        hub,
        {key.replace("backbone", "model"): tensor for key, tensor in hub.items()},
    )


def test_the_most_specific_rename_counts() -> None:
    rules = [
        Rule("a.{rest:**}", "b.{rest:**}", rename=True),
        Rule("a.x.{rest:**}", "c.{rest:**}", rename=True),
        Rule("a.e.{e}.w", "b.experts.all", "[e] i -> e i"),
    ]
    experts = [noise((3,), seed=n) for n in range(11)]
    hub = {"a.y": noise((1,)), "a.x.y": noise((2,))} | {f"a.e.{n}.w": experts[n] for n in range(11)}
    expected = {"b.y": hub["a.y"], "c.y": hub["a.x.y"], "b.experts.all": torch.stack(experts)}
    both_ways(rules, hub, expected)
    with pytest.raises(LayoutError, match="would read back as something else"):
        both_ways(
            [Rule("a.{n:*}", "c.{n:*}", rename=True), Rule("b.{n:*}", "c.x{n:*}", rename=True)], {"a.xy": noise(())}, {}
        )


def test_a_rename_claims_no_neighbourhood() -> None:
    rule = Rule("{prefix}layers.{layer}.a.gate", "{prefix}layers.{layer}.b.gate", rename=True)
    both_ways([rule], {"layers.0.a.other": noise((2,)), "layers.0.a.gate": noise((1,))},
              {"layers.0.a.other": noise((2,)), "layers.0.b.gate": noise((1,))})  # fmt: skip


def test_a_prefix_may_be_added() -> None:
    hub = {"layers.3.w": noise((2,)), "x.layers.10.w": noise((2,), seed=1)}
    both_ways([Rule("{prefix}layers.{layer}.w", "model.{prefix}layers.{layer}.w", "i -> i")], hub,
              {"model." + key: tensor for key, tensor in hub.items()})  # fmt: skip


def test_an_axis_of_size_one() -> None:
    weight = noise((6, 1, 4))
    both_ways([Rule("conv", "flat", "c 1 k -> c k")], {"conv": weight}, {"flat": weight[:, 0]})
    three = [noise((2, 1, 4), seed=n) for n in range(3)]
    both_ways(
        [Rule("{c:q|k|v}_conv", "conv", "[c] d 1 k -> (c d) 1 k")],
        {f"{name}_conv": tensor for name, tensor in zip("qkv", three, strict=True)},
        {"conv": torch.cat(three)},
    )
    with pytest.raises(LayoutError, match="axis 1 has size 2, expected 1"):
        both_ways([Rule("conv", "flat", "c 1 k -> c k")], {"conv": noise((6, 2, 4))}, {})


@given(st.tuples(*(st.integers(1, 4) for _ in range(4))), st.integers(1, 3), st.booleans())
@settings(max_examples=60)
def test_unequal_parts(sizes: tuple[int, int, int, int], groups: int, interleaved: bool) -> None:
    """q, k and v end to end, plainly (vLLM) or one group after the other (Megatron)."""
    q, k, v, h = sizes
    parts = {
        name: noise((groups * size, h), torch.float32, seed)
        for seed, (name, size) in enumerate(zip("qkv", (q, k, v), strict=True))
    }
    if interleaved:
        axes, known = "[p] (n q|k|v) h -> (n (q + k + v)) h", {"q": q, "k": k, "v": v, "n": groups}
        whole = torch.cat([parts[name].view(groups, -1, h) for name in "qkv"], dim=1).flatten(0, 1)
    else:
        axes, known = "[p] q|k|v h -> (q + k + v) h", {"q": groups * q, "k": groups * k, "v": groups * v}
        whole = torch.cat([parts[name] for name in "qkv"])
    rule = Rule("{prefix}l.{layer}.{p:q|k|v}.weight", "{prefix}l.{layer}.qkv.weight", axes)
    hub = {f"m.l.11.{name}.weight": tensor for name, tensor in parts.items()}
    both_ways([rule], hub, {"m.l.11.qkv.weight": whole}, **known)


def test_unequal_parts_without_sizes_or_a_part() -> None:
    rule = Rule("{p:q|k}", "qk", "[p] q|k h -> (q + k) h")
    mine = Layout("mine", "f", [rule])
    whole = {"qk": lazysd.from_torch(noise((6, 2)))}
    with pytest.raises(LayoutError, match=r"the sizes of \['q', 'k'\] are not known"):
        convert(whole, mine, hub_of(rule), {})
    with pytest.raises(LayoutError, match="has size 6, expected 5"):
        convert(whole, mine, hub_of(rule), {"q": 2, "k": 3})
    with pytest.raises(MissingExpertsError, match="1 missing: k"):
        convert({"q": lazysd.from_torch(noise((6, 2)))}, hub_of(rule), mine, {})


def test_ranges_of_experts_are_counted_per_group() -> None:
    """Text experts 0 to 9, vision experts of another width from 10 on, in one list of keys."""
    rules = [Rule("x.{e}.w", "text", "[e] i h -> e i h"), Rule("x.{v}.w", "vision", "[v] j h -> v j h")]
    layout = Layout("mine", "f", rules, sizes={"e": ["n"], "v": ["n"]}, firsts={"v": ("n",)})
    text, vision = [noise((3, 2), seed=n) for n in range(10)], [noise((5, 2), seed=20 + n) for n in range(10)]
    hub = {f"x.{n}.w": lazysd.from_torch(tensor) for n, tensor in enumerate(text + vision)}
    sizes, firsts = layout.config_sizes({"n": 10}), layout.config_firsts({"n": 10})
    assert (sizes, firsts) == ({"e": 10, "v": 10}, {"v": 10})
    found = convert(hub, HUB, layout, sizes, firsts=firsts)
    assert_same(found, {"text": torch.stack(text), "vision": torch.stack(vision)})
    back = convert(found, layout, HUB, sizes, firsts=firsts)
    assert all(back[key] is hub[key] for key in hub)
    with pytest.raises(MissingExpertsError, match=r"1 missing: x\.19\.w"):
        convert({key: node for key, node in hub.items() if key != "x.19.w"}, HUB, layout, sizes, firsts=firsts)


def test_an_axis_named_like_the_start_of_a_field() -> None:
    """`p` is no `prefix`, `l` no `layer`: the neighbourhood of a rule was cut there."""
    rule = Rule("{prefix}layers.{layer}.x.{p}.{l:a|b}.w", "{prefix}layers.{layer}.x.all", "[p l] i -> p l i")
    tensors = {f"model.layers.0.x.{p}.{word}.w": noise((3,), seed=p) for p in range(11) for word in "ab"}
    expected = torch.stack([torch.stack([tensors[f"model.layers.0.x.{p}.{w}.w"] for w in "ab"]) for p in range(11)])
    both_ways([rule], tensors, {"model.layers.0.x.all": expected})
    with pytest.raises(LayoutError, match=r"x\.0\.c\.w stands among"):
        both_ways([rule], tensors | {"model.layers.0.x.0.c.w": noise((3,))}, {})


def test_the_hub_s_keys_with_other_axes() -> None:
    """The same keys, transposed, are another layout: this was a silent no-op."""
    rule = Rule("layers.{layer}.w", "layers.{layer}.w", "i h -> h i")
    layout = Layout("turned", "f", [rule])
    assert not layout.is_hub
    weight = lazysd.from_torch(noise((2, 3)))
    found = convert({"layers.0.w": weight}, HUB, layout, {})
    assert found["layers.0.w"].dims == (3, 2)
    assert convert(found, layout, HUB, {})["layers.0.w"] is weight


def test_a_hostile_key_is_cut_in_messages() -> None:
    rule = Rule("layers.{layer}.x.{e}.w", "layers.{layer}.x", "[e] i -> e i")
    for odd in ("layers.0.x." + "9" * 5000 + ".w", "layers.0.x.\0.w", "layers.0.x.1\n.w"):
        with pytest.raises(LayoutError) as caught:
            both_ways([rule], {"layers.0.x.0.w": noise((2,)), odd: noise((2,))}, {})
        assert len(str(caught.value)) < 1000


def test_two_keys_of_one_place() -> None:
    layout = Layout("x", "f", [Rule("a.{n}", "b.{n}", "i -> i"), Rule("c.{n}", "d.{n}", "i -> i", rename=True)])
    hub = {"a.0": noise((2,)), "b.0": noise((2,))}
    with pytest.raises(LayoutError, match=r"a\.0 and b\.0 both become b\.0"):
        convert({key: lazysd.from_torch(value) for key, value in hub.items()}, HUB, layout, {})
    with pytest.raises(LayoutError, match=r"b\.1 is a key that only the other side"):
        convert({"b.1": lazysd.from_torch(noise((2,)))}, HUB, layout, {})


PIECES = ("{a}", "{b}", "{c:+9}", "{w:x|1|up2}", "{n:*}", "{t:**}", "{prefix}", "1", "12.", ".", "w1", "x.", "up")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join), st.data())
def test_no_family_is_overlooked_for_the_kind_of_a_key(text: str, data: st.DataObject) -> None:
    try:
        template = parse_key(text)
    except ValueError:
        return
    number = st.integers(0, 1200).map(str)
    drawn = {"name": st.sampled_from(["q", "1", "e12"]), "text": st.sampled_from(["q.9", "1", "w.1.x"])}
    drawn |= {"prefix": st.sampled_from(["", "a1.", "2."]), "number": number}
    fields = {
        name: data.draw(st.sampled_from(template.words[name]) if name in template.words else drawn[template.kind(name)])
        for name in template.fields
    }
    key = template.format(fields)
    assert template.match(key) is not None
    assert template.may_match(kind_of(key))
