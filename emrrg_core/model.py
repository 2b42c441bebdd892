"""The whole model: tower, projector, hybrid decoder and the frozen language model (METHOD §5).

b studies · w views (films of one study) · l tower tokens (patches + class token) · d tower width · h language-model width · t report tokens
v visual tokens: the l projected tower tokens, followed by the evidence (config.signs), which stands in the prompt only
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from emrrg_core.adapters import attach
from emrrg_core.config import ModelConfig, PromptTokens
from emrrg_core.findings import LABELS
from emrrg_core.hybrid import HybridDecoder, Look, Visual
from emrrg_core.signs import SecondReader, SignReader, Signs, width_of
from emrrg_core.stated import IN_ANY_FILM, LIMITS, Fact, FactTokens, codes, facts, vocabulary
from emrrg_core.vision import VisionMamba

IGNORED = -100  # a label that no loss counts


class Emrrg(nn.Module):
    """Films in, log-probabilities of report tokens out.

    visual_encoder, llama_proj and layer_norm carry the released names (METHOD §1.7). The language model is frozen; with
    `config.language_lora.rank` above 0, peft's LoRA is injected into it.
    """

    def __init__(self, config: ModelConfig, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        width: int = llm.config.hidden_size
        self.visual_encoder = VisionMamba(config.vision)
        self.llama_proj = nn.Linear(config.vision.d_model, width)
        self.layer_norm = nn.LayerNorm(width)
        # after the projector: whatever is adapted, one seed gives one projector, so that designs can be compared
        attach(self.visual_encoder, config.adapters)
        llm.requires_grad_(False)
        self.hybrid = HybridDecoder(llm, config.hybrid)
        if config.signs.tokens:
            self.signs = SignReader(config.vision.d_model, config.signs.appearance)
            read = config.signs.appearance if config.signs.facts else width_of(config.signs.appearance)
            self.sign_proj = nn.Linear(read, config.signs.tokens * width)
            self.sign_norm = nn.LayerNorm(width)
        self.limits: Tensor  # (len(LIMITS),): the probability from which each reading is a fact
        if config.signs.facts:
            self.facts = FactTokens(width)
            self.facts.start({word: self._embedding_of(word, llm) for word in vocabulary()})
            self.register_buffer("limits", torch.full((len(LIMITS),), 0.5))
        if config.signs.second:
            self.second = SecondReader(config.vision, config.signs.members)
        self.average_film: Tensor  # (v, h): mean visual tokens of training films, what a draft is contrasted with
        if config.contrast:
            self.register_buffer("average_film", torch.zeros(config.vision.tokens + config.signs.length, width))
        if config.language_lora.rank:
            lora = config.language_lora
            inject_adapter_in_model(
                LoraConfig(
                    r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(lora.targets)
                ),
                llm,
            )
        self.llm = llm
        # what training starts with; a model that is loaded to draft has everything frozen
        self.learns = frozenset(name for name, parameter in self.named_parameters() if parameter.requires_grad)
        self._prompt = tuple(
            tokenizer(text, add_special_tokens=False).input_ids for text in (config.prompt.before, config.prompt.after)
        )

    # -- what is seen -------------------------------------------------------------------------------------------------

    def encode(self, images: Tensor, views: Tensor | None = None) -> Tensor:
        """Each view through the tower, averaged over the views of its study (METHOD §5.1), into the language model's width.

        images: (b, w, 3, s, s), ImageNet-normalised. views: (b, w) bool, False where a study has no such view; None: all are there.
        Returns (b, v, h). Raises ValueError for a study without any view.
        """
        return self.project(self.see(images, views))

    def see(self, images: Tensor, views: Tensor | None = None, *, alone: bool = False) -> Tensor:
        """As `encode`, but in the tower's own width: (b, l, d), followed by what a second reader has seen, where there is one (b, 2 · members, d),
        and by the patches of the mirrored film, put back, where they are asked for (b, g², d).

        alone: the tower's tokens only, for who asks for `patches`.
        """
        b, w = images.shape[:2]
        if views is None:
            views = torch.ones(b, w, dtype=torch.bool, device=images.device)
        counts = views.sum(1)
        if not bool((counts > 0).all()):
            raise ValueError("every study needs at least one view")
        tokens = self.visual_encoder(images[views])  # (views in all, l, d)
        if self.config.signs.second and not alone:
            tokens = torch.cat([tokens, self.second(images[views]).to(tokens.dtype)], dim=1)
        if self.config.signs.mirrored and not alone:
            other = self.patches(self.visual_encoder(images[views].flip(-1)))
            grid = self.config.vision.grid
            back = other.unflatten(1, (grid, grid)).flip(2).flatten(1, 2)  # every patch where it is in the film itself
            tokens = torch.cat([tokens, back.to(tokens.dtype)], dim=1)
        study = torch.arange(b, device=images.device).unsqueeze(1).expand(b, w)[views]
        total = tokens.new_zeros(b, *tokens.shape[1:]).index_add(0, study, tokens)
        return total / counts[:, None, None]

    def project(self, tokens: Tensor, stated: Tensor | None = None) -> Tensor:
        """What `see` gave to visual tokens in the language model's width (b, v, h).

        stated: codes of facts (b, n, 3), see emrrg_core.stated; None: those that the readings amount to. Of a model without facts, none.
        """
        visual = self.layer_norm(self.llama_proj(tokens[:, : self.config.vision.tokens]))
        config = self.config.signs
        if not config.tokens:
            return visual
        signs = self.read_signs(tokens)
        vector = signs.appearance.sigmoid() if config.facts else signs.vector()
        evidence = self.sign_norm(self.sign_proj(2 * vector - 1).unflatten(1, (config.tokens, -1)))
        if config.facts:
            if stated is None:
                stated = codes(facts(signs, self.limits, config.facts), config.facts).to(tokens.device)
            evidence = torch.cat([evidence, self.facts(stated).to(evidence.dtype)], dim=1)
        if self.training and config.dropout:
            kept = torch.rand(len(evidence), 1, 1, device=evidence.device) >= config.dropout
            evidence = evidence * kept
        return torch.cat([visual, evidence.to(visual.dtype)], dim=1)

    def patches(self, tokens: Tensor) -> Tensor:
        """The tower's patches, in raster order, of what `see` gave: (b, g², d)."""
        middle = self.config.vision.class_position
        return torch.cat([tokens[:, :middle], tokens[:, middle + 1 : self.config.vision.tokens]], dim=1)

    def read_signs(self, tokens: Tensor) -> Signs:
        """What the readers say of what `see` gave. Raises ValueError when the model has none (config.signs.tokens 0).

        A second reader reads the labels, but for those that are drawn (IN_ANY_FILM), which it was not taught.
        """
        if not self.config.signs.tokens:
            raise ValueError("this model has no readers of signs")
        config = self.config.signs
        signs: Signs = self.signs(self.patches(tokens))
        rest = tokens[:, self.config.vision.tokens :]
        if config.second:
            seen = SecondReader.TOKENS * config.members
            labels = self.second.read(rest[:, :seen])
            drawn = torch.tensor([label in IN_ANY_FILM for label in LABELS], device=labels.device)
            signs = replace(signs, labels=torch.where(drawn, signs.labels, labels.to(signs.labels.dtype)))
            rest = rest[:, seen:]
        if config.mirrored:
            places = self.signs(rest).places
            # what looks like the right lung in the mirror is the left one
            signs = replace(signs, places_mirrored=torch.cat([places[..., [1, 0]], places[..., 2:]], dim=-1))
        return signs

    def read_facts(self, tokens: Tensor) -> list[tuple[Fact, ...]] | None:
        """What the readings of what `see` gave amount to, and drafts of these films are to state; None for a model without facts."""
        most = self.config.signs.facts
        return [tuple(mine) for mine in facts(self.read_signs(tokens), self.limits, most)] if most else None

    def look_at(self, visual: Tensor) -> Visual:
        """What the hybrid layers see of the visual tokens (b, v, h), for a whole draft: the tower's, not the evidence."""
        return self.hybrid.look_at(self.llm, visual[:, : self.config.vision.tokens].to(self.llm.dtype))

    # -- what is read -------------------------------------------------------------------------------------------------

    def prompt(self, visual: Tensor) -> tuple[Tensor, Tensor]:
        """[BOS][before][visual][after] as embeddings (b, p, h), and which positions are text (b, p) bool (METHOD §5.1)."""
        before, after = self._prompt
        bos = [self.tokenizer.bos_token_id] if self.tokenizer.bos_token_id is not None else []
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

    def _prompt_tokens(self, visual: Tensor) -> Tensor:
        """All visual tokens, or the class token, the patches averaged on a coarse grid, and the evidence."""
        if self.config.prompt.tokens is PromptTokens.ALL:
            return visual
        middle, grid = self.config.vision.class_position, self.config.vision.grid
        cls = visual[:, middle : middle + 1]
        patches = torch.cat([visual[:, :middle], visual[:, middle + 1 : grid * grid + 1]], dim=1)  # (b, g², h)
        size = grid // self.config.prompt.pooled_grid
        pooled = F.avg_pool2d(patches.transpose(1, 2).unflatten(-1, (grid, grid)), size)
        return torch.cat([cls, pooled.flatten(2).transpose(1, 2), visual[:, grid * grid + 1 :]], dim=1)

    def _embedding_of(self, word: str, llm: PreTrainedModel) -> Tensor:
        ids = torch.tensor(self.tokenizer(word, add_special_tokens=False).input_ids)
        return llm.get_input_embeddings()(ids).detach().float().mean(0)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (b, t) to embeddings (b, t, h)."""
        return self.llm.get_input_embeddings()(ids)

    # -- what is written ----------------------------------------------------------------------------------------------

    def log_probs(self, visual: Tensor, reports: Tensor, *, looks: list[Look] | None = None) -> Tensor:
        """Log-probability of every report token given the film and the tokens before it.

        visual: (b, v, h). reports: (b, t) token ids, IGNORED after the end of a report. Returns (b, t) float32, 0 where ignored.
        looks: receives what each hybrid layer looked at, restricted to the positions that predict report tokens, in order.
        """
        b, t = reports.shape
        prompt, prompt_is_text = self.prompt(visual)
        real = reports != IGNORED
        ids = reports.masked_fill(~real, 0)
        embeds = torch.cat([prompt, self.embed(ids[:, :-1])], dim=1)  # the last token is predicted, never read
        attend = torch.cat([torch.ones_like(prompt_is_text), real[:, :-1]], dim=1)
        text = torch.cat([prompt_is_text, real[:, :-1]], dim=1)
        seen: list[Look] | None = None if looks is None else []
        hidden = self.llm.get_decoder()(
            inputs_embeds=embeds,
            attention_mask=attend.long() if not bool(attend.all()) else None,
            visual=self.look_at(visual).at(text, looks=seen),
            use_cache=False,
        ).last_hidden_state[:, -t:]  # the last prompt position predicts the first token
        if looks is not None and seen is not None:
            looks.extend(Look(s.layer, s.gate[:, -t:], s.attention[:, -t:]) for s in seen)
        rows = real.flatten().nonzero().squeeze(1)  # the vocabulary is large: no logits where nothing is asked
        logits = self.llm.get_output_embeddings()(hidden.flatten(0, 1)[rows])  # (n, vocabulary)
        nll = F.cross_entropy(logits.float(), ids.flatten()[rows], reduction="none")
        return torch.zeros(b * t, device=nll.device).index_copy(0, rows, -nll).view(b, t)

    def forward(self, images: Tensor, views: Tensor | None, reports: Tensor, weights: Tensor | None = None) -> Tensor:
        """The training loss: mean negative log-likelihood of the report tokens, weighted where `weights` (b, t) is given."""
        scores = self.log_probs(self.encode(images, views), reports)
        weight = (reports != IGNORED).to(scores.dtype)
        if weights is not None:
            weight = weight * weights
        return -(scores * weight).sum() / weight.sum()

    # -- what is kept -------------------------------------------------------------------------------------------------

    def is_own(self, name: str) -> bool:
        """Whether a state-dict key belongs to the checkpoint, not to the borrowed language model."""
        return not name.startswith("llm.") or ".lora_" in name

    def own_state(self) -> dict[str, Tensor]:
        """Everything that is ours: tower, adapters, projector, hybrid layers, and the language model's LoRA."""
        return {name: value for name, value in self.state_dict().items() if self.is_own(name)}
