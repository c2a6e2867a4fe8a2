"""A LLaMA with N adapters, as one of them or as the mixture of all; needs torch, transformers and this folder alone.

    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
    model.set_adapter("NAME")      # the base with one adapter; None: the base alone
    model.set_mixture()            # the mixture; a folder that has one starts with it

The mixture's logits are log-probabilities: log p(x_t | x_<t) = logsumexp_i(log w_i + log p_i(x_t | x_<t)). The weights:

* ``prior``: softmax of one learned number per adapter,
* ``posterior``: p(a_i | x_<t), which Bayes' rule makes of the prior and of what each adapter gave the prefix,
* ``gate``: what a router reads in the last hidden state of the base without adapters.

All adapters run in one forward pass: below the first adapted layer a sequence is one row, from there on one row for
each adapter (and one for the gate), so that the base's weights are read once.

Shape letters: B sequences, N adapters, R rows, S positions of this call, T positions so far, H hidden, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import cached_file

from llama_scale.convert.hf_mixture.adapted import AdaptedModel, module_name, product
from llama_scale.convert.hf_mixture.mixing import CACHE, LlamaScaleCache, Posterior
from llama_scale.extensions.adapter import LayerAdapter, LayerContext, Tensor, attach
from llama_scale.extensions.gate import Gate

# Kinds of adapters and gates; an export writes the classes of its folder here.
ADAPTERS: dict[str, type[LayerAdapter]] = {}
GATES: dict[str, type[Gate]] = {}

_KEY = re.compile(r"(?:base_model\.model\.model\.)?layers\.(\d+)\.(.+)")
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
_HEAD_ELEMENTS = 1 << 24  # logits of all adapters in memory at a time


class LlamaScaleConfig(LlamaConfig):
    """A LLaMA's config. ``llama_scale`` holds ``adapters``, ``mixture`` (or null), ``tasks`` and ``seed``."""

    model_type = "llama_scale"


class Options(dict):
    """Options of an adapter or gate, readable as attributes and by key."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__({name: _readable(value) for name, value in values.items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no option {name!r}") from None


def _readable(value: Any) -> Any:
    if isinstance(value, dict):
        return Options(value)
    return tuple(map(_readable, value)) if isinstance(value, list) else value


class LlamaScaleForCausalLM(LlamaForCausalLM):
    """See the module's docstring. ``from_pretrained`` reads adapters; a model made of a config alone has none."""

    config_class = LlamaScaleConfig
    _no_split_modules = ["AdaptedLayer"]  # noqa: RUF012 - transformers reads it from the class

    def __init__(self, config: LlamaScaleConfig) -> None:
        super().__init__(config)
        self.model = AdaptedModel(config)
        self.prior: nn.Parameter | None = None  # [N], logits
        self.gate: Gate | None = None
        self._mixed = False
        self.post_init()

    # What the model is: one adapter, the bare base, or the mixture.

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """Names of all adapters."""
        return tuple(entry["name"] for entry in self.config.llama_scale["adapters"])

    def set_adapter(self, adapter_name: str | None) -> None:
        """Be the base with one adapter from now on, or the base alone (None)."""
        if adapter_name is not None and adapter_name not in self.adapter_names:
            raise ValueError(f"there is no adapter {adapter_name!r}; there are: {', '.join(self.adapter_names)}")
        self.model.names, self._mixed = (adapter_name,), False

    def set_mixture(self) -> None:
        """Be the mixture from now on."""
        if self.prior is None and self.gate is None:
            raise ValueError("this folder has no mixture; choose one of its adapters with set_adapter(NAME)")
        gate = () if self.gate is None else (None,)  # the gate reads rows without adapter, behind all others
        self.model.names, self._mixed = (*self.config.llama_scale["mixture"]["adapters"], *gate), True

    # Files: the base as transformers keeps it, each adapter and the mixture's weights in files of their own.

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load the base as transformers does, then the adapters and the mixture's weights beside it."""
        hub = {name: kwargs[name] for name in _HUB_OPTIONS if kwargs.get(name)}
        found = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = found[0] if isinstance(found, tuple) else found
        model.load_adapters(lambda file: load_file(cached_file(pretrained_model_name_or_path, file, **hub)))
        return found

    def load_adapters(self, read: Callable[[str], dict[str, torch.Tensor]]) -> None:
        """Make the adapters and the mixture's weights that the config names; ``read`` gives a file's tensors."""
        facts = self.config.llama_scale
        for entry in facts["adapters"]:
            self._load_adapter(entry, read(entry["file"]), seed=facts["seed"])
        self.set_adapter(facts["adapters"][0]["name"] if facts["adapters"] else None)
        mixture = facts["mixture"]
        if mixture is None:
            return
        tensors = {k: nn.Parameter(t.to(self.model.norm.weight.device)) for k, t in read(mixture["file"]).items()}
        if mixture["weights"] == "gate":
            self.gate = GATES[mixture["gate"]](Options(mixture["gate_options"]), len(mixture["adapters"]))
            for name, parameter in tensors.items():
                attach(self.gate, name, parameter)
        else:
            self.prior = tensors["logits"]
        self.set_mixture()

    def _load_adapter(self, entry: dict[str, Any], tensors: dict[str, torch.Tensor], *, seed: int) -> None:
        shared: dict[str, Any] = {}
        made = {}
        for number in entry["layers"]:
            context = LayerContext(
                layer=number,
                sizes=self._sizes(),
                tensor=Tensor(),
                base_weight=self.model.layers[number].base_weight,
                seed=seed,
                shared=shared,
            )
            made[number] = ADAPTERS[entry["kind"]](Options(entry["options"]), context)
        for key, tensor in tensors.items():
            number, name, form = _place(key, entry["tensors"])
            layer = self.model.layers[number]
            value = (tensor.flatten() if form.get("vector") else tensor).to(layer.mlp.up_proj.weight.device)
            if form.get("less_norm"):
                value = value - layer.base_weight(name.partition(".")[0]).float().norm(dim=1)
            attach(made[number], name, nn.Parameter(value))
        for number, adapter in made.items():
            self.model.layers[number].adapters[module_name(entry["name"])] = adapter

    def _sizes(self) -> dict[str, int]:
        config = self.config
        return {
            "hidden_size": config.hidden_size,
            "ffn_hidden_size": config.intermediate_size,
            "num_heads": config.num_attention_heads,
            "num_kv_heads": config.num_key_value_heads,
            "head_dim": self.model.layers[0].self_attn.head_dim,
            "num_layers": config.num_hidden_layers,
        }

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save the whole model; adapters are written by their own parameter names, without PEFT's files."""
        folder, facts = Path(save_directory), self.config.llama_scale
        files: dict[str, dict[str, torch.Tensor]] = {}
        for entry in facts["adapters"]:
            entry |= {"file": f"adapters/{entry['name']}/adapter.safetensors", "tensors": []}
            files[entry["file"]] = {
                f"layers.{number}.{name}": parameter
                for number in entry["layers"]
                for name, parameter in self.model.layers[number].adapters[module_name(entry["name"])].named_parameters()
            }
        if self.gate is not None:
            files[facts["mixture"]["file"]] = dict(self.gate.named_parameters())
        elif self.prior is not None:
            files[facts["mixture"]["file"]] = {"logits": self.prior}
        state = kwargs.pop("state_dict", None) or self.state_dict()
        base = {k: v for k, v in state.items() if k.startswith(("model.", "lm_head.")) and ".adapters." not in k}
        super().save_pretrained(save_directory, *args, state_dict=base, **kwargs)
        for file, tensors in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, folder / file, {"format": "pt"})

    # Running it.

    def forward(  # noqa: PLR0917 - the arguments of every model of transformers
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: LlamaScaleCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache: LlamaScaleCache | None = None,
        **_: Any,
    ) -> Any:
        """Return logits ``[B, S, V]``: log-probabilities in fp32 where the model is the mixture.

        Args:
            input_ids: ``[B, S]``.
            attention_mask: ``[B, T]``: 0 at padding, on either side.
            position_ids: ``[B, S]``; default: each row's tokens counted from 0, padding left out.
            past_key_values: What the call before returned; the model makes it. Since transformers 5.24: ``cache``.
            inputs_embeds: Refused: the posterior needs tokens.
            labels: ``[B, S]``, -100 where there is none; the loss of predicting them is returned too.
            use_cache: Return a cache.
            logits_to_keep: Only the last so many positions, or those of this index; 0: all.
            output_hidden_states: Return the hidden states before each layer and after the final norm; not of a mixture.
            return_dict: False: a tuple.
            cache: The same as ``past_key_values``.
        """
        if output_hidden_states and self._mixed:
            raise ValueError("a mixture has hidden states for each adapter; call set_adapter(NAME) first")
        inner = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        hidden, cache = inner.last_hidden_state, getattr(inner, CACHE)
        kept = torch.arange(hidden.shape[1], device=hidden.device)
        kept = kept[-logits_to_keep:] if isinstance(logits_to_keep, int) else kept[logits_to_keep]
        if self._mixed:
            real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            real = real[:, -input_ids.shape[1] :].bool()
            logits = self._mixture(hidden.transpose(0, 1), kept, input_ids=input_ids, real=real, cache=cache)
        else:
            logits = product(self.lm_head, hidden[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=inner.hidden_states, **{CACHE: cache})
        return output.to_tuple() if return_dict is False else output

    def generate(self, *args: Any, past_key_values: Any = None, cache: Any = None, **kwargs: Any) -> Any:
        """See transformers' ``generate``; assisted generation is refused, everything else works for mixtures too."""
        cache = past_key_values if cache is None else cache
        kwargs[CACHE] = LlamaScaleCache() if cache is None else cache
        return super().generate(*args, **kwargs)

    def _mixture(
        self,
        hidden: torch.Tensor,
        kept: torch.Tensor,
        *,
        input_ids: torch.Tensor,
        real: torch.Tensor,
        cache: LlamaScaleCache | None,
    ) -> torch.Tensor:
        """Return log-probabilities ``[B, kept, V]``, a few positions at a time."""
        parts = hidden.unflatten(1, (len(self.model.names), -1))
        number = len(self.config.llama_scale["mixture"]["adapters"])
        trunk, posterior = parts[:, number:], None
        positions = kept
        if self.gate is None and self.config.llama_scale["mixture"]["weights"] == "posterior":
            posterior = None if cache is None else cache.posterior
            posterior = posterior or Posterior(torch.log_softmax(self.prior.float(), 0), batch=len(input_ids))
            positions = torch.arange(len(hidden), device=hidden.device)
        step = max(1, _HEAD_ELEMENTS // (parts.shape[2] * number * self.config.vocab_size))
        mixed = []
        for at in positions.split(step):
            log_probs = torch.log_softmax(product(self.lm_head, parts[at, :number]).float(), dim=-1)  # [S, N, B, V]
            if posterior is not None:
                weights = posterior.advance(log_probs, input_ids.t()[at], real.t()[at])
                chosen = torch.isin(at, kept)
                log_probs, weights = log_probs[chosen], weights[chosen]
            elif self.gate is not None:
                weights = torch.log_softmax(self.gate(trunk[at, 0]).float(), dim=-1).transpose(1, 2)
            else:
                weights = torch.log_softmax(self.prior.float(), 0).view(1, -1, 1)
            mixed.append(torch.logsumexp(log_probs + weights.unsqueeze(-1), dim=1))
        if cache is not None:
            cache.posterior = posterior
        return torch.cat(mixed).transpose(0, 1).contiguous()


def _place(key: str, forms: Sequence[dict[str, Any]]) -> tuple[int, str, dict[str, Any]]:
    """Return layer, own name and form of a tensor of an adapter's file."""
    match = _KEY.fullmatch(key)
    if match is None:
        raise ValueError(f"the tensor {key!r} of an adapter's file belongs to no layer")
    for form in forms:
        if match[2].endswith("." + form["peft"]):
            target = match[2].removesuffix("." + form["peft"]).rpartition(".")[2]
            return int(match[1]), f"{target}.{form['name']}", form
    return int(match[1]), match[2], {}
