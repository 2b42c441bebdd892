"""The hybrid decoder: some layers of a frozen language model also look at the film (docs/method.md 4).

b samples (times beams) · l text positions · v visual tokens, n of one group · h model width · heads and kv heads of width k

In a hybrid layer, the self-attention output `a`, before o_proj, receives gate(a) · ctx, where ctx is cross-attention from the layer's own
query (after its rotary embedding) to the visual tokens, through a key/value projection of its own. Everything else is the language model's own
code: composition happens at transformers' attention interface, so no key is renamed, no layer is replaced, and peft may wrap what it likes.

What is seen travels with the call (`visual=...`), not on a module: two requests cannot see each other's film, and a call that brings none raises.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from emrrg_core.config import Gate, HybridConfig

ATTENTION = "emrrg_hybrid"  # the name under which the language model finds hybrid_attention
MANY = 8  # sequences above which self-attention of the next token is grouped


class HybridLayer(nn.Module):
    """The new parameters of one hybrid layer.

    kv_proj: h -> 2 · kv_heads · k with bias, K and V interleaved per head: rows are (kv head, K or V, k).
    gate_proj: scalar gates heads·k -> 1; the channel-wise gate k -> k, shared by the heads.   warm_up_gate: α, (1,).
    """

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, config: HybridConfig) -> None:
        super().__init__()
        self.gate, self.heads, self.kv_heads, self.head_dim = config.gate, heads, kv_heads, head_dim
        self.kv_proj = nn.Linear(width, 2 * kv_heads * head_dim)
        nn.init.zeros_(self.kv_proj.bias)
        if self.gate is Gate.CHANNEL_WISE_DYNAMIC_SIGMOID:
            self.gate_proj = nn.Linear(head_dim, head_dim)
            nn.init.zeros_(self.gate_proj.weight)
            nn.init.constant_(self.gate_proj.bias, -3.0)  # σ(-3) ≈ 0.05: starts close to the plain language model
        else:
            self.gate_proj = nn.Linear(heads * head_dim, 1)
            if self.gate.has_warmup:
                self.warm_up_gate = nn.Parameter(torch.full((1,), config.warmup_start))
            else:  # no warm-up to close it, so the gate itself starts at 0: exactly the plain language model
                nn.init.zeros_(self.gate_proj.weight)
                nn.init.zeros_(self.gate_proj.bias)

    def keys_values(self, visual: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised visual tokens (b, v, h) to keys and values, (b, kv_heads, v, k) each. No rotary embedding."""
        kv = self.kv_proj(visual).unflatten(-1, (self.kv_heads, 2, self.head_dim))  # (b, v, kv_heads, 2, k)
        keys, values = kv.permute(3, 0, 2, 1, 4)
        return keys, values

    def mix(self, a: Tensor, ctx: Tensor) -> tuple[Tensor, Tensor]:
        """Self-attention a and cross-attention ctx, (b, l, heads, k) each, to what o_proj receives and the gate per head (b, l, heads)."""
        if self.gate is Gate.CHANNEL_WISE_DYNAMIC_SIGMOID:
            g = torch.sigmoid(self.gate_proj(a))  # (b, l, heads, k)
            return (1 - g) * a + g * ctx, g.mean(-1)
        g = self.gate_proj(a.flatten(2))  # (b, l, 1)
        if self.gate in (Gate.WHOLE_DYNAMIC_TANH, Gate.WHOLE_DYNAMIC_TANH_WARMUP):
            g = torch.tanh(g)
        if self.gate.has_warmup:
            g = g * torch.tanh(self.warm_up_gate)
        return a + g.unsqueeze(-1) * ctx, g.expand(-1, -1, self.heads)


@dataclass(frozen=True)
class TokenGroup:
    """Visual tokens of one kind, under the name by which an AttentionTrace tells them apart.

    tokens: (b, n, h). mask: (b, n) bool, False where a token is not to be seen; None: all are. weight: what the group weighs in a hybrid layer's
    attention before anything is learned, so that many tokens of one kind do not outweigh few of another; None: one each.
    """

    name: str
    tokens: Tensor
    mask: Tensor | None = None
    weight: float | None = None


@dataclass(frozen=True)
class AttentionTrace:
    """What one hybrid layer did at every position of one forward call."""

    layer: int
    gate: Tensor  # (b, l): mean over heads
    # name of a group -> (b, l, n): weights on its tokens, averaged over heads by their gates' strength; sum 1 over all groups
    attention: dict[str, Tensor]

    def at(self, positions: slice) -> "AttentionTrace":
        """Some of the positions."""
        kept = {name: weights[:, positions] for name, weights in self.attention.items()}
        return AttentionTrace(self.layer, self.gate[:, positions], kept)

    def where(self, late: Tensor, other: "AttentionTrace") -> "AttentionTrace":
        """The same layer in two calls: this one's look, and the other's where late (b, l) bool says so."""
        kept = {n: torch.where(late[..., None], other.attention[n], mine) for n, mine in self.attention.items()}
        return AttentionTrace(self.layer, torch.where(late, other.gate, self.gate), kept)


@dataclass(frozen=True)
class Visual:
    """The film as the hybrid layers see it: keys and values per hybrid layer, computed once for a whole draft.

    sizes: tokens of each group, in the order in which they stand among the v. mask: (b, v) bool, False where a token is not to be seen; a sample
    without any is left as the plain language model. prior: (v,), added to every score before the softmax; None: nothing is added.
    text: (b, l) bool of the current call, True where a position is prompt or report text; None: all are, as while decoding.
    trace: a list of the current call's own; every hybrid layer notes what it looked at there, once.
    beside: what further layers, of another HybridLayer each, see and add through gates of their own: the prior film. Not traced.
    """

    hybrid: "HybridLayers"
    keys_values: dict[int, tuple[Tensor, Tensor]]  # layer -> (b, kv_heads, v, k) each
    sizes: dict[str, int]
    mask: Tensor | None = None
    text: Tensor | None = None
    prior: Tensor | None = None
    trace: list[AttentionTrace] | None = field(default=None, compare=False)
    beside: "Visual | None" = None

    def at(self, text: Tensor | None = None, *, trace: list[AttentionTrace] | None = None) -> "Visual":
        """The same film for one call: which positions are text, and where to note what was looked at."""
        return replace(self, text=text, trace=trace)

    def repeat(self, times: int) -> "Visual":
        """Every sample `times` times in a row, for beams."""
        rows = torch.arange(self._batch(), device=self._device()).repeat_interleave(times)
        return self.select(rows)

    def select(self, rows: Tensor) -> "Visual":
        """The samples at `rows` (n,), in that order."""
        kept = {i: (k.index_select(0, rows), v.index_select(0, rows)) for i, (k, v) in self.keys_values.items()}
        mask = None if self.mask is None else self.mask.index_select(0, rows)
        beside = None if self.beside is None else self.beside.select(rows)
        return replace(self, keys_values=kept, mask=mask, beside=beside)

    @classmethod
    def join(cls, some: Sequence["Visual"]) -> "Visual":
        """The samples of several, one after the other. All must be of one model, with the same groups; some may have nothing beside."""
        first = some[0]
        layers = {i: [one.keys_values[i] for one in some] for i in first.keys_values}
        kept = {i: (torch.cat([k for k, _ in each]), torch.cat([v for _, v in each])) for i, each in layers.items()}
        masks = [one.mask for one in some if one.mask is not None]
        like, beside = next((one.beside for one in some if one.beside is not None), None), None
        if like is not None:
            beside = cls.join([one.beside or like.unseen(one._batch()) for one in some])
        mask = torch.cat(masks) if masks else None
        return replace(first, keys_values=kept, mask=mask, text=None, trace=None, beside=beside)

    def unseen(self, b: int) -> "Visual":
        """The same groups for b samples that may see none of it."""
        kept = {
            i: (k.new_zeros(b, *k.shape[1:]), v.new_zeros(b, *v.shape[1:])) for i, (k, v) in self.keys_values.items()
        }
        shape = b, sum(self.sizes.values())
        return replace(self, keys_values=kept, mask=torch.zeros(shape, dtype=torch.bool, device=self._device()))

    def _batch(self) -> int:
        return next(iter(self.keys_values.values()))[0].shape[0] if self.keys_values else 0

    def _device(self) -> torch.device:
        return next(iter(self.keys_values.values()))[0].device if self.keys_values else torch.device("cpu")


class HybridLayers(nn.Module):
    """The new parameters of some hybrid layers, by the number of the language model's layer."""

    layers: nn.ModuleDict

    def indices(self) -> list[int]:
        """Numbers of the language model's layers that look at the film."""
        return [int(i) for i in self.layers]

    def items(self) -> Iterator[tuple[int, HybridLayer]]:
        for i, layer in self.layers.items():
            assert isinstance(layer, HybridLayer)
            yield int(i), layer

    def precompute_keys_values(self, llm: PreTrainedModel, *groups: TokenGroup) -> Visual:
        """Keys and values of the visual tokens, for any number of calls: `llm(..., visual=hybrid.precompute_keys_values(llm, patches, findings))`.

        The layer's own input_layernorm normalises them, as it does the text.
        """
        blocks = llm.get_decoder().layers
        tokens = torch.cat([group.tokens for group in groups], 1).to(llm.dtype)
        kv = {i: layer.keys_values(blocks[i].input_layernorm(tokens)) for i, layer in self.items()}
        mask = prior = None
        if any(group.mask is not None for group in groups):
            shown = [torch.ones_like(g.tokens[..., 0], dtype=torch.bool) if g.mask is None else g.mask for g in groups]
            mask = torch.cat(shown, 1)
        if any(group.weight is not None for group in groups):
            sizes = [g.tokens.shape[1] for g in groups]
            each = [math.log(g.weight / n) if g.weight is not None else 0.0 for g, n in zip(groups, sizes, strict=True)]
            device = groups[0].tokens.device
            prior = torch.tensor(each, device=device).repeat_interleave(torch.tensor(sizes, device=device))
        return Visual(self, kv, {group.name: group.tokens.shape[1] for group in groups}, mask, prior=prior)


class HybridDecoder(HybridLayers):
    """The new parameters of all hybrid layers, beside a language model whose attention they join.

    With `every_n` 0 there are none, and the language model runs as it is. Raises ValueError when it cannot take an attention function of ours.
    """

    def __init__(self, llm: PreTrainedModel, config: HybridConfig) -> None:
        super().__init__()
        c = llm.config
        head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        indices = range(0, c.num_hidden_layers, config.every_n) if config.every_n else ()
        self.layers = nn.ModuleDict(
            {
                str(i): HybridLayer(c.hidden_size, c.num_attention_heads, c.num_key_value_heads, head_dim, config)
                for i in indices
            }
        )
        if config.keys_from_llm:
            self._copy_keys(llm)
        self.to(llm.device, llm.dtype)
        llm.set_attn_implementation(ATTENTION)
        if llm.config._attn_implementation != ATTENTION:
            raise ValueError(f"{type(llm).__name__} does not take its attention from transformers' attention interface")

    @torch.no_grad()
    def _copy_keys(self, llm: PreTrainedModel) -> None:
        blocks = llm.get_decoder().layers
        for i, layer in self.items():
            attention = blocks[i].self_attn
            rows = layer.kv_proj.weight.view(layer.kv_heads, 2, layer.head_dim, -1)
            bias = layer.kv_proj.bias.view(layer.kv_heads, 2, layer.head_dim)
            for slot, source in enumerate((attention.k_proj, attention.v_proj)):
                rows[:, slot] = source.weight.view(layer.kv_heads, layer.head_dim, -1)
                if source.bias is not None:
                    bias[:, slot] = source.bias.view(layer.kv_heads, layer.head_dim)


def hybrid_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    visual: Visual | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Self-attention, and in hybrid layers the gated look at the film. transformers calls it; query is (b, heads, l, k), after rotation.

    Self-attention is the language model's own to the last bit, but for the next token of more than MANY sequences: there it is grouped, which is
    about three times as fast on a CPU and differs by rounding (docs/experiments.md 27).

    Raises RuntimeError when the call brings no film: a hybrid decoder never runs blind.
    """
    if query.shape[0] > MANY and query.shape[2] == 1 and not module.training:
        a = grouped_self(query, key, value, attention_mask, scaling).transpose(1, 2)  # (b, 1, heads, k)
    else:
        a, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )  # (b, l, heads, k)
    if visual is None:
        raise RuntimeError(
            "the hybrid decoder ran without an image: pass visual=hybrid.precompute_keys_values(llm, groups)"
        )
    index: int = module.layer_idx  # type: ignore[assignment]
    if index not in visual.keys_values:
        return a, None
    drop = dropout if module.training else 0.0
    mixed, gate, weights = _look(index, query, a, visual, drop)
    if visual.beside is not None and index in visual.beside.keys_values:
        mixed = mixed + (_look(index, query, a, replace(visual.beside, text=visual.text), drop)[0] - a)
    if visual.trace is not None:
        strength = gate.float().abs()
        share = strength / strength.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        share = torch.where(strength.sum(-1, keepdim=True) > 0, share, torch.full_like(share, 1 / share.shape[-1]))
        seen = torch.einsum("blh,bhlv->blv", share, weights)  # differentiable: training may guide where sentences look
        groups = dict(zip(visual.sizes, seen.split(list(visual.sizes.values()), -1), strict=True))
        # a layer that is computed again, for its gradient, has been noted
        if all(looked.layer != index for looked in visual.trace):
            visual.trace.append(AttentionTrace(index, gate.float().mean(-1), groups))
    return mixed.to(a.dtype), None


def _look(index: int, query: Tensor, a: Tensor, visual: Visual, drop: float) -> tuple[Tensor, Tensor, Tensor]:
    """One look of layer `index`: what o_proj receives (b, l, heads, k), the gate (b, l, heads), the weights (b, heads, l, v)."""
    layer = visual.hybrid.layers[str(index)]
    assert isinstance(layer, HybridLayer)
    keys, values = visual.keys_values[index]
    if keys.shape[0] != query.shape[0]:
        raise RuntimeError(f"{query.shape[0]} sequences look at {keys.shape[0]} films: repeat the films for the beams")
    ctx, weights = grouped_film(query, keys, values, layer.head_dim**-0.5, visual.mask, drop, visual.prior)
    mixed, gate = layer.mix(a, ctx.transpose(1, 2))
    sees = _sees_film(visual, a)
    if sees is not None:
        mixed = torch.where(sees[..., None, None], mixed, a)
        gate = gate * sees[..., None]
    return mixed, gate, weights


def grouped_self(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, scaling: float | None = None
) -> Tensor:
    """Self-attention of one token a sequence, for generation: query (b, heads, 1, k); key, value (b, kv_heads, l, k); mask (b, 1, 1, l). Like query.

    The queries of the heads that share a key stand in a row before it, instead of each before a copy.
    """
    grouped = query.reshape(*key.shape[:2], -1, query.shape[-1])  # (b, kv_heads, heads / kv_heads, k)
    return F.scaled_dot_product_attention(grouped, key, value, mask, scale=scaling).reshape(query.shape)


def grouped_film(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    prior: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What queries (b, heads, l, k) see of keys and values (b, kv_heads, v, k): context like query, weights (b, heads, l, v) float32, sum 1.

    As `grouped_self`, with weights that can be shown. mask: (b, v) bool, prior: (v,), see Visual. A sample that may see nothing gets no NaN but a
    mean, which its caller takes away.
    """
    grouped = query.reshape(*keys.shape[:2], -1, query.shape[-1])  # (b, kv_heads, heads / kv_heads · l, k)
    scores = (grouped @ keys.transpose(-1, -2)).float() * scaling
    if prior is not None:
        scores = scores + prior
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1)
    context = F.dropout(weights, dropout, dropout > 0).to(values.dtype) @ values
    return context.view_as(query), weights.view(*query.shape[:3], -1)


def _sees_film(visual: Visual, a: Tensor) -> Tensor | None:
    """(b, l) bool: the text positions of samples that have an image. None when that is all of them."""
    if visual.text is None and visual.mask is None:
        return None
    sees = torch.ones(a.shape[:2], dtype=torch.bool, device=a.device)
    if visual.text is not None:
        sees = sees & visual.text
    if visual.mask is not None:
        sees = sees & visual.mask.any(-1, keepdim=True)
    return sees


AttentionInterface.register(ATTENTION, hybrid_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
