"""Bytes of activations that the backward pass needs, per layer and per stage.

The accounting is that of Korthikanti et al. 2022 (arXiv:2205.05198, sections 4 and 5): count the tensors that autograd
keeps. Their GPT layer takes ``sbh(34 + 5as/h)`` bytes; a LLaMA layer differs in these points:

* no dropout, so no masks; RMSNorm instead of LayerNorm (also keeps its input);
* fused attention (flash, SDPA) keeps q, k, v, its output and one fp32 number a query, and no ``s x s`` matrix; the
  output projection keeps a reordered copy of the output;
* GQA: keys and values are ``num_kv_heads * head_dim`` wide; queries ``num_heads * head_dim``, not always ``h``;
* SwiGLU keeps gate and up (silu is computed again) and the product: three times the FFN width;
* the loss computes its gradient in the forward pass over blocks of tokens, so that no logits are kept
  (``train/loss.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

from llama_scale.layout.parameters import padded_vocab_size
from llama_scale.plan.schedule import peak_held, steady_order
from llama_scale.plan.stages import Chunk, Stages
from llama_scale.plan.workload import Frozen
from llama_scale.spec.model import ModelShape
from llama_scale.spec.recompute import FullRecompute, Recompute

_FP32_BYTES = 4

LOGITS_BLOCK_ELEMENTS = 1 << 27
"""Logits that exist at once (``train/loss.py``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationCase:
    """What the bytes of one micro-batch depend on.

    Args:
        shape: The model.
        micro_batch: Samples of a forward pass (b).
        seq_length: Tokens of a sample (s).
        tp_size: Tensor parallel ranks (t).
        sequence_parallel: Norms and residual stream are sharded along the sequence.
        element_bytes: Bytes of an activation: 2 for bf16, 4 for fp32.
        recompute: What is computed again instead of stored.
        frozen: What trains instead of the model; None: the model does.
    """

    shape: ModelShape
    micro_batch: int
    seq_length: int
    tp_size: int
    sequence_parallel: bool
    element_bytes: int
    recompute: Recompute
    frozen: Frozen | None = None

    @property
    def first_trained(self) -> int:
        """Layers below it are frozen, and keep nothing for a backward pass that never comes to them."""
        return 0 if self.frozen is None else self.frozen.first_layer

    @property
    def copies(self) -> int:
        """Rows that a mixture makes of one sample from that layer on."""
        return 1 if self.frozen is None else self.frozen.copies

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch: s * b."""
        return self.micro_batch * self.seq_length

    @property
    def residual_bytes(self) -> int:
        """One ``[s, b, h]`` tensor of the residual stream, as a rank holds it."""
        shards = self.tp_size if self.sequence_parallel else 1
        return self.tokens * self.shape.hidden_size * self.element_bytes // shards


def attention_bytes(case: ActivationCase) -> int:
    """Return what the attention block of one layer keeps."""
    shape = case.shape
    queries = shape.num_heads * shape.head_dim
    keys_values = 2 * shape.num_kv_heads * shape.head_dim
    sharded = case.tokens * (2 * queries + keys_values) * case.element_bytes // case.tp_size
    core = 0 if case.recompute.kind == "selective" else core_bytes(case)
    return 2 * case.residual_bytes + sharded + core


def core_bytes(case: ActivationCase) -> int:
    """Return what fused attention keeps for itself: its output, and one fp32 number for each query and head.

    The output projection's input is a second copy of that output, because the kernel orders it by heads.
    """
    shape = case.shape
    return case.tokens * shape.num_heads * (shape.head_dim * case.element_bytes + _FP32_BYTES) // case.tp_size


def mlp_bytes(case: ActivationCase) -> int:
    """Return what the SwiGLU block of one layer keeps."""
    return 2 * case.residual_bytes + 3 * case.tokens * case.shape.ffn_hidden_size * case.element_bytes // case.tp_size


def layer_bytes(case: ActivationCase) -> int:
    """Return what one layer keeps of one micro-batch when it is not recomputed as a whole.

    Frozen matrices keep no inputs; adapters keep those that they read, over a bf16 base as fp32 copies.
    """
    whole = attention_bytes(case) + mlp_bytes(case)
    if case.frozen is None:
        return whole
    queries = case.shape.num_heads * case.shape.head_dim
    own = 2 * case.residual_bytes
    own += case.tokens * (queries + case.shape.ffn_hidden_size) * case.element_bytes // case.tp_size
    shards = case.tp_size if case.sequence_parallel else 1
    adapters = case.frozen.kept_bytes(element_bytes=case.element_bytes, sequence_shards=shards)
    return whole - own + int(case.tokens * adapters)


def chunk_bytes(case: ActivationCase, chunk: Chunk) -> int:
    """Return what one chunk keeps of one micro-batch between its forward and its backward pass, logits apart."""
    layers = _trained_layers(case, chunk)
    recompute = case.recompute
    if not isinstance(recompute, FullRecompute):
        kept = layers * layer_bytes(case)
    elif recompute.method == "uniform":
        kept = -(-layers // recompute.layers) * case.residual_bytes
    else:
        checkpointed = min(layers, recompute.layers)
        kept = checkpointed * case.residual_bytes + (layers - checkpointed) * layer_bytes(case)
    return case.copies * (kept + (case.residual_bytes if chunk.has_head else 0))  # input of the final norm


def _trained_layers(case: ActivationCase, chunk: Chunk) -> int:
    return sum(layer >= case.first_trained for layer in chunk.layers)


def recomputed_bytes(case: ActivationCase, chunk: Chunk) -> int:
    """Return what the backward pass of one chunk holds on top while it computes a part of it again.

    By then it has freed what lies behind that part: the final norm's input, and layers without recomputation. The MLP
    that selective recomputation has freed is not counted off, so that full never seems to need more than selective.
    """
    recompute = case.recompute
    if recompute.kind == "none":
        return 0
    layers = _trained_layers(case, chunk)
    if not isinstance(recompute, FullRecompute):
        return case.copies * core_bytes(case)
    freed = case.residual_bytes if chunk.has_head else 0
    if recompute.method == "uniform":
        group = min(recompute.layers, layers)
    else:
        group = 1
        freed += max(0, layers - recompute.layers) * layer_bytes(case)
    return case.copies * max(0, group * layer_bytes(case) - case.residual_bytes - freed)


def logits_bytes(case: ActivationCase, *, vocab_pad_multiple: int) -> int:
    """Return what the output layer and its loss hold at once for one micro-batch.

    These are a block of fp32 logits (and the same in low precision), the normed hidden states of the whole sequence,
    their gradient and the output layer's gradient. 1F1B's last stage holds one micro-batch's at a time: its backward
    pass follows its forward pass at once.
    """
    shape = case.shape
    rows = padded_vocab_size(shape.vocab_size, tp_size=case.tp_size, multiple=vocab_pad_multiple) // case.tp_size
    tokens = case.copies * case.tokens
    block = max(1, min(tokens, LOGITS_BLOCK_ELEMENTS // rows)) * rows
    low_precision = case.element_bytes if case.element_bytes != _FP32_BYTES else 0
    hidden = 2 * tokens * shape.hidden_size
    if case.frozen is None:  # a frozen output layer has no gradient
        hidden += rows * shape.hidden_size
    return block * (_FP32_BYTES + low_precision) + hidden * case.element_bytes


def stage_activation_bytes(case: ActivationCase, stages: Stages, *, pp_rank: int, micro_batches: int) -> int:
    """Return the peak of stored activations of one stage over a step, logits apart.

    Each pass of the schedule adds its chunk's bytes, its backward pass frees them (1F1B: ``pp - stage`` micro-batches
    are held; interleaving: Korthikanti et al. 2022, section 4.2.3).
    """
    stage = stages[pp_rank]
    order = steady_order(pp_rank=pp_rank, pp_size=len(stages), micro_batches=micro_batches, vp_size=len(stage))
    held = peak_held(order, chunk_cost=[chunk_bytes(case, chunk) for chunk in stage])
    return int(held) + max(recomputed_bytes(case, chunk) for chunk in stage)
