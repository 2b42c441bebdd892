"""Towers of other methods, as transformers builds them, with a VisionMamba's face: Swin of AM-MRG (docs/method.md 8.1), CLIP of Med-CXRGen (8.3).

b films · l tokens (patches + 1 class token, in the middle) · d width · g patches along a side

All the model asks of a tower is its tokens in the house's layout, so that queries, maps and projector serve every tower. Weights keep
transformers' names, below `net.`.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedModel, SwinConfig, SwinModel
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from emrrg_core.config import Tower, VisionConfig
from emrrg_core.errors import CheckpointError
from emrrg_core.films.film import MEAN, STD
from emrrg_core.model.vision_mamba import FineFeatures, VisionMamba

_HEAD = {Tower.SWIN: 32, Tower.CLIP: 64}  # width of an attention head, in all published sizes
_WINDOW = 7  # Swin: tokens along a side of the windows in which they see each other
_MLP = 4  # the hidden layers' width over the model's


class TransformersTower(nn.Module):
    """Images (b, 3, image, image), ImageNet-normalised, to tokens (b, l, d): patches in raster order, the class token at index g² // 2.

    swin  the tokens of the last stage after the last LayerNorm; the class token is their mean, which is what Swin's own head reads.
    clip  the tokens of the last layer but one, before any LayerNorm (LLaVA's feature layer -2), and its class token.

    The weights are random until `load_published` or a checkpoint fills them.
    """

    scale: Tensor  # (3, 1, 1)
    shift: Tensor  # (3, 1, 1)

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.net = _swin(config) if config.tower is Tower.SWIN else _clip(config)
        mean, std = (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD) if config.tower is Tower.CLIP else (MEAN, STD)
        own_mean, own_std, given_mean, given_std = (
            torch.tensor(v).float().view(3, 1, 1) for v in (mean, std, MEAN, STD)
        )
        self.register_buffer("scale", given_std / own_std, persistent=False)
        self.register_buffer("shift", (given_mean - own_mean) / own_std, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Raises ValueError for another shape."""
        size = self.config.image_size
        if image.dim() != 4 or image.shape[1:] != (3, size, size):
            raise ValueError(f"the tower takes images of shape (b, 3, {size}, {size}), not {tuple(image.shape)}")
        found = self.net(pixel_values=image * self.scale + self.shift).last_hidden_state
        if self.config.tower is Tower.CLIP:
            return self._laid_out(found[:, 1:], found[:, :1])
        return self._laid_out(found, found.mean(1, keepdim=True))

    def with_fine(self, image: Tensor) -> tuple[Tensor, FineFeatures | None]:
        """As `forward`; no finer features."""
        return self(image), None

    def lacks(self, name: str) -> bool:
        """Whether a weight that this tower does not have is of a deeper tower's layers, and not of a head, a text encoder or CLIP's last layer."""
        last = f"encoder.layers.{self.config.depth - 1}." if self.config.tower is Tower.CLIP else None
        return "encoder.layers." in name and not name.startswith("text_model.") and not (last and last in name)

    def _laid_out(self, patches: Tensor, cls: Tensor) -> Tensor:
        """Patches (b, g², d) with the class token (b, 1, d) in their middle."""
        middle = self.config.class_position
        return torch.cat([patches[:, :middle], cls, patches[:, middle:]], dim=1)


def build_tower(config: VisionConfig) -> VisionMamba | TransformersTower:
    """The tower that the settings name, with initial values."""
    return VisionMamba(config) if config.tower is Tower.MAMBA else TransformersTower(config)


def load_published(tower: TransformersTower, folder: Path | str) -> None:
    """Fill a tower from a folder as transformers saves one: a Swin or CLIP model with whatever heads, of which only the tower is taken.

    Nothing is downloaded. Raises CheckpointError when the folder holds no such tower, or one of another size.
    """
    try:
        found: Any = type(tower.net).from_pretrained(
            folder,
            config=tower.net.config,
            dtype=torch.float32,
            use_safetensors=True,  # a .bin is a pickle
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise CheckpointError(f"{folder} holds no {tower.config.tower} tower of this size: {reason}.") from error
    published, said = found  # what transformers answers where it is asked what it left out
    own = tower.net.state_dict().keys()
    missing, more = sorted(own & set(said["missing_keys"])), sorted(filter(tower.lacks, said["unexpected_keys"]))
    if missing or more:
        raise CheckpointError(
            f"{folder} holds no {tower.config.tower} tower of depth {tower.config.depth}: {len(missing)} weights missing {missing[:3]}, "
            f"{len(more)} unexpected {more[:3]}."
        )
    tower.net.load_state_dict({name: value for name, value in published.state_dict().items() if name in own})


def _swin(config: VisionConfig) -> PreTrainedModel:
    """Four stages, each twice as wide and half as fine as the one before."""
    width = config.d_model // 8
    heads = max(width // _HEAD[Tower.SWIN], 1)
    return SwinModel(
        SwinConfig(
            image_size=config.image_size,
            patch_size=config.patch_size // 8,
            embed_dim=width,
            depths=(2, 2, config.depth, 2),
            num_heads=(heads, 2 * heads, 4 * heads, 8 * heads),
            window_size=min(_WINDOW, config.grid),  # transformers cannot make it smaller than what its biases are for
            mlp_ratio=float(_MLP),
            drop_path_rate=config.drop_path,
        ),
        add_pooling_layer=False,
    )


def _clip(config: VisionConfig) -> PreTrainedModel:
    """Without its last layer and the LayerNorm after it, which nobody reads: they would be weights that never learn."""
    net = CLIPVisionModel(
        CLIPVisionConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_size=config.d_model,
            intermediate_size=_MLP * config.d_model,
            num_hidden_layers=config.depth - 1,
            num_attention_heads=max(config.d_model // _HEAD[Tower.CLIP], 1),
        )
    )
    net.post_layernorm = nn.Identity()  # type: ignore[assignment]
    return net
