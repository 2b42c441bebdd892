"""Disease tokens: what the tower sees of each finding, where, and between which lung borders (stage 1 of AM-MRG, docs/method.md 8.1, at small size).

b films · f findings (the 14 labels) · l tower tokens · g patches along a side · d tower width · m cells along a side of the lung borders

A learnable query a finding reads the tower's tokens through a small Q-Former (self-attention among the queries, cross-attention to the tokens). Its
head gives every patch a logit of its own, e, and the query says how much each patch counts, α, which sums to 1. A patch is what the tower made of
it and, where the settings say so, what the stem saw there before the scans. So every patch has a part in the finding's logit, which is exactly

    Σ over patches of α · e  +  bias

and a map of these parts is not a picture of the finding but what its logit is made of. Two labels (WHOLE) are read of the film as a whole as well,
by mean and maximum of the stem's channels: a mean takes 1 / g² of every patch, a maximum is one patch's. That adds a part to α · e. Without it
effusions are told apart less well (docs/experiments.md 29).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from emrrg_core.config import Former, QueryConfig, Stem, VisionConfig
from emrrg_core.model.vision_mamba import FineFeatures
from emrrg_core.text.labeler import LABELS, NO_FINDING

SIDES = ("right", "left")  # of the patient: as films are hung, the patient's right is at the left of the film
ZONES = ("upper", "mid", "lower")  # thirds of a lung's height
WHOLE = (NO_FINDING, "Pleural Effusion")  # labels that are read of the film as a whole too
VIEWS = 2.0  # nats by which a film must show a finding better to count e times as much in its study


@dataclass(frozen=True)
class Seen:
    """What the tower saw of b films. Everything a draft, a map or a probability is made of.

    tokens: (b, l, d), the tower's own. logits: (b, f), not calibrated. evidence: (b, f, g²), every patch's own logit. share: (b, f, g²), how much
    a patch counts, sum 1. bias: (f,). disease: (b, f, d), the queries after they have read. lungs: (b, 2, m, m), logits of the patient's right and
    left lung. stem: (b, f, g²), what the stem's channels give to the labels of WHOLE, 0 for others; None where heads do not read them.
    Labels are in the order of LABELS.
    """

    tokens: Tensor
    logits: Tensor
    evidence: Tensor
    share: Tensor
    bias: Tensor
    disease: Tensor
    lungs: Tensor
    stem: Tensor | None = None

    @property
    def attribution(self) -> Tensor:
        """What each patch gives to the logit: (b, f, g²). Sums, with the bias, to the logit."""
        own = self.share * self.evidence
        return own if self.stem is None else own + self.stem

    @classmethod
    def of_tokens(cls, tokens: Tensor) -> "Seen":
        """What a tower without queries saw: its tokens, and no finding."""
        b, _, d = tokens.shape
        none = tokens.new_zeros(b, 0)
        return cls(tokens, none, none[..., None], none[..., None], none[0], tokens.new_zeros(b, 0, d), tokens.new_zeros(b, 2, 0, 0))  # fmt: skip

    def by_study(self, study: Tensor, counts: Tensor) -> "Seen":
        """Films (n, …) as studies (b, …). study: (n,), which one a film is of; counts: (b,), how many it has.

        Tokens and lungs are means over a study's films (docs/method.md 5.1). Of each finding the films count by how surely they show it, as the
        softmax of their logits over VIEWS: a mean would let a film that does not show a finding take it away (docs/experiments.md 32).
        """
        b = len(counts)

        def total(value: Tensor) -> Tensor:
            return value.new_zeros(b, *value.shape[1:]).index_add(0, study, value)

        def mean(value: Tensor) -> Tensor:
            return total(value) / counts.view(-1, *[1] * (value.dim() - 1))

        signs = torch.ones(self.logits.shape[1], device=self.logits.device)
        if len(signs):
            signs[LABELS.index(NO_FINDING)] = -1  # what is shown is that there is something
        shown = self.logits * signs / VIEWS
        weights = (shown - mean(shown)[study]).clamp(-40, 40).exp()  # e^40 four times over is a float32 still
        weights = weights / total(weights)[study]  # (n, f)

        def weighed(value: Tensor) -> Tensor:
            return total(value * weights.view(*weights.shape, *[1] * (value.dim() - 2)))

        share, parts = weighed(self.share), weighed(self.share * self.evidence)
        return Seen(
            tokens=mean(self.tokens),
            logits=weighed(self.logits),
            # the mean of two shares times the mean of two logits is not what two views' logits are made of
            evidence=torch.where(share > 0, parts / share.masked_fill(share <= 0, 1.0), mean(self.evidence)),
            share=share,
            bias=self.bias,
            disease=mean(self.disease),
            lungs=mean(self.lungs),
            stem=None if self.stem is None else weighed(self.stem),
        )

    def select(self, rows: Tensor | slice) -> "Seen":
        """Some of the films, in that order."""
        return self._map(lambda value: value[rows])

    def study(self) -> "Seen":
        """All films as one study of b views."""
        n, device = len(self.tokens), self.tokens.device
        return self.by_study(torch.zeros(n, dtype=torch.long, device=device), torch.tensor([n], device=device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Seen":
        kept = {f.name: getattr(self, f.name) for f in fields(self)}
        same = ("bias",) if self.stem is not None else ("bias", "stem")
        return Seen(**{name: value if name in same else change(value) for name, value in kept.items()})

    def patch_lungs(self) -> Tensor:
        """Share of every patch that is right or left lung: (b, g², 2) float32."""
        grid = round(self.evidence.shape[-1] ** 0.5)
        return F.adaptive_avg_pool2d(self.lungs.float().sigmoid(), grid).flatten(2).transpose(1, 2)

    def regions(self) -> Tensor:
        """Every finding's strongest patch by lung and zone: logits (b, f, 2, 3), the patient's right lung first, upper zone first.

        A patch belongs to the lung that it more likely shows; a lung reaches from the first to the last row in which it is seen.
        """
        b, f, patches = self.evidence.shape
        grid = round(patches**0.5)
        lungs = self.patch_lungs().detach()
        seen = lungs.view(b, grid, grid, 2).amax(2) > 0.4  # (b, rows, 2)
        rows = torch.arange(grid, device=lungs.device)
        first = torch.where(seen, rows[:, None], grid).amin(1).clamp(max=grid - 1)  # (b, 2)
        last = torch.where(seen, rows[:, None], -1).amax(1)
        first, last = torch.where(last >= 0, first, 0), torch.where(last >= 0, last, grid - 1)
        zone = ((rows[:, None] - first[:, None]) * 3).div(last[:, None] - first[:, None] + 1, rounding_mode="floor")
        zone = zone.clamp(0, 2)  # (b, rows, 2)
        columns = torch.arange(grid, device=lungs.device)
        nearer = _nearer(lungs, grid, columns)  # (b, rows, columns)
        evidence = self.evidence.float()
        found = []
        for side in range(2):
            for third in range(3):
                inside = (nearer == side) & (zone[:, :, side] == third).unsqueeze(2)
                found.append(evidence.masked_fill(~inside.view(b, 1, patches), -20.0).amax(-1))  # (b, f)
        return torch.stack(found, dim=2).view(b, f, 2, 3)


def _nearer(lungs: Tensor, grid: int, columns: Tensor) -> Tensor:
    """Which lung each patch belongs to, (b, rows, columns): the one it shows more of; where it shows none, the side of the midline it is on.

    lungs: (b, g², 2). The midline is half way between the lungs' centres.
    """
    shares = lungs.view(-1, grid, grid, 2)
    weight = shares.sum(1)  # (b, columns, 2)
    centre = (weight * columns[None, :, None]).sum(1) / weight.sum(1).clamp_min(1e-6)  # (b, 2)
    middle = torch.where(weight.sum(1).amin(1) > 0.5, centre.mean(1), torch.full_like(centre[:, 0], (grid - 1) / 2))
    beside = (columns[None, :] > middle[:, None]).long()[:, None, :].expand(-1, grid, -1)
    return torch.where(shares.amax(-1) > 0.15, shares.argmax(-1), beside)


class _Block(nn.Module):
    """One layer of the Q-Former, pre-norm: the queries read each other, then the film, then themselves."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_self, self.norm_film, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.film_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, queries: Tensor, film: Tensor) -> Tensor:
        """queries (b, f, d), film (b, l, d) -> (b, f, d)."""
        q = self.norm_self(queries)
        queries = queries + self.self_attention(q, q, q, need_weights=False)[0]
        queries = queries + self.film_attention(self.norm_film(queries), film, film, need_weights=False)[0]
        return queries + self.mlp(self.norm_mlp(queries))


class BlipFormer(nn.Module):
    """BLIP-2's Q-Former with a query a finding: Linear d -> 1408, Blip2QFormerModel of width 768, Linear 768 -> d (docs/method.md 8.2)."""

    WIDTH, SEES = 768, 1408

    def __init__(self, width: int, config: QueryConfig) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(LABELS), self.WIDTH) * 0.02)
        self.into = nn.Linear(width, self.SEES)
        self.layers = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=self.WIDTH,
                num_hidden_layers=config.depth,
                num_attention_heads=config.heads,
                intermediate_size=4 * self.WIDTH,
                cross_attention_frequency=2,
                encoder_hidden_size=self.SEES,
            )
        )
        self.out = nn.Linear(self.WIDTH, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tower tokens (b, l, d) to (b, f, d)."""
        queries = self.queries.to(tokens.dtype).expand(len(tokens), -1, -1)
        seen = self.layers(query_embeds=queries, encoder_hidden_states=self.into(tokens)).last_hidden_state
        found: Tensor = self.out(seen)
        return found


class DiseaseQueries(nn.Module):
    """One learnable query and one head a finding."""

    def __init__(self, width: int, config: QueryConfig) -> None:
        super().__init__()
        if config.former is Former.BLIP2:
            self.former = BlipFormer(width, config)
        else:
            self.queries = nn.Parameter(torch.randn(len(LABELS), width) * 0.02)
            self.blocks = nn.ModuleList(_Block(width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.norms = nn.ModuleList(
            nn.LayerNorm(width) for _ in range(1 + config.stem)
        )  # the tower's patches, the stem's
        seen = width * len(self.norms)
        self.key = nn.Linear(seen, width, bias=False)
        out = nn.Linear(config.hidden, len(LABELS))
        nn.init.constant_(out.bias, -2.0)
        # a patch's own logit of every finding
        self.head = nn.Sequential(nn.Linear(seen, config.hidden), nn.GELU(), nn.Dropout(0.1), out)
        self.sharpness = nn.Parameter(torch.ones(len(LABELS)))  # how much a patch counts for being the strongest
        self.even = nn.Parameter(torch.zeros(len(LABELS)))  # logit of the part of the share that all patches have alike
        self.bias = nn.Parameter(torch.full((len(LABELS),), 2.0))  # at first the patches' own logits cancel out
        if config.stem:
            self.stem_mean = nn.Parameter(torch.zeros(len(WHOLE), width))
            self.stem_max = nn.Parameter(torch.zeros(len(WHOLE), width))

    def forward(self, tokens: Tensor, middle: int, stem: Tensor | None = None) -> dict[str, Any]:
        """Tower tokens (b, l, d), the class token at index `middle`, and the stem's patches (b, g², d) where heads read them, to the fields of
        `Seen` that are read from them. Raises ValueError where the stem's patches are needed and missing."""
        queries = self._ask(tokens)
        read = [torch.cat([tokens[:, :middle], tokens[:, middle + 1 :]], dim=1)]
        if hasattr(self, "stem_mean"):
            if stem is None:
                raise ValueError("these heads read the stem's patches too: pass them")
            read.append(stem)
        patches = torch.cat([norm(part) for norm, part in zip(self.norms, read, strict=True)], -1)  # (b, g², d or 2d)
        evidence = self.head(patches).float().transpose(1, 2)  # (b, f, g²)
        alike = self.norm(queries) @ self.key(patches).transpose(1, 2) * queries.shape[-1] ** -0.5  # (b, f, g²)
        own = (alike.float() + self.sharpness[:, None].float() * evidence).softmax(-1)
        even = self.even.float().sigmoid()[:, None]
        share = (1 - even) * own + even / own.shape[-1]
        part = None if stem is None or len(read) == 1 else self.of_stem(stem.float())
        attribution = share * evidence if part is None else share * evidence + part
        return {
            "logits": attribution.sum(-1) + self.bias.float(),
            "stem": part,
            "evidence": evidence,
            "share": share,
            "bias": self.bias.float(),
            "disease": queries,
        }

    def _ask(self, tokens: Tensor) -> Tensor:
        """The disease tokens (b, f, d) of tower tokens (b, l, d)."""
        if hasattr(self, "former"):
            found: Tensor = self.former(tokens)
            return found
        queries = self.queries.to(tokens.dtype).expand(len(tokens), -1, -1)
        for block in self.blocks:
            queries = block(queries, tokens)
        return queries

    def of_stem(self, patches: Tensor) -> Tensor:
        """What every patch of the stem (b, g², d) gives to each logit, (b, f, g²): of the labels of WHOLE its 1 / g² of the mean, and the maxima
        that are its own."""
        with torch.autocast(patches.device.type, enabled=False):  # sums over many patches: in full precision
            mean = (patches @ self.stem_mean.float().T).transpose(1, 2) / patches.shape[1]
        top, at = patches.max(1)  # (b, d)
        each = self.stem_max.float() * top.unsqueeze(1)  # (b, whole, d)
        whole = mean.scatter_add(2, at.unsqueeze(1).expand_as(each), each)
        rows = torch.tensor([LABELS.index(name) for name in WHOLE], device=patches.device)
        return whole.new_zeros(len(whole), len(LABELS), whole.shape[2]).index_copy(1, rows, whole)


class LungBorders(nn.Module):
    """The lungs at four times the resolution of the patches, (b, 2, m, m) logits, m = 4g: from the tower's patches and, of a convolutional stem,
    from what it saw on its way."""

    def __init__(self, vision: VisionConfig) -> None:
        super().__init__()
        d, inner = vision.d_model, 64
        self.coarse = nn.Conv2d(d, inner, 1)
        if vision.stem is Stem.CONVOLUTION:
            self.eighth = nn.Conv2d(d // 2, inner, 1)
            self.quarter = nn.Conv2d(d // 4, inner, 1)
        self.join = nn.Sequential(nn.GroupNorm(8, inner), nn.ReLU(), nn.Conv2d(inner, inner, 3, padding=1))
        self.out = nn.Sequential(nn.GroupNorm(8, inner), nn.ReLU(), nn.Conv2d(inner, 32, 3, padding=1), nn.ReLU())
        self.lungs = nn.Conv2d(32, 2, 1)
        assert self.lungs.bias is not None
        nn.init.constant_(self.lungs.bias, -1.0)

    def forward(self, patches: Tensor, fine: FineFeatures | None) -> Tensor:
        """patches: (b, d, g, g)."""
        x = F.interpolate(self.coarse(patches), scale_factor=2.0, mode="bilinear")
        x = self.join(x + self.eighth(fine.eighth) if fine else x)
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear")
        x = x + self.quarter(fine.quarter) if fine else x
        lungs: Tensor = self.lungs(self.out(x))
        return lungs


__all__ = ["SIDES", "WHOLE", "ZONES", "DiseaseQueries", "LungBorders", "Seen"]
