"""The laws of the mixture, on the exported modelling file, with every way to call it: cache, padding, generate."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from llama_scale.adapters.bottleneck_module import Bottleneck
from llama_scale.adapters.lora_module import Lora
from llama_scale.adapters.prefix_module import Prefix
from llama_scale.convert.hf_mixture import modeling_llama_scale as modelling
from llama_scale.convert.hf_mixture.mixing import CACHE, LlamaScaleCache
from llama_scale.gates.linear_module import LinearGate

LAYERS, HIDDEN, FFN, HEADS, KV, HEAD = 3, 12, 20, 3, 1, 4
SIZES = {"q_proj": (HEADS * HEAD, HIDDEN), "v_proj": (KV * HEAD, HIDDEN), "down_proj": (HIDDEN, FFN)}
OPTIONS = {
    "lora": {"alpha": 4.0, "alphas": {}, "rs_lora": False, "dora": True, "targets": list(SIZES)},
    "prefix": {},
    "bottleneck": {"after": ["mlp"], "activation": "gelu"},
}
WEIGHTS = ("prior", "posterior", "gate")


@pytest.fixture(autouse=True)
def _kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelling, "ADAPTERS", {"lora": Lora, "prefix": Prefix, "bottleneck": Bottleneck})
    monkeypatch.setattr(modelling, "GATES", {"linear": LinearGate})


def adapter_tensors(kind: str, layer: int) -> dict[str, torch.Tensor]:
    if kind == "lora":
        made = {}
        for target, (outputs, inputs) in SIZES.items():
            made[f"{target}.lora_A"] = 0.5 * torch.randn(2, inputs)
            made[f"{target}.lora_B"] = 0.5 * torch.randn(outputs, 2)
            made[f"{target}.magnitude_change"] = 0.3 * torch.randn(outputs)
    elif kind == "prefix":
        made = {"keys": torch.randn(3, KV, HEAD), "values": torch.randn(3, KV, HEAD)}
    else:
        made = {"mlp.down": torch.randn(4, HIDDEN), "mlp.up": torch.randn(HIDDEN, 4)}
        made |= {"mlp.down_bias": torch.randn(4), "mlp.up_bias": torch.randn(HIDDEN)}
    return {f"layers.{layer}.{name}": tensor for name, tensor in made.items()}


def make(
    weights: str | None,
    *,
    kinds: tuple[str, ...] = ("lora", "lora", "prefix", "bottleneck"),
    vocab: int = 11,
    logits: list[float] | None = None,
    identical: bool = False,
) -> Any:
    """Build a model whose adapters touch layers 1 and 2."""
    torch.manual_seed(0)
    files: dict[str, dict[str, torch.Tensor]] = {}
    entries = []
    for number, kind in enumerate(kinds):
        file = "0" if identical and number else str(number)
        files.setdefault(file, {k: t for layer in (1, 2) for k, t in adapter_tensors(kind, layer).items()})
        entry = {"name": f"a.{number}", "kind": kind, "options": OPTIONS[kind], "layers": [1, 2]}
        entries.append(entry | {"file": file, "tensors": []})
    mixture = None
    if weights is not None:
        names = [entry["name"] for entry in entries]
        mixture = {"weights": weights, "adapters": names, "file": "m", "gate": "linear", "gate_options": {}}
        prior = torch.randn(len(kinds)) if logits is None else torch.tensor(logits)
        gate = {"weight": torch.randn(len(kinds), HIDDEN), "bias": torch.randn(len(kinds))}
        files["m"] = gate if weights == "gate" else {"logits": prior}
    config = modelling.LlamaScaleConfig(
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV,
        head_dim=HEAD,
        vocab_size=vocab,
        max_position_embeddings=64,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        llama_scale={"adapters": entries, "mixture": mixture, "tasks": [], "seed": 0},
    )
    model = modelling.LlamaScaleForCausalLM(config)
    model.load_adapters(files.__getitem__)
    return model.eval()


def tokens(rows: int = 2, length: int = 9, vocab: int = 11) -> torch.Tensor:
    return torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def log_probs(model: Any, ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    return model(ids, **kwargs).logits.float().log_softmax(-1)


def each_adapter(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return ``[N, B, S, V]`` log-probabilities of each adapter by itself; then the model is the mixture again."""
    found = []
    for name in model.adapter_names:
        model.set_adapter(name)
        found.append(log_probs(model, ids))
    model.set_mixture()
    return torch.stack(found)


def near(one: torch.Tensor, two: torch.Tensor) -> None:
    torch.testing.assert_close(one, two, rtol=0, atol=1e-4)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_it_is_the_weighted_sum_of_the_adapters(weights):
    model, ids = make(weights), tokens()
    found = model(ids).logits.detach()
    each = each_adapter(model, ids)
    if weights == "gate":
        model.set_adapter(None)
        hidden = model(ids, output_hidden_states=True).hidden_states[-1]
        shares = model.gate(hidden).log_softmax(-1).permute(2, 0, 1)
    else:
        shares = model.prior.log_softmax(0).view(-1, 1, 1).expand(each.shape[:3])
        if weights == "posterior":
            told = each[:, :, :-1].gather(3, ids[None, :, 1:, None].expand(len(each), -1, -1, 1))[..., 0]
            shares = (shares + torch.nn.functional.pad(told.cumsum(2), (1, 0))).log_softmax(0)
    near(found, (each + shares.unsqueeze(-1)).logsumexp(0))
    near(found.exp().sum(-1), torch.ones(2, 9))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_one_adapter_is_itself(weights):
    model, ids = make(weights, kinds=("lora",)), tokens()
    near(model(ids).logits, each_adapter(model, ids)[0])


@pytest.mark.parametrize("weights", ["prior", "posterior"])
def test_a_one_hot_prior_is_that_adapter_and_equal_adapters_are_one(weights):
    ids = tokens()
    model = make(weights, logits=[-1e4, -1e4, 0.0, -1e4])
    near(model(ids).logits, each_adapter(model, ids)[2])
    model = make(weights, kinds=("lora",) * 3, logits=[0.0] * 3, identical=True)
    near(model(ids).logits, each_adapter(model, ids)[0])


def test_the_posterior_is_the_mixture_of_whole_sequences():
    """Enumerate all continuations: p(x) = sum_i pi_i prod_t p_i(x_t | x_<t), which sums to one."""
    model = make("posterior", vocab=5)
    ids = torch.tensor([(2, *rest) for rest in itertools.product(range(5), repeat=3)])
    each = each_adapter(model, ids)[:, :, :-1].gather(3, ids[None, :, 1:, None].expand(4, -1, -1, 1))[..., 0].sum(-1)
    brute = (each + model.prior.log_softmax(0).unsqueeze(1)).logsumexp(0)

    stepwise = log_probs(model, ids)[:, :-1].gather(2, ids[:, 1:, None])[..., 0].sum(-1)

    near(stepwise, brute)
    near(brute.exp().sum(), torch.tensor(1.0))


@pytest.mark.parametrize("argument", ["past_key_values", "cache"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_cache_and_padding_change_nothing(weights, argument):
    model, ids = make(weights), tokens()
    whole = log_probs(model, ids)
    padded = torch.cat((tokens(2, 4), ids), 1)
    mask = torch.ones_like(padded)
    mask[:, :4] = 0
    near(log_probs(model, padded, attention_mask=mask)[:, 4:], whole)
    right = torch.ones_like(ids)
    right[1, 7:] = 0
    near(log_probs(model, ids, attention_mask=right)[1, :7], whole[1, :7])
    near(log_probs(model, ids, logits_to_keep=2), whole[:, -2:])

    # One row padded on the left, one not, in pieces.
    rows = torch.stack((padded[0], torch.cat((ids[1], ids[1, :4]))))
    mask[1] = 1
    cache, pieces = None, []
    for first, last in ((0, 2), (2, 5), (5, 6), (6, 13)):
        with torch.no_grad():
            output = model(rows[:, first:last], attention_mask=mask[:, :last], use_cache=True, **{argument: cache})
        cache = getattr(output, CACHE)
        pieces.append(output.logits)
    joined = torch.cat(pieces, 1)
    near(joined[0, 4:], whole[0])
    near(joined[1, :9], whole[1])


@pytest.mark.parametrize("weights", WEIGHTS)
def test_generation(weights):
    model, ids = make(weights), tokens()
    ones = torch.ones_like(ids)
    padded = torch.cat((tokens(2, 4), ids), 1)
    mask = torch.cat((torch.zeros(2, 4, dtype=torch.long), ones), 1)

    greedy = model.generate(padded, attention_mask=mask, max_new_tokens=5, do_sample=False)[:, 13:]
    by_hand = ids
    for _ in range(5):
        by_hand = torch.cat((by_hand, model(by_hand).logits[:, -1:].argmax(-1)), 1)
    assert torch.equal(greedy, by_hand[:, 9:])

    def made(**kwargs: Any) -> torch.Tensor:
        torch.manual_seed(3)
        return model.generate(ids, attention_mask=ones, max_new_tokens=5, **kwargs)

    sampled = made(do_sample=True, num_return_sequences=3)
    assert torch.equal(sampled, made(do_sample=True, num_return_sequences=3, use_cache=False))
    beams = made(num_beams=3, do_sample=False)
    assert torch.equal(beams, made(num_beams=3, do_sample=False, use_cache=False))
    for argument in ("past_key_values", "cache"):
        cache = LlamaScaleCache()
        assert torch.equal(made(do_sample=False, **{argument: cache})[:, 9:], greedy)
        assert cache.get_seq_length() > 0


def test_loss_and_inner_model():
    model, ids = make("posterior"), tokens()
    want = -log_probs(model, ids)[:, :-1].gather(2, ids[:, 1:, None]).mean()
    near(model(ids, labels=ids).loss, want)
    assert isinstance(model(ids, return_dict=False), tuple)
    model.set_adapter("a.2")
    states = model(ids, output_hidden_states=True).hidden_states
    assert len(states) == LAYERS + 1
    near(model.model(input_ids=ids, use_cache=False)[0], states[-1])


def test_what_it_refuses():
    model, ids = make("prior"), tokens()
    with pytest.raises(ValueError, match=r"there is no adapter 'x'; there are: a\.0, a\.1"):
        model.set_adapter("x")
    with pytest.raises(ValueError, match="this folder has no mixture; choose one of its adapters"):
        make(None).set_mixture()
    with pytest.raises(ValueError, match="a mixture has hidden states for each adapter"):
        model(ids, output_hidden_states=True)
    with pytest.raises(ValueError, match="reads input_ids, not inputs_embeds"):
        model(inputs_embeds=torch.zeros(1, 2, HIDDEN))
    with pytest.raises(TypeError, match=f"makes its own cache; pass {CACHE}=None, not a DynamicCache"):
        model(ids, **{CACHE: DynamicCache()}, use_cache=True)
    with pytest.raises(ValueError, match=r"attention_mask has the shape \[2, 3\]; it must be \[2, 9\]"):
        model(ids, attention_mask=torch.ones(2, 3))
    cache = getattr(model(ids, use_cache=True), CACHE)
    model.set_adapter("a.0")
    with pytest.raises(ValueError, match="this cache was filled for the adapters"):
        model(ids[:, :1], **{CACHE: cache}, use_cache=True)
    with pytest.raises(NotImplementedError, match="cannot go back, which assisted generation needs"):
        cache.crop(1)
    with pytest.raises(ValueError, match=r"'x\.y' of an adapter's file belongs to no layer"):
        modelling._place("x.y", [])
    with pytest.raises(AttributeError, match="there is no option 'rank'"):
        _ = modelling.Options({}).rank
