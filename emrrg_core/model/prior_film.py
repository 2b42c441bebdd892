"""The prior film: what was read in it, marked as earlier, and how each finding has changed since.

b studies · s findings that can be told (finding_tokens.NAMES) · c findings that are compared (COMPARED) · k numbers about one · h language width

Both films go through the tower, and both are read by the same thresholds. Of the findings of COMPARED a small network then says how they have
changed, from numbers about one finding in both films: its logit, how wide it is, how strongly the patches speak for it. A change is told only from a
probability on, and only where it agrees with what was read: what is new was not read as present before, what has resolved may be denied now.

Every finding whose change is told is a token of its own: what it is, whether it was there, on which side, and how it has changed. The language model
sees these tokens through hybrid layers of their own, beside the film's: keys, values and gates that learn after all else has. So a draft without a
prior film is what it would be without all this, and one with a prior film differs by these layers alone. Through the film's own gates hardly any
change was told: they open where a finding is named, not where its change is (docs/experiments.md 33). The prior film's patches are not among the
tokens: a draft follows finding tokens, not patches (docs/results.md).

A `prior.safetensors` beside a checkpoint's weights holds it, made by train/prior.py. (Peers that read a prior: Libra, Zhang et al. 2025, arXiv
2411.19378; MAIRA-2, Bannur et al. 2024, arXiv 2406.04449.)
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from emrrg_core.config import HybridConfig
from emrrg_core.errors import CheckpointError
from emrrg_core.model.disease_queries import Seen
from emrrg_core.model.finding_tokens import NAMES, SIDES, Calibration, Earlier, Finding, FindingTokens, Presence
from emrrg_core.model.hybrid_decoder import HybridDecoder, HybridLayer, HybridLayers
from emrrg_core.text.changes import Change
from emrrg_core.text.labeler import LABELS

FILE, SCHEMA = "prior.safetensors", "emrrg.prior/1"
COMPARED = ("opacity", "nodule", "effusion")  # findings that can be drawn smaller and larger, so that change is known
CHANGES = tuple(Change)
_RANKS = (0, 2, 4, 8, 16, 32)  # of a film's patches, the strongest first, that tell how a finding fades out
MEMBERS = 5  # networks of the reader
_WINDOW = 5  # patches along a side, of the place that is compared
_OF_ONE = 5  # numbers about a finding in one film
NUMBERS = 3 * _OF_ONE + 1 + len(COMPARED) + 2 * (len(_RANKS) + 2) + 1
_NOW = (Change.NEW, Change.LARGER, Change.SMALLER, Change.UNCHANGED)  # of what is there now
POSSIBLE = {  # by what was read in the prior film, of what is there now
    Presence.PRESENT: (Change.LARGER, Change.SMALLER, Change.UNCHANGED),
    Presence.ABSENT: (Change.NEW,),
    Presence.OPEN: _NOW,
}


def numbers(now: Seen, before: Seen, calibration: Calibration) -> Tensor:
    """What a change is told from: (b, c, k) float32 of b films and their prior films."""
    rows = torch.tensor([LABELS.index(NAMES[name]) for name in COMPARED], device=now.logits.device)
    here, there = (_of_one(seen, calibration, rows) for seen in (now, before))
    map_now, map_before = (seen.evidence[:, rows].float().sigmoid() for seen in (now, before))
    alike = F.cosine_similarity(map_now, map_before, dim=-1)[..., None]
    which = torch.eye(len(COMPARED), device=here.device).expand(len(here), -1, -1)
    evidence_now, evidence_before = (seen.evidence[:, rows].float() for seen in (now, before))
    return torch.cat([here, there, here - there, alike, which, shapes(evidence_now, evidence_before)], -1)


def shapes(now: Tensor, before: Tensor) -> Tensor:
    """How large a finding is in both films, by every patch's own logit (…, g²) each: (…, 2 · (len(_RANKS) + 2) + 1).

    The strongest patches by their rank; the sum of probabilities in a window where both films together show most, and where each shows most; and how
    far the last two differ.
    """
    maps = [logits.sigmoid() for logits in (now, before)]
    grid = round(now.shape[-1] ** 0.5)
    ranks = [min(rank, now.shape[-1] - 1) for rank in _RANKS]
    strongest = [each.sort(-1, descending=True).values[..., ranks].logit(1e-4) for each in maps]
    planes = [each.reshape(-1, 1, grid, grid) for each in maps]
    kernel = torch.ones(1, 1, _WINDOW, _WINDOW, device=now.device)
    sums = [F.conv2d(plane, kernel, padding=_WINDOW // 2).view(now.shape) for plane in planes]
    place = (sums[0] + sums[1]).argmax(-1, keepdim=True)
    at_place = [each.gather(-1, place).log1p() for each in sums]
    most = [each.amax(-1, keepdim=True).log1p() for each in sums]
    return torch.cat([*strongest, *at_place, *most, most[0] - most[1]], -1)


def _of_one(seen: Seen, calibration: Calibration, rows: Tensor) -> Tensor:
    """Of one film's findings (b, c, 5): calibrated logit, logarithms of how wide it is and of how much speaks for it, the strongest patch, and the
    logarithm of how wide the lungs are."""
    curve = calibration.curve[rows].float()
    logits = curve[:, 0] * seen.logits[:, rows].float() + curve[:, 2]
    evidence = seen.evidence[:, rows].float()
    wide = evidence.sigmoid().sum(-1).log1p()
    speaks = seen.attribution[:, rows].float().clamp_min(0).sum(-1).log1p()
    lungs = seen.patch_lungs().sum((1, 2)).log1p()[:, None].expand_as(logits)
    return torch.stack([logits, wide, speaks, evidence.amax(-1), lungs], -1)


class ChangeReader(nn.Module):
    """From numbers about one finding in two films to how it has changed, by a few small networks together. least: probability from which a change is
    told."""

    mean: Tensor
    spread: Tensor
    least: Tensor

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(NUMBERS))
        self.register_buffer("spread", torch.ones(NUMBERS))
        self.register_buffer("least", torch.tensor(0.5))
        self.members = nn.ModuleList(_member(hidden) for _ in range(MEMBERS))

    def forward(self, found: Tensor) -> Tensor:
        """`numbers` (…, k) to logarithms of probabilities (…, changes): of the members' mean."""
        standard = (found - self.mean) / self.spread
        return torch.stack([member(standard).softmax(-1) for member in self.members]).mean(0).clamp_min(1e-9).log()


def _member(hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(NUMBERS, hidden),
        nn.GELU(),
        nn.Dropout(0.2),
        nn.Linear(hidden, hidden),
        nn.GELU(),
        nn.Linear(hidden, len(CHANGES)),
    )


class PriorFilm(HybridLayers):
    """What is learned to read a prior film. The language model, the hybrid layers of the film and the tower stay as they are."""

    def __init__(self, width: int, hybrid: HybridDecoder, config: HybridConfig) -> None:
        """hybrid, config: of the film's hybrid layers."""
        super().__init__()
        self.reader = ChangeReader()
        sizes = (1 + len(NAMES), len(Presence), len(SIDES), len(CHANGES))
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        self.layers = nn.ModuleDict()
        for i, layer in hybrid.items():
            own = HybridLayer(layer.kv_proj.in_features, layer.heads, layer.kv_heads, layer.head_dim, config)
            self.layers[str(i)] = own

    @torch.no_grad()
    def start(self, hybrid: HybridDecoder, findings: FindingTokens, embedding_of: Callable[[str], Tensor]) -> None:
        """Begin with the film's own finding tokens, keys and values, gates that are open, and the changes as their words."""
        for i, own in self.items():
            own.load_state_dict(hybrid.layers[str(i)].state_dict())
            nn.init.zeros_(own.gate_proj.weight)
            nn.init.ones_(own.gate_proj.bias)  # open everywhere alike: where to look is to be learned
            if own.gate.has_warmup:
                own.warm_up_gate.fill_(0.5)
        words = [f" {change}" for change in CHANGES]
        for n, table in enumerate(self.tables):
            assert isinstance(table, nn.Embedding)
            if n < 3:
                learned = findings.tables[n]
                assert isinstance(learned, nn.Embedding)
                table.weight.copy_(learned.weight[: len(table.weight)])
            else:
                table.weight.copy_(torch.stack([embedding_of(word) for word in words]))
        first = self.tables[0]
        assert isinstance(first, nn.Embedding)
        first.weight += embedding_of(" earlier")

    def tokens(self, findings: Sequence[Sequence[Finding]]) -> tuple[Tensor, Tensor]:
        """(b, s, h), and (b, s) bool: which are to be seen, those whose change is told. Of studies without a prior film none is."""
        device = next(self.parameters()).device
        codes = torch.zeros(len(findings), len(NAMES), 4, dtype=torch.long)
        places = {name: i for i, name in enumerate(NAMES)}
        for row, mine in enumerate(findings):
            for finding in mine:
                if finding.earlier is not None and finding.change is not None:
                    codes[row, places[finding.name]] = torch.tensor(_code(finding.name, finding.earlier))
        codes = codes.to(device)
        parts = [table(codes[..., i]) for i, table in enumerate(self.tables)]
        return torch.stack(parts).sum(0), codes[..., 0] > 0

    @torch.no_grad()
    def compare(
        self,
        now: Seen,
        before: Seen,
        calibration: Calibration,
        findings: Sequence[Sequence[Finding]],
        earlier: Sequence[Sequence[Finding]],
    ) -> list[tuple[Finding, ...]]:
        """The findings of b films with what was read of each in the film's prior film, and how it has changed.

        now, before: what was seen of the films and of their prior films. findings, earlier: what was read in them.
        """
        chances = self.reader(numbers(now, before, calibration)).softmax(-1).cpu()
        least = float(self.reader.least)
        result = []
        for row, (mine, theirs) in enumerate(zip(findings, earlier, strict=True)):
            known = {finding.name: finding for finding in theirs}
            found = []
            for finding in mine:
                then = known[finding.name]
                change, sure = None, 0.0
                if finding.name in COMPARED:
                    of = dict(zip(CHANGES, chances[row, COMPARED.index(finding.name)].tolist(), strict=True))
                    change, sure = _told(finding.presence, then.presence, of, least)
                found.append(replace(finding, earlier=Earlier(then.presence, then.side, then.zone, change, sure)))
            result.append(tuple(found))
        return result

    # -- what is kept ---------------------------------------------------------------------------------------------------

    def save(self, directory: Path, *, weights: str) -> Path:
        """Beside a checkpoint's weights, whose SHA-256 is `weights`: float16, the reader of changes float32."""
        path = directory / FILE
        tensors = {
            name: value.detach().cpu().to(torch.float32 if name.startswith("reader.") else torch.float16).contiguous()
            for name, value in self.state_dict().items()
        }
        save_file(tensors, path, metadata={"schema": SCHEMA, "weights_sha256": weights})
        path.chmod(0o644)  # safetensors writes for its owner's eyes only
        return path

    @classmethod
    def load(
        cls, directory: Path, width: int, hybrid: HybridDecoder, config: HybridConfig, *, weights: str
    ) -> Self | None:
        """That of a checkpoint; None where it has none, or one that belongs to other weights. Raises CheckpointError where it is damaged."""
        path = directory / FILE
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                notes = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 — not a dict
            if notes.get("schema") != SCHEMA:
                raise ValueError(f"it is {notes.get('schema')}, not {SCHEMA}")
            prior = cls(width, hybrid, config)
            prior.load_state_dict(state)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}): make it again with train.prior, or remove it."
            ) from error
        return prior if notes.get("weights_sha256") == weights else None


def fingerprint(directory: Path) -> str:
    """SHA-256 of the file, hexadecimal."""
    with (directory / FILE).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _code(name: str, earlier: Earlier) -> tuple[int, int, int, int]:
    """The name 0 is no token."""
    assert earlier.change is not None
    change = CHANGES.index(earlier.change)
    return 1 + list(NAMES).index(name), list(Presence).index(earlier.presence), SIDES.index(earlier.side), change


def _told(now: Presence, before: Presence, chances: dict[Change, float], least: float) -> tuple[Change | None, float]:
    """The change that is told, and its probability; None where none agrees with what was read, or none is sure enough."""
    if now is Presence.PRESENT:
        possible: tuple[Change, ...] = POSSIBLE[before]
    else:
        possible = (Change.RESOLVED,) if (now, before) == (Presence.ABSENT, Presence.PRESENT) else ()
    best = max(possible, key=chances.__getitem__, default=None)
    if best is None or chances[best] < least:
        return None, 0.0
    return best, chances[best]


__all__ = ["COMPARED", "FILE", "ChangeReader", "PriorFilm", "numbers"]
