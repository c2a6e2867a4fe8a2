"""What a prediction of time and memory depends on: model, layout, software and machine, free of any file format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from llama_scale.plan.hardware import Hardware
from llama_scale.plan.zero_buffers import Buckets

_FP32_BYTES = 4

Sharding = Literal["none", "zero1", "zero1-node", "zero2", "zero3", "hsdp"]
"""What data parallel ranks divide: ZeRO 1, 2, 3 (FSDP is 3); ``-node`` and ``hsdp`` only within a node."""

RecomputeKind = Literal["none", "selective", "full"]
AttentionKernel = Literal["flash1", "flash2", "flash3", "unfused", "unfused-eager"]
"""flash1, 2, 3: FlashAttention's generations (cuDNN's kernels count as 3); unfused: an s x s matrix with a fused
softmax (Megatron); unfused-eager: the same with one kernel an operation."""

Precision = Literal["fp32", "bf16", "fp8", "fp4"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimensions:
    """A decoder's dimensions.

    Args:
        layers: Transformer layers.
        hidden: Width of the residual stream.
        ffn: Width of the MLP.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: Width of a head.
        vocab: Tokens, padding included.
        gated: SwiGLU (three matrices) instead of two.
        tied: The output layer is the embedding.
        experts: Experts of each MLP; 0: dense.
        active_experts: Experts that a token visits.
        expert_ffn: Width of an expert.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    gated: bool = True
    tied: bool = False
    experts: int = 0
    active_experts: int = 0
    expert_ffn: int = 0

    @property
    def queries(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def keys_values(self) -> int:
        """Width of all key and value heads together."""
        return 2 * self.kv_heads * self.head_dim

    @property
    def mlp_matrices(self) -> int:
        """Matrices of an MLP."""
        return 3 if self.gated else 2

    @property
    def attention_numel(self) -> int:
        """Weights of one layer's attention."""
        return self.hidden * (2 * self.queries + self.keys_values)

    @property
    def mlp_numel(self) -> int:
        """Weights of one layer's MLP, all experts and the router."""
        if not self.experts:
            return self.mlp_matrices * self.hidden * self.ffn
        return self.hidden * self.experts * (self.mlp_matrices * self.expert_ffn + 1)

    @property
    def active_mlp_width(self) -> int:
        """Width of the MLP that one token visits."""
        return self.active_experts * self.expert_ffn if self.experts else self.ffn

    @property
    def numel(self) -> int:
        """Weights of the model, a tied embedding once."""
        layer = self.attention_numel + self.mlp_numel + 2 * self.hidden
        return self.layers * layer + self.hidden + self.vocab * self.hidden * (1 if self.tied else 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallelism:
    """How a run is divided.

    Args:
        dp: Data parallel replicas.
        tp: Tensor parallel ranks.
        pp: Pipeline stages.
        vp: Interleaved chunks of a stage.
        cp: Context parallel ranks.
        ep: Expert parallel ranks, taken from dp.
        sharding: What data parallel ranks divide.
        sequence: Norms and residuals are divided over tp along the sequence.
        recompute: What the backward pass computes again.
        recompute_layers: Share of layers that full recomputation covers.
        stage_layers: Layers of each chunk in forward order; None: equal, or with one layer less at both ends.
    """

    dp: int
    tp: int = 1
    pp: int = 1
    vp: int = 1
    cp: int = 1
    ep: int = 1
    sharding: Sharding = "none"
    sequence: bool = False
    recompute: RecomputeKind = "none"
    recompute_layers: float = 1.0
    stage_layers: tuple[int, ...] | None = None

    @property
    def devices(self) -> int:
        """Accelerators of the run."""
        return self.dp * self.tp * self.pp * self.cp


@dataclass(frozen=True, slots=True, kw_only=True)
class Software:
    """What a framework does about what does not follow from the layout.

    Args:
        attention: Kernel of the attention core.
        fused: Norms and element-wise operations run as fused kernels, not one an operation.
        overlap_grads: Gradients are reduced while the backward pass goes on.
        overlap_params: Sharded weights are gathered while other layers compute.
        overlap_tp: Tensor parallel traffic runs under the GEMMs beside it.
        overlap_p2p: Pipeline sends run under the next pass.
        scatter_p2p: A stage sends each tensor parallel rank's part only, not the whole activation from every rank.
        dropout: Masks are kept and applied (models of 2020 to 2022).
        gradient_bytes: Bytes of an accumulated gradient; both copies where a framework keeps two.
        reduce_bytes: Bytes of a gradient when it is sent.
        optimizer_bytes: Bytes of optimizer state of a parameter beside its 16-bit weight: masters and moments are 12,
            an fp32 copy of the gradient makes 16, an update in unfused operations 8 more.
        reduce_each_pass: Gradients are reduced in every backward pass, not once a step (DeepSpeed's ZeRO-2).
        buckets: DeepSpeed's buckets of gradients; its ZeRO-3 also keeps more weights gathered than others.
        output_copy: Attention keeps its output and a reordered copy of it.
        flat_gather: FSDP gathers a layer's weights as one message, not tensor by tensor.
        parallel_loss: The loss is computed on each tensor parallel rank's part of the vocabulary.
        logits_bytes: Bytes of a logit at the loss' peak: 16 and 32 bits, softmax, gradient.
        chunked_loss: The loss is computed in blocks, so that the logits never exist at once.
        selective_operations: Selective recomputation keeps every other matrix product's result (torchtitan, JAX),
            not all but the attention core (Megatron).
    """

    attention: AttentionKernel = "flash2"
    fused: bool = True
    overlap_grads: bool = True
    overlap_params: bool = True
    overlap_tp: bool = False
    overlap_p2p: bool = False
    scatter_p2p: bool = True
    dropout: bool = False
    gradient_bytes: int = 4
    reduce_bytes: int = 4
    optimizer_bytes: int = 12
    reduce_each_pass: bool = False
    buckets: Buckets | None = None
    output_copy: bool = False
    flat_gather: bool = True
    parallel_loss: bool = True
    logits_bytes: int = 10
    chunked_loss: bool = False
    selective_operations: bool = False


class Kept(NamedTuple):
    """A tensor that a layer's adapter keeps for its backward pass.

    Args:
        width: Elements a token, of one rank.
        by_sequence: With sequence parallelism a rank has only its part of the sequence.
        fp32: A copy in fp32, whatever the base's format.
        shared: It is one tensor with all others of this name; empty: with none.
    """

    width: int
    by_sequence: bool = False
    fp32: bool = True
    shared: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """A base that stays as it is under adapters that train; numbers are those of one rank.

    Args:
        first_layer: The lowest layer with an adapter that trains; backward passes end there. As many as there are
            layers if only heads train.
        copies: Rows that a mixture makes of one sample from that layer on, the output layer included.
        matrices: Rows and columns of the matrices by which adapters multiply in one layer; rows alone (columns 0) of
            what they scale or shift by.
        adapters: How many adapters these belong to; a token meets one of them.
        kept: What all these adapters keep in one layer.
        layer_numel: Elements that train in each layer.
        head_numel: Elements that train on the last stage beside the layers.
    """

    first_layer: int
    copies: int = 1
    matrices: tuple[tuple[int, int], ...] = ()
    adapters: int = 1
    kept: tuple[Kept, ...] = ()
    layer_numel: tuple[int, ...] = ()
    head_numel: int = 0

    def kept_bytes(self, *, element_bytes: int, sequence_shards: int) -> float:
        """Return the bytes a token that one layer of one rank keeps for the adapter that the token meets.

        Args:
            element_bytes: Of the base's activations.
            sequence_shards: Parts into which sequence parallelism cuts a sample; 1 without it.
        """
        total = 0.0
        shared: set[str] = set()
        for tensor in self.kept:
            if tensor.shared:
                if tensor.shared in shared:
                    continue
                shared.add(tensor.shared)
            size = _FP32_BYTES if tensor.fp32 else element_bytes
            total += size * tensor.width / (sequence_shards if tensor.by_sequence else 1)
        return total / self.adapters


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One run on one machine.

    Args:
        model: The model.
        parallel: Its layout.
        software: The framework.
        hardware: The accelerator, its links and network.
        devices_per_node: Accelerators that share a scale-up domain.
        precision: Format of the GEMMs.
        seq_length: Tokens of a sample.
        micro_batch: Samples of a forward pass.
        global_batch: Samples of a step.
        frozen: What trains instead of the model; None: the model does.
    """

    model: Dimensions
    parallel: Parallelism
    software: Software
    hardware: Hardware
    devices_per_node: int
    precision: Precision
    seq_length: int
    micro_batch: int
    global_batch: int
    frozen: Frozen | None = None

    @property
    def copies(self) -> int:
        """Rows of trained layers and the output layer for one sample."""
        return 1 if self.frozen is None else self.frozen.copies

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step and replica, at least one."""
        return max(1, round(self.global_batch / (self.parallel.dp * self.micro_batch)))

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch that one rank computes."""
        return max(1, self.micro_batch * self.seq_length // self.parallel.cp)

    @property
    def element_bytes(self) -> int:
        """Bytes of an activation."""
        return 4 if self.precision == "fp32" else 2
