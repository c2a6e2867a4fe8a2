"""The one table of Hugging Face names against native names; every direction and every layout is derived from it.

A mapping says which rows of which Hugging Face tensors a native (logical, see ``layout.parameters``) tensor is made
of. It yields :class:`Slice`s, which are plain geometry: import copies them one way, export the other, and the ledger
counts them. The families of mappings:

* :class:`Plain`: the same tensor under another name.
* :class:`Vocabulary`: a tensor whose rows are tokens; in memory it has padding rows, in both files it has none.
* :class:`Qkv`: query, key and value matrices, interleaved by key/value group as Megatron-Core's fused matrix wants it.
* :class:`GateUp`: SwiGLU's gate and up matrices, one after the other.

Rows of query and key need no permutation: Hugging Face and Megatron-Core (``rotary_interleaved=False``) both pair
element ``i`` of a head with element ``i + head_dim / 2``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llama_scale.layout.boxes import Box
from llama_scale.layout.parameters import EMBEDDING, FINAL_NORM, HEAD, Parameter, iter_parameters
from llama_scale.spec.model import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Equate a box of one Hugging Face tensor with a box of one native tensor.

    Args:
        hf_name: The Hugging Face tensor.
        hf_offset: First element of the box there.
        native_name: The native tensor.
        lead: Fixed indices of the native tensor's first dims (its part or group); the other dims are like the
            Hugging Face tensor's.
        native_offset: First element of the box in the native tensor's other dims.
        extent: Shape of the box.
    """

    hf_name: str
    hf_offset: tuple[int, ...]
    native_name: str
    lead: tuple[int, ...]
    native_offset: tuple[int, ...]
    extent: tuple[int, ...]

    @property
    def hf_box(self) -> Box:
        """The box in the Hugging Face tensor."""
        return Box(self.hf_offset, self.extent)

    @property
    def native_box(self) -> Box:
        """The box in the native tensor, with extent 1 in the lead dims."""
        return Box(self.lead + self.native_offset, (1,) * len(self.lead) + self.extent)

    def within(self, box: Box) -> Slice | None:
        """Return the part of this slice that lies in a box of the native tensor, or None."""
        common = self.native_box.intersect(box)
        if common is None:
            return None
        offset = common.offset[len(self.lead) :]
        moved = tuple(h + o - n for h, o, n in zip(self.hf_offset, offset, self.native_offset, strict=True))
        return Slice(
            hf_name=self.hf_name,
            hf_offset=moved,
            native_name=self.native_name,
            lead=self.lead,
            native_offset=offset,
            extent=common.shape[len(self.lead) :],
        )


@dataclass(frozen=True, slots=True)
class Plain:
    """Map a tensor to itself under another name."""

    hf: str

    def slices(self, parameter: Parameter, shape: ModelShape) -> Iterator[Slice]:
        """Yield the single slice that covers both tensors."""
        del shape
        zeros = (0,) * len(parameter.shape)
        yield Slice(
            hf_name=self.hf,
            hf_offset=zeros,
            native_name=parameter.name,
            lead=(),
            native_offset=zeros,
            extent=parameter.shape,
        )


@dataclass(frozen=True, slots=True)
class Vocabulary(Plain):
    """Map a tensor of one row a token; padding rows live only in memory and are in no slice."""


@dataclass(frozen=True, slots=True)
class Qkv:
    """Map query, key and value matrices to the fused matrix ``[kv_heads, (q_per_kv + 2) * head_dim, hidden]``.

    Group ``g`` holds query heads ``g * q_per_kv ...``, then key head ``g``, then value head ``g``. Source:
    megatron/core/transformer/attention.py, ``SelfAttention.get_query_key_value_tensors``.
    """

    q: str
    k: str
    v: str

    def slices(self, parameter: Parameter, shape: ModelShape) -> Iterator[Slice]:
        """Yield three slices a group."""
        q_rows, head = shape.queries_per_kv * shape.head_dim, shape.head_dim
        for group in range(shape.num_kv_heads):
            for hf_name, rows, start in ((self.q, q_rows, 0), (self.k, head, q_rows), (self.v, head, q_rows + head)):
                yield Slice(
                    hf_name=hf_name,
                    hf_offset=(group * rows, 0),
                    native_name=parameter.name,
                    lead=(group,),
                    native_offset=(start, 0),
                    extent=(rows, shape.hidden_size),
                )


@dataclass(frozen=True, slots=True)
class GateUp:
    """Map SwiGLU's gate and up matrices to the fused ``[2, ffn, hidden]``."""

    gate: str
    up: str

    def slices(self, parameter: Parameter, shape: ModelShape) -> Iterator[Slice]:
        """Yield one slice for gate, one for up."""
        for part, hf_name in enumerate((self.gate, self.up)):
            yield Slice(
                hf_name=hf_name,
                hf_offset=(0, 0),
                native_name=parameter.name,
                lead=(part,),
                native_offset=(0, 0),
                extent=(shape.ffn_hidden_size, shape.hidden_size),
            )


Mapping = Plain | Vocabulary | Qkv | GateUp

HF_EMBEDDING = "model.embed_tokens.weight"
HF_HEAD = "lm_head.weight"

TOP_TABLE: dict[str, Mapping] = {
    EMBEDDING: Vocabulary(HF_EMBEDDING),
    FINAL_NORM: Plain("model.norm.weight"),
    HEAD: Vocabulary(HF_HEAD),
}
"""Tensors outside the layers. Source of the names: transformers, models/llama/modeling_llama.py."""

LAYER_TABLE: dict[str, Mapping] = {
    "input_layernorm.weight": Plain("input_layernorm.weight"),
    "self_attention.linear_qkv.weight": Qkv(
        q="self_attn.q_proj.weight", k="self_attn.k_proj.weight", v="self_attn.v_proj.weight"
    ),
    "self_attention.linear_proj.weight": Plain("self_attn.o_proj.weight"),
    "pre_mlp_layernorm.weight": Plain("post_attention_layernorm.weight"),
    "mlp.linear_fc1.weight": GateUp(gate="mlp.gate_proj.weight", up="mlp.up_proj.weight"),
    "mlp.linear_fc2.weight": Plain("mlp.down_proj.weight"),
}
"""Tensors of one layer: name behind ``decoder.layers.N.`` -> names behind ``model.layers.N.``."""


def slices_of(parameter: Parameter, shape: ModelShape) -> tuple[Slice, ...]:
    """Return the slices of Hugging Face tensors that a native tensor is made of."""
    if parameter.layer is None:
        return tuple(TOP_TABLE[parameter.name].slices(parameter, shape))
    local = parameter.name.removeprefix(f"decoder.layers.{parameter.layer}.")
    prefix = f"model.layers.{parameter.layer}."
    return tuple(
        Slice(
            hf_name=prefix + s.hf_name,
            hf_offset=s.hf_offset,
            native_name=s.native_name,
            lead=s.lead,
            native_offset=s.native_offset,
            extent=s.extent,
        )
        for s in LAYER_TABLE[local].slices(parameter, shape)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HfTensor:
    """Describe one tensor of a Hugging Face folder: the table read the other way round.

    Args:
        name: Its name.
        shape: Its shape.
        slices: The slices that make it up, in order.
    """

    name: str
    shape: tuple[int, ...]
    slices: tuple[Slice, ...]


def hf_tensors(shape: ModelShape) -> dict[str, HfTensor]:
    """Return every tensor that a model of this shape has in a Hugging Face folder, in the model's order."""
    inverse: dict[str, list[Slice]] = {}
    for parameter in iter_parameters(shape):
        for piece in slices_of(parameter, shape):
            inverse.setdefault(piece.hf_name, []).append(piece)
    return {
        name: HfTensor(
            name=name,
            shape=tuple(max(s.hf_offset[d] + s.extent[d] for s in found) for d in range(len(found[0].extent))),
            slices=tuple(found),
        )
        for name, found in inverse.items()
    }
