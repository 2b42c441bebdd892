"""The whole model: tower, disease queries, projector, hybrid decoder and the frozen language model (docs/method.md 5, 8.1).

b studies · w views (films of one study) · l tower tokens (patches + class token) · d tower width · h language-model width · t report tokens
s findings that can be told · v visual tokens: the l projected tower tokens, and one token a finding

What a draft says of a film reaches the language model through the hybrid layers: they see the visual tokens at every position. The prompt holds
text, and visual tokens only where the settings ask for it (`prompt.tokens`), as in the published method; never a finding.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from peft import LoraConfig, LoraModel, PeftConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from emrrg_core.config import ModelConfig, Projector, PromptTokens, Section, Sections
from emrrg_core.model.associative_memory import AssociativeMemory
from emrrg_core.model.disease_queries import DiseaseQueries, LungBorders, Seen
from emrrg_core.model.finding_tokens import NAMES, Calibration, Finding, FindingTokens, codes, select_findings
from emrrg_core.model.hybrid_decoder import AttentionTrace, HybridDecoder, TokenGroup, Visual
from emrrg_core.model.other_towers import build_tower
from emrrg_core.model.partial_lora import attach
from emrrg_core.model.prior_film import PriorFilm
from emrrg_core.text.sections import has_impression

IGNORED = -100  # a label that no loss counts
PATCHES, FINDINGS, DISEASE, MEMORY, PRIOR = (
    "patches",
    "findings",
    "disease",
    "memory",
    "prior",
)  # groups of visual tokens that the hybrid layers see


@dataclass(frozen=True)
class FilmTokens:
    """What the language model may see of b studies, and what was read of them.

    patches: (b, l, h), the tower's tokens, for the hybrid layers. in_prompt: (b, l, h), those that the prompt is made of; the same unless a test
    exchanges them. finding_tokens: (b, s, h), and assessed: (b, s) bool, which of them are to be seen; None of a model without queries.
    prior_tokens, prior_read: as finding_tokens and assessed, of the prior film; None where none of these studies has one.
    impression, impression_in_prompt: as patches and in_prompt, by the Impression's projector; None where one projector serves both sections.
    disease, remembered: (b, f, h) and (b, m·f, h), disease tokens and what m associative memories answer them; None of a model without.
    findings: of each study, () of a model without queries.
    """

    patches: Tensor
    in_prompt: Tensor
    finding_tokens: Tensor | None = None
    assessed: Tensor | None = None
    prior_tokens: Tensor | None = None
    prior_read: Tensor | None = None
    disease: Tensor | None = None
    remembered: Tensor | None = None
    impression: Tensor | None = None
    impression_in_prompt: Tensor | None = None
    findings: tuple[tuple[Finding, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.patches)

    def select(self, rows: Sequence[int]) -> "FilmTokens":
        """Some of the studies, in that order."""
        index = torch.tensor(list(rows), device=self.patches.device, dtype=torch.long)
        kept = {name: None if value is None else value[index] for name, value in self._tensors().items()}
        return FilmTokens(**kept, findings=tuple(self.findings[i] for i in rows) if self.findings else ())  # type: ignore[arg-type]

    @classmethod
    def join(cls, some: Sequence["FilmTokens"]) -> "FilmTokens":
        """Several, one after the other."""
        tables = [one._tensors() for one in some]
        first = max(tables, key=lambda table: table["prior_tokens"] is not None)
        for table in tables:
            for name in ("prior_tokens", "prior_read"):
                if table[name] is None and (like := first[name]) is not None:  # no prior film: nothing to be seen
                    table[name] = like.new_zeros(len(table["patches"]), *like.shape[1:])  # type: ignore[arg-type]
        joined = {name: None if first[name] is None else torch.cat([table[name] for table in tables]) for name in first}  # type: ignore[misc]
        return cls(**joined, findings=tuple(found for one in some for found in one.findings))  # type: ignore[arg-type]

    def exchanged(
        self,
        other: "FilmTokens",
        *,
        prompt: bool = False,
        patches: bool = False,
        findings: bool = False,
        prior: bool = False,
        disease: bool = False,
        memory: bool = False,
    ) -> "FilmTokens":
        """These studies with a part of what is seen taken from others: what stands in the prompt, the patches that the hybrid layers see, the
        finding tokens, those of the prior film, the disease tokens, or what the associative memory answers. For measuring which path carries a
        draft."""
        taken = {"patches": patches, "in_prompt": prompt, "finding_tokens": findings, "assessed": findings}
        taken |= {
            "findings": findings,
            "prior_tokens": prior,
            "prior_read": prior,
            "disease": disease,
            "remembered": memory,
        }
        taken |= {"impression": patches, "impression_in_prompt": prompt}
        return replace(self, **{name: getattr(other, name) for name, wanted in taken.items() if wanted})

    def without_findings(self) -> "FilmTokens":
        """The same with no finding token to be seen."""
        return self if self.assessed is None else replace(self, assessed=torch.zeros_like(self.assessed))

    def without_memory(self) -> "FilmTokens":
        """The same with nothing remembered."""
        return replace(self, remembered=None)

    def without_prior(self) -> "FilmTokens":
        """The same as if no prior film had been given."""
        return replace(self, prior_tokens=None, prior_read=None)

    def of(self, section: Section) -> "FilmTokens":
        """As a section sees them: by its own projector where it has one."""
        if section is Section.FINDINGS or self.impression is None or self.impression_in_prompt is None:
            return self
        return replace(self, patches=self.impression, in_prompt=self.impression_in_prompt)

    def _tensors(self) -> dict[str, Tensor | None]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "findings"}


@dataclass(frozen=True)
class TowerFeatures:
    """What the tower alone makes of n films: all that the readers of findings and the projector start from.

    tokens: (n, l, d). lungs: (n, 2, m, m) logits, None of a model without queries. stem: (n, g², d), what a convolutional stem saw of every patch,
    None where no reader looks at it.
    """

    tokens: Tensor
    lungs: Tensor | None = None
    stem: Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """What `Emrrg.forward` gives: tensors all, so that a training step waits for no number.

    total: to be minimised. nll: mean over the words, unweighted. gate: mean strength over words and hybrid layers. on_findings: of a look, on finding
    tokens. attention_cost: see `attention_cost`. The last three are NaN where there are no hybrid layers, or no finding tokens.
    """

    total: Tensor
    nll: Tensor
    gate: Tensor
    on_findings: Tensor
    attention_cost: Tensor


class Emrrg(nn.Module):
    """Films in, log-probabilities of report tokens out.

    visual_encoder, llama_proj and layer_norm carry the released names (docs/method.md 1.7). The language model is frozen; with
    `config.language_lora.rank` above 0, peft's LoRA is injected into it.

    Where `config.sections` are separate there are two such LoRAs in the one language model, "findings" and "impression", and two projectors:
    llama_proj and layer_norm are the Findings', llama_proj_impression and layer_norm_impression the Impression's. All else is shared.
    """

    def __init__(self, config: ModelConfig, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        width: int = llm.config.hidden_size
        self.visual_encoder = build_tower(config.vision)
        self.llama_proj = _projector(config, width)
        self.layer_norm = nn.LayerNorm(width)
        if config.sections is Sections.SEPARATE:
            self.llama_proj_impression = _projector(config, width)
            self.layer_norm_impression = nn.LayerNorm(width)
        # after the projector: whatever is adapted, one seed gives one projector, so that designs can be compared
        attach(self.visual_encoder, config.adapters)
        llm.requires_grad_(False)
        self.hybrid = HybridDecoder(llm, config.hybrid)
        if config.queries.depth:
            # what is read is taught before the language model is (train/tower.py), and calibrated: words do not change it
            self.disease = DiseaseQueries(config.vision.d_model, config.queries).requires_grad_(False)
            self.lungs = LungBorders(config.vision).requires_grad_(False)
            self.calibration = Calibration()
            if config.queries.told:
                self.finding_tokens = FindingTokens(width)
                self.finding_tokens.start(lambda word: self._embedding_of(word, llm))
            if not config.queries.told or config.memory.visual or config.memory.report:
                self.memory = AssociativeMemory(config.vision.d_model, config.memory)
        if config.language_lora.rank:
            _inject_lora(llm, config)
        self.llm = llm
        self._section = Section.FINDINGS  # whose LoRA is in use
        self.prior: PriorFilm | None = None  # a part of its own, beside a checkpoint's weights
        # what training starts with; a model that is loaded to draft has everything frozen
        self.learns = frozenset(name for name, parameter in self.named_parameters() if parameter.requires_grad)
        self._prompts = {section: self._prompt_ids(section) for section in Section}

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.layer_norm.weight.device

    def use(self, section: Section) -> None:
        """Go on with the LoRA of a section. Nothing else changes: not the language model's weights, nor what learns; with joint sections nothing at
        all."""
        if self.config.sections is Sections.JOINT or section is self._section:
            return
        learning = [(parameter, parameter.requires_grad) for parameter in self.llm.parameters()]
        for layer in self._lora_layers():
            layer.set_adapter(section.value)  # which also decides what learns
        for parameter, learns in learning:
            parameter.requires_grad_(learns)
        self._section = section

    def _lora_layers(self) -> Iterator[LoraLayer]:
        return (module for module in self.llm.modules() if isinstance(module, LoraLayer))

    # -- what is seen -------------------------------------------------------------------------------------------------

    def encode(self, images: Tensor, views: Tensor | None = None) -> FilmTokens:
        """Each view through the tower, averaged over the views of its study (docs/method.md 5.1), into the language model's width.

        images: (b, w, 3, s, s), ImageNet-normalised. views: (b, w) bool, False where a study has no such view; None: all are there.
        Raises ValueError for a study without any view.
        """
        return self.project(self.see(images, views))

    def look(self, films: Tensor) -> TowerFeatures:
        """Films (n, 3, s, s), each through the tower once."""
        tokens, fine = self.visual_encoder.with_fine(films)
        if not self.config.queries.depth:
            return TowerFeatures(tokens)
        grid = self.config.vision.grid
        lungs = self.lungs(self.patches(tokens).transpose(1, 2).unflatten(2, (grid, grid)), fine)
        return TowerFeatures(tokens, lungs, fine.patches if fine and self.config.queries.stem else None)

    def see(
        self, images: Tensor, views: Tensor | None = None, *, look: Callable[[Tensor], TowerFeatures] | None = None
    ) -> Seen:
        """What the tower and its queries see of each study, the mean over its views. Every film goes through the tower once. As for `encode`.

        look: the tower, or what stands for it (train/kept_features.py); None: `self.look`.
        """
        b, w = images.shape[:2]
        if views is None:
            views = torch.ones(b, w, dtype=torch.bool, device=images.device)
        counts = views.sum(1)
        if not bool((counts > 0).all()):
            raise ValueError("every study needs at least one view")
        found = (look or self.look)(images[views])  # of all views
        if found.lungs is not None:
            read = self.disease(found.tokens, self.config.vision.class_position, found.stem)
            seen = Seen(tokens=found.tokens, lungs=found.lungs, **read)
        else:
            seen = Seen.of_tokens(found.tokens)
        if w == 1:
            return seen
        study = torch.arange(b, device=images.device).unsqueeze(1).expand(b, w)[views]
        return seen.by_study(study, counts)

    def project(self, seen: Seen, findings: Sequence[Sequence[Finding]] | None = None) -> FilmTokens:
        """What was seen as visual tokens in the language model's width.

        findings: of every study, what its finding tokens say; None: what is read in it, by the calibrated thresholds.
        """
        tokens = self._projected(seen.tokens)
        if not self.config.queries.depth:
            return tokens
        told = select_findings(seen, self.calibration) if findings is None else [tuple(mine) for mine in findings]
        tokens = self._telling(tokens, told)
        if self.training and self.config.queries.dropout and tokens.assessed is not None:
            shown = torch.rand(len(tokens), 1, device=tokens.patches.device) >= self.config.queries.dropout
            tokens = replace(tokens, assessed=tokens.assessed & shown)
        if not hasattr(self, "memory"):
            return tokens
        disease, remembered = (self.layer_norm(self.llama_proj(part)) for part in self.memory(seen.disease))
        return replace(tokens, disease=disease, remembered=remembered if remembered.shape[1] else None)

    def retold(self, film: FilmTokens, findings: Sequence[Sequence[Finding]]) -> FilmTokens:
        """The same studies, with finding tokens that say something else of them; as they are of a model without queries."""
        return film if film.finding_tokens is None else self._telling(film, findings)

    def _telling(self, film: FilmTokens, findings: Sequence[Sequence[Finding]]) -> FilmTokens:
        """With the tokens of what was read in the films, and in their prior films."""
        told = tuple(tuple(mine) for mine in findings)
        film = replace(film, findings=told, prior_tokens=None, prior_read=None)
        if not self.config.queries.told:
            return film
        rows = codes(told).to(film.patches.device)
        tokens = self.finding_tokens(rows).to(film.patches.dtype)
        film = replace(film, finding_tokens=tokens, assessed=rows[..., 0] > 0)
        if self.prior is None or not any(finding.change for mine in told for finding in mine):
            return film
        earlier, shown = self.prior.tokens(told)
        return replace(film, prior_tokens=earlier.to(film.patches.dtype), prior_read=shown)

    def _projected(self, tokens: Tensor) -> FilmTokens:
        """The tower's tokens (b, l, d) in the language model's width, by each projector."""
        patches = self.layer_norm(self.llama_proj(tokens))
        if self.config.sections is Sections.JOINT:
            return FilmTokens(patches, patches)
        impression = self.layer_norm_impression(self.llama_proj_impression(tokens))
        return FilmTokens(patches, patches, impression=impression, impression_in_prompt=impression)

    def compare(
        self, now: Seen, before: Seen, findings: Sequence[Sequence[Finding]] | None = None
    ) -> list[tuple[Finding, ...]]:
        """What is read in b films, and of each finding what is read in the film's prior film and how it has changed (emrrg_core.model.prior_film).

        findings: of the films, where they have been read already. Raises RuntimeError where nothing that compares has been learned.
        """
        if self.prior is None:
            raise RuntimeError("this checkpoint has not learned to read a prior film: it has no prior.safetensors")
        read = select_findings(now, self.calibration) if findings is None else findings
        return self.prior.compare(now, before, self.calibration, read, select_findings(before, self.calibration))

    def patches(self, tokens: Tensor, dim: int = 1) -> Tensor:
        """Tower tokens without the class token, along `dim`: the patches in raster order, (b, l, d) to (b, g², d)."""
        middle = self.config.vision.class_position
        return torch.cat(
            [tokens.narrow(dim, 0, middle), tokens.narrow(dim, middle + 1, tokens.shape[dim] - middle - 1)], dim
        )

    def precompute_keys_values(self, film: FilmTokens, section: Section = Section.FINDINGS) -> Visual:
        """What the hybrid layers see, for a whole draft: keys and values of the patches and of the finding tokens.

        Before anything is learned the patches as a group weigh `queries.patches` beside the finding tokens: 197 would else drown a dozen.
        """
        film = film.of(section)
        if film.finding_tokens is None and film.disease is None:
            return self.hybrid.precompute_keys_values(self.llm, TokenGroup(PATCHES, film.patches))
        groups = [TokenGroup(PATCHES, film.patches, weight=self.config.queries.patches * len(NAMES))]
        if film.finding_tokens is not None:
            groups.append(TokenGroup(FINDINGS, film.finding_tokens, film.assessed))
        more = ((DISEASE, film.disease), (MEMORY, film.remembered))
        groups += [TokenGroup(name, tokens) for name, tokens in more if tokens is not None]
        visual = self.hybrid.precompute_keys_values(self.llm, *groups)
        if film.prior_tokens is None:
            return visual
        assert self.prior is not None
        earlier = TokenGroup(PRIOR, film.prior_tokens, film.prior_read)
        return replace(visual, beside=self.prior.precompute_keys_values(self.llm, earlier))

    # -- what is read -------------------------------------------------------------------------------------------------

    def prompt(self, film: FilmTokens, section: Section = Section.FINDINGS) -> tuple[Tensor, Tensor]:
        """[BOS][before][film][after] as embeddings (b, p, h), and which positions are text (b, p) bool (docs/method.md 5.1).

        The film's part is empty, pooled, or all of the tower's tokens (`prompt.tokens`).
        """
        before, after = self._prompts[section]
        bos = [self.tokenizer.bos_token_id] if self.tokenizer.bos_token_id is not None else []
        visual = film.of(section).in_prompt
        b = visual.shape[0]
        head, tail = (  # long also where there is no text
            self.embed(torch.tensor([ids] * b, dtype=torch.long, device=visual.device))
            for ids in ([*bos, *before], after)
        )
        middle = self._prompt_tokens(visual).to(head.dtype)
        embeds = torch.cat([head, middle, tail], dim=1)
        text = torch.ones(embeds.shape[:2], dtype=torch.bool, device=visual.device)
        text[:, head.shape[1] : head.shape[1] + middle.shape[1]] = False
        return embeds, text

    def _prompt_ids(self, section: Section) -> tuple[list[int], list[int]]:
        """Of the text before and after the film."""
        texts = self.config.prompt.before, self.config.prompt.after
        if self.config.sections is Sections.SEPARATE:
            texts = texts[0].replace("{section}", section), texts[1].replace("{section}", section)
        before, after = (self.tokenizer(text, add_special_tokens=False).input_ids for text in texts)
        return before, after

    def _prompt_tokens(self, visual: Tensor) -> Tensor:
        """None of the tower's tokens (b, l, h), all, or the class token and the patches averaged on a coarse grid."""
        if self.config.prompt.tokens is PromptTokens.NONE:
            return visual[:, :0]
        if self.config.prompt.tokens is PromptTokens.ALL:
            return visual
        middle, grid = self.config.vision.class_position, self.config.vision.grid
        patches = self.patches(visual)  # (b, g², h)
        size = grid // self.config.prompt.pooled_grid
        pooled = F.avg_pool2d(patches.transpose(1, 2).unflatten(-1, (grid, grid)), size)
        return torch.cat([visual[:, middle : middle + 1], pooled.flatten(2).transpose(1, 2)], dim=1)

    def _embedding_of(self, word: str, llm: PreTrainedModel) -> Tensor:
        ids = torch.tensor(self.tokenizer(word, add_special_tokens=False).input_ids)
        return llm.get_input_embeddings()(ids).detach().float().mean(0)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (b, t) to embeddings (b, t, h)."""
        return self.llm.get_input_embeddings()(ids)

    # -- what is written ----------------------------------------------------------------------------------------------

    def log_probs(self, film: FilmTokens, reports: Tensor, *, first: int = 0, trace: list[AttentionTrace] | None = None) -> Tensor:  # fmt: skip
        """Log-probability of every report token given the film and the tokens before it; where sections are separate, under its own section's LoRA
        and projector.

        reports: (b, t) token ids, IGNORED after the end of a report. first: the tokens before it are read, but not asked about. Returns (b, t)
        float32, 0 where ignored or not asked about.
        trace: receives what each hybrid layer looked at, restricted to the positions that predict report tokens, in order.
        """
        asked = (reports != IGNORED) & (torch.arange(reports.shape[1], device=reports.device) >= first)
        return self._log_probs(film, reports, asked, trace)

    def _log_probs(
        self, film: FilmTokens, reports: Tensor, asked: Tensor, trace: list[AttentionTrace] | None
    ) -> Tensor:
        """As `log_probs`, of the tokens that are asked about: (b, t) bool. A section of which none is asked is not computed."""
        if self.config.sections is Sections.JOINT:
            return self._read_once(film, reports, asked, Section.FINDINGS, trace)
        late = self._of_impression(reports)
        scores, noted = asked.new_zeros(asked.shape, dtype=torch.float32), []
        for section, mine in ((Section.FINDINGS, asked & ~late), (Section.IMPRESSION, asked & late)):
            if bool(mine.any()):
                seen: list[AttentionTrace] | None = None if trace is None else []
                scores = scores + self._read_once(film, reports, mine, section, seen)
                noted.append(seen or [])
        if trace is not None and noted:
            trace.extend(noted[0] if len(noted) == 1 else map(lambda a, b: a.where(late, b), *noted))
        return scores

    def _of_impression(self, reports: Tensor) -> Tensor:
        """(b, t) bool: the tokens after the Impression's heading."""
        rows = [[token for token in row if token != IGNORED] for row in reports.tolist()]
        lengths = torch.tensor([self.findings_length(row) for row in rows], device=reports.device)
        return torch.arange(reports.shape[1], device=reports.device) >= lengths.unsqueeze(1)

    def findings_length(self, ids: Sequence[int]) -> int:
        """How many tokens of a text are the Findings': up to the one that ends the Impression's heading; all where there is none."""

        def headed(length: int) -> bool:
            some = list(ids[:length])
            text = self.tokenizer.decode(some, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            return has_impression(str(text))

        return min(bisect_left(range(1, len(ids) + 1), True, key=headed) + 1, len(ids))

    def _read_once(
        self, film: FilmTokens, reports: Tensor, asked: Tensor, section: Section, trace: list[AttentionTrace] | None
    ) -> Tensor:
        self.use(section)
        b, t = reports.shape
        prompt, prompt_is_text = self.prompt(film, section)
        real = reports != IGNORED
        ids = reports.masked_fill(~real, 0)
        embeds = torch.cat([prompt, self.embed(ids[:, :-1])], dim=1)  # the last token is predicted, never read
        attend = torch.cat([torch.ones_like(prompt_is_text), real[:, :-1]], dim=1)
        text = torch.cat([prompt_is_text, real[:, :-1]], dim=1)
        seen: list[AttentionTrace] | None = None if trace is None else []
        hidden = self.llm.get_decoder()(
            inputs_embeds=embeds,
            attention_mask=attend.long() if not bool(attend.all()) else None,
            visual=self.precompute_keys_values(film, section).at(text, trace=seen),
            use_cache=False,
        ).last_hidden_state[:, -t:]  # the last prompt position predicts the first token
        if trace is not None and seen is not None:
            trace.extend(layer.at(slice(-t, None)) for layer in seen)
        rows = asked.flatten().nonzero().squeeze(1)  # the vocabulary is large: no logits where nothing is asked
        logits = self.llm.get_output_embeddings()(hidden.flatten(0, 1)[rows])  # (n, vocabulary)
        nll = F.cross_entropy(logits.float(), ids.flatten()[rows], reduction="none")
        return torch.zeros(b * t, device=nll.device).index_copy(0, rows, -nll).view(b, t)

    def forward(self, film: FilmTokens, reports: Tensor, weights: Tensor | None = None, *, focus: float = 0.0) -> Loss:
        """The training loss: mean negative log-likelihood of the report tokens (b, t), IGNORED after the end of a report.

        film: from `project` or `encode`. weights: (b, t), how much each token counts, 0: not at all; None: alike. focus: how much `attention_cost`
        counts.
        """
        trace: list[AttentionTrace] = []
        real = reports != IGNORED
        if weights is not None:
            real = real & (weights > 0)  # what does not count is read, and not asked about
        scores = self._log_probs(film, reports, real, trace)
        counted = real.to(scores.dtype) if weights is None else weights * real
        total = -(scores * counted).sum() / counted.sum()
        nothing = total.detach().new_full((), float("nan"))
        gate = on_findings = cost = nothing
        if trace:
            gate = torch.stack([layer.gate.detach().abs().mean() for layer in trace]).mean()
            if FINDINGS in trace[0].attention:
                told = [layer.attention[FINDINGS].detach().sum(-1).mean() for layer in trace]
                on_findings = torch.stack(told).mean()
            if focus:
                cost = attention_cost(trace, real)
                total = total + focus * cost
        return Loss(total, -scores.detach().sum() / real.sum(), gate, on_findings, cost.detach())

    def without_lora(self) -> None:
        """The language model as it was borrowed, until this object is gone. What has been folded in stays."""
        for module in self._lora_layers():
            module.enable_adapters(False)

    def merge_lora(self) -> None:
        """Fold the language model's LoRA into its weights, for drafting: the same model but for rounding, and fewer steps a layer.

        Does nothing where sections are separate: the base is both sections'.
        """
        if self.config.sections is Sections.SEPARATE:
            return
        for layer in self._lora_layers():
            if not layer.merged:
                layer.merge()

    # -- what is kept -------------------------------------------------------------------------------------------------

    def is_own(self, name: str) -> bool:
        """Whether a state-dict key belongs to the checkpoint, not to the borrowed language model."""
        return not name.startswith(("llm.", "prior.")) or ".lora_" in name

    def own_state(self) -> dict[str, Tensor]:
        """Everything that is ours: tower, adapters, projector, hybrid layers, and the language model's LoRA."""
        return {name: value for name, value in self.state_dict().items() if self.is_own(name)}


def _projector(config: ModelConfig, width: int) -> nn.Module:
    """Tower width to the language model's."""
    if config.projector is Projector.LINEAR:
        return nn.Linear(config.vision.d_model, width)
    return nn.Sequential(nn.Linear(config.vision.d_model, width), nn.GELU(), nn.Linear(width, width))


def _inject_lora(llm: PreTrainedModel, config: ModelConfig) -> None:
    """peft's LoRA: one, or one a section. All of them learn, whichever is in use."""
    lora = config.language_lora
    first, *others = Section if config.sections is Sections.SEPARATE else ("default",)
    made: dict[str, PeftConfig] = {
        str(name): LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(lora.targets)
        )
        for name in (first, *others)
    }
    tuner = LoraModel(llm, made, str(first))
    for other in others:
        tuner.inject_adapter(llm, str(other))
    for name, parameter in llm.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def attention_cost(trace: Sequence[AttentionTrace], real: Tensor) -> Tensor:
    """How far the gates are open, and at how much at once the words look: gate × (1 + entropy of gate × attention in nats), the mean over the words
    (b, t) that are real and the hybrid layers.

    It asks for gates that open where the film is needed, and there for one thing to look at. At which, and for which word, nothing says.
    """
    looks = [layer.gate.abs()[..., None] * torch.cat([*layer.attention.values()], -1) for layer in trace]
    seen = torch.stack(looks).mean(0)[real]  # (words, v)
    gate = seen.sum(-1)
    share = seen / gate.clamp_min(1e-6)[:, None]
    entropy = -(share * share.clamp_min(1e-9).log()).sum(-1)
    return (gate * (1 + entropy)).mean()
