"""A model as a chain of links: bit for bit the model's forward and backward, and parts that together are the whole."""

from __future__ import annotations

import copy
from functools import partial
from itertools import pairwise

import pytest
import torch
from intern_zoo.chain import finish, links, prune
from intern_zoo.declip import NOTHING, DeclipTowers
from intern_zoo.errors import NoChainError
from intern_zoo.local import LocalTowers
from intern_zoo.metanet.norm import BatchNorm
from intern_zoo.two_tower import TwoTower, create_two_tower

END = 99
TEXT = {"width": 32, "layers": 2, "heads": 2, "context_length": 12, "vocab_size": 100, "eos_id": END}
DECLIP = partial(DeclipTowers, projector=24, predictor=8, queue=10)
LOCAL = partial(LocalTowers, strides=[8, 32], width=8)
MODELS = {
    "plain": {},
    "siglip": {"initial_logit_bias": -10.0},
    "stochastic depth": {"image_options": {"drop_path_rate": 0.5, "drop_path_mode": "rows", "drop_rate": 0.2}},
    "resnet": {"image": "resnet18"},
    "packed": {"text": TEXT | {"pack": True}},
    "frozen text": {},
    "half": {},
    "declip": {"model": DECLIP},
    "declip packed resnet": {"model": DECLIP, "image": "resnet18", "text": TEXT | {"pack": True}},
    "local": {"model": LOCAL, "initial_logit_bias": -10.0},
}


def build(kind="plain"):
    torch.manual_seed(0)
    options = {"image": "metanet_debug", "image_size": 32, "embed_dim": 16, "text": TEXT} | MODELS[kind]
    model = create_two_tower(**options)
    if kind == "frozen text":
        model.text.requires_grad_(False)
    return model.bfloat16() if kind == "half" else model


def inputs(model, views=None, batch=3):
    """What the model is trained with, or one view."""
    generator = torch.Generator().manual_seed(1)

    def picture():
        return torch.randn(batch, 3, 32, 32, generator=generator).to(model.logit_scale.dtype)

    def caption():
        text = torch.randint(1, END, (batch, 12), generator=generator)
        text[torch.arange(batch), torch.arange(batch) + 5] = END
        return text

    first = {"image": picture(), "text": caption()}
    if views == 1 or type(model) is TwoTower:
        return first
    if isinstance(model, LocalTowers):
        return first | {"image2": picture()}
    labels = torch.full_like(first["text"], NOTHING)
    labels[0, 2], labels[2, 1] = first["text"][0, 2], first["text"][2, 1]
    first["text"][0, 2] = model.text.vocab_size  # <|mask|>
    return first | {"image2": picture(), "text2": caption(), "text_labels": labels}


def run(chain, carry):
    for link in chain:
        before = dict(carry)
        after = link(carry)
        assert carry.keys() == before.keys()
        assert all(carry[name] is tensor for name, tensor in before.items())
        carry = after
    return carry


def fields(output):
    found = {name: value for name, value in output._asdict().items() if value is not None}
    return found | {f"maps.{i}": tensor for i, tensor in enumerate(found.pop("maps", []))}


def gradients(model, outputs):
    """By name, of a sum in which no two numbers of the outputs count the same."""
    generator = torch.Generator().manual_seed(2)
    sum((t * torch.randn(t.shape, generator=generator)).sum() for _, t in sorted(outputs.items())).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("kind", "mode"), [*((kind, True) for kind in MODELS), ("siglip", False), ("declip packed resnet", False)]
)
def test_chain_is_the_models_forward_and_backward(kind, mode):
    model, twin = build(kind).train(mode), build(kind).train(mode)
    names = [name for name, _ in model.named_parameters()]
    chain = links(model, text="first" if kind == "stochastic depth" else "last")
    assert [name for name, _ in model.named_parameters()] == names
    torch.manual_seed(3)
    output = twin(**inputs(twin))
    expected = fields(output)
    torch.manual_seed(3)
    found = run(chain, inputs(model))
    same(found, expected)
    assert type(finish(found)) is type(output)
    same(fields(finish(found)), expected)
    compare = torch.testing.assert_close if kind == "local" else same  # a map's three gradients, in another order
    compare(gradients(model, found), gradients(twin, expected))
    same(model.state_dict(), twin.state_dict())  # running statistics, too


@pytest.mark.parametrize("kind", ["declip", "local"])
def test_one_view_of_a_model_that_trains_with_two(kind):
    model = build(kind).eval()
    output = model(**inputs(model, views=1))
    found = run(links(model), inputs(model, views=1))
    same(found, fields(output))
    assert type(finish(found)) is type(output)


@pytest.mark.parametrize(
    ("text", "towers"), [("first", ["text", "image", "join"]), ("last", ["image", "text", "join"])]
)
def test_order_of_the_towers(text, towers):
    model = build()
    chain = links(model, text)
    assert list(dict.fromkeys(link.tower for link in chain)) == towers
    same(run(chain, inputs(model.eval())), fields(model(**inputs(model))))


def test_links_are_the_units_that_others_cut_at():
    model = build()
    names = [link.unit for link in links(model)]
    assert len(set(names)) == len(names)
    assert names[0] == "image.trunk.stem"
    trunk_units = [model.get_submodule(name) for name in names[1 : 1 + len(model.image.trunk.units())]]
    assert trunk_units == model.image.trunk.units()
    assert "text.transformer.resblocks.1" in names


def test_inputs_leave_the_carry_with_their_last_reader():
    model = build()
    chain, carry = links(model), inputs(model)
    seen = [set(carry := link(carry)) for link in chain]
    last_image = max(i for i, link in enumerate(chain) if link.tower == "image")
    assert seen[0] == {"image_map", "text"}
    assert seen[last_image] == {"image_features", "text"}
    assert seen[-3] == {"image_features", "text_tokens", "text"}
    assert seen[-2] == {"image_features", "text_features"}


def test_a_link_of_a_frozen_tower_stays_in_evaluation_mode():
    model = build()
    model.image.requires_grad_(False)
    chain = links(model)
    for link in chain:
        link.train()
    norms = [m for link in chain for m in link.modules() if isinstance(m, BatchNorm)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert all(m.training for link in chain if link.tower == "text" for m in link.modules())


def test_a_part_that_is_frozen_in_a_tower_that_is_not_goes_on_training():
    model = build()
    model.image.trunk.stem.requires_grad_(False)
    prune(model, links(model)[:1])
    assert model.train().image.trunk.stem.norm.training


@pytest.mark.parametrize("kind", ["siglip", "declip packed resnet", "local"])
def test_parts_are_together_the_whole_and_run(kind):
    whole = build(kind).eval()
    count = len(links(whole))
    cuts = [0, count // 3, 2 * count // 3, count]
    carry, names = inputs(whole), []
    for begin, end in pairwise(cuts):
        part = copy.deepcopy(whole)
        kept = links(part)[begin:end]
        prune(part, kept)
        state = part.state_dict()
        assert {id(p) for p in part.parameters()} == {id(p) for link in kept for p in link.parameters()}
        same(state, {name: whole.state_dict()[name] for name in state})
        names += state
        carry = run(kept, carry)
    assert sorted(names) == sorted(whole.state_dict())
    same(carry, fields(whole(**inputs(whole))))


def test_parameters_are_used_only_inside_calls_of_their_owners():
    """What ZeRO-3's hooks rely on; torch's attention reads its `out_proj` from outside, as it always does."""
    model = build("siglip")
    chain = torch.nn.ModuleList(links(model))
    saved = {p: p.detach().clone() for p in model.parameters()}

    def restore(parameters):
        for p in parameters:
            p.data.copy_(saved[p])

    def spoil(parameters):
        for p in parameters:
            p.data.fill_(torch.nan)

    owners = {m: [p for p in m._parameters.values() if p is not None] for m in chain.modules()}
    for module in chain.modules():
        if isinstance(module, torch.nn.MultiheadAttention):
            owners[module] += [module.out_proj.weight, module.out_proj.bias]
    for module, own in owners.items():
        module.register_forward_pre_hook(lambda *_, own=own: restore(own))
        module.register_forward_hook(lambda *_, own=own: spoil(own))
    expected = fields(build("siglip").eval()(**inputs(model)))
    spoil(model.parameters())
    with torch.no_grad():
        same(run(chain.eval(), inputs(model)), expected)


def test_on_meta_without_values():
    with torch.device("meta"):
        model = build()
        carry = {"image": torch.empty(2, 3, 64, 64), "text": torch.zeros(2, 12, dtype=torch.int64)}
    assert {name: tuple(t.shape) for name, t in run(links(model), carry).items()} == {
        "image_features": (2, 16),
        "text_features": (2, 16),
        "logit_scale": (1,),
    }


def test_a_map_from_another_process_may_lie_channels_first():
    model = build().eval()
    chain = links(model)
    carry = run(chain[:5], inputs(model))
    other = carry | {"image_map": carry["image_map"].contiguous()}
    assert not other["image_map"].is_contiguous(memory_format=torch.channels_last)
    same(run(chain[5:], other), run(chain[5:], carry))


def test_a_projector_of_maps_is_not_frozen_with_its_tower():
    model = build("local")
    model.image.requires_grad_(False)
    assert {link.unit: link.frozen for link in links(model) if link.unit.startswith("heads")} == {
        "heads.0": False,
        "heads.1": False,
    }


def test_other_models_have_no_chain():
    class Strange(TwoTower):
        pass

    with pytest.raises(NoChainError, match="Strange"):
        links(create_two_tower("metanet_debug", 64, 16, TEXT, model=Strange))
    with pytest.raises(NoChainError, match="LocalTowers with a ResNet"):
        links(create_two_tower("resnet18", 64, 16, TEXT, model=partial(LocalTowers, strides=[32])))
