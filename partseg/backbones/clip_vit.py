"""CLIP towers by open_clip: image tokens after chosen blocks, and text features of trimmed prompts.

Legend: B images, T image tokens without CLS, D text width, L tokens of the longest prompt.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from partseg.backbones.clip_layouts import HF_CLIP, OPEN_CLIP, resize_position
from partseg.text.encoder import PromptCache, clip_tokenizer, encode_prompts
from partseg.weights.load import LoadReport, load_weights

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ClipBackbone(nn.Module):
    """Image and text tower of a CLIP ViT; `name` is an open_clip model, a shipped tiny one, or a path to a JSON config.

    `pretrained` is an open_clip tag ("openai") or a file with CLIP weights; None leaves random weights, which is right
    when a checkpoint is loaded afterwards. `feature_blocks` count from zero; blocks after the last one never run.
    `spread_text` starts a random text tower so that prompts differ (`spread_text_tower`); loading replaces it.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self,
        name: str = "ViT-B-16-quickgelu",
        *,
        pretrained: str | None = None,
        feature_blocks: Sequence[int] = (3, 6, 9),
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        spread_text: bool = False,
    ) -> None:
        super().__init__()
        if spread_text and pretrained is not None:
            raise ValueError(f"spread_text is for random text towers; pretrained={pretrained!r} has its own")
        self.name = name
        self.clip = build_clip(name)
        depth = len(self.clip.visual.transformer.resblocks)
        self.feature_blocks = tuple(feature_blocks)
        if not self.feature_blocks or list(self.feature_blocks) != sorted(set(self.feature_blocks)):
            raise ValueError(f"feature_blocks must ascend without repeats, got {list(feature_blocks)}")
        if self.feature_blocks[-1] >= depth or self.feature_blocks[0] < 0:
            raise ValueError(
                f"feature_blocks {list(feature_blocks)} do not exist in {name}: it has blocks 0..{depth - 1}"
            )
        self.tokenizer = clip_tokenizer()
        if self.clip.vocab_size != self.tokenizer.vocab_size:
            raise ValueError(
                f"{name} has {self.clip.vocab_size} tokens, CLIP's tokenizer has {self.tokenizer.vocab_size}; "
                "set text_cfg.vocab_size in the model's JSON to that"
            )
        # Stored, so that every checkpoint of ours tells with which activation it was trained.
        self.register_buffer("uses_quick_gelu", torch.tensor(self.quick_gelu))
        self.register_buffer("image_mean", torch.tensor(image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(image_std).view(3, 1, 1), persistent=False)
        if pretrained is not None:
            load_clip(self, pretrained)
        if spread_text:
            spread_text_tower(self)
        self._prompts = PromptCache()

    @property
    def context_length(self) -> int:
        """Longest prompt in tokens, start and end included."""
        return int(self.clip.context_length)

    @property
    def patch_size(self) -> int:
        """Pixels along one side of a patch."""
        return int(self.clip.visual.patch_size[0])

    @property
    def image_dim(self) -> int:
        """Width of the image tower."""
        return int(self.clip.visual.conv1.out_channels)

    @property
    def text_dim(self) -> int:
        """Width of the text features (after projection)."""
        return int(self.clip.text_projection.shape[1])

    @property
    def quick_gelu(self) -> bool:
        """Whether the towers use x * sigmoid(1.702 x), as OpenAI's weights need."""
        return isinstance(self.clip.visual.transformer.resblocks[0].mlp.gelu, QuickGELU)

    def unused_parameters(self) -> frozenset[str]:
        """Names (without the backbone's own prefix) of parameters that no output depends on."""
        last = self.feature_blocks[-1]
        skipped = tuple(
            f"clip.visual.transformer.resblocks.{i}."
            for i in range(last + 1, len(self.clip.visual.transformer.resblocks))
        )
        prefixes = (*skipped, "clip.visual.ln_post.", "clip.visual.proj", "clip.logit_scale", "clip.logit_bias")
        return frozenset(name for name, _ in self.named_parameters() if name.startswith(prefixes))

    # ---- image -------------------------------------------------------------------------------------------------------
    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches; ValueError if a side is not divisible by the patch."""
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size or not height or not width:
            raise ValueError(
                f"images are {height}x{width} pixels; both sides must be multiples of the patch size {self.patch_size}"
            )
        return height // self.patch_size, width // self.patch_size

    def encode_image(self, images: Tensor) -> list[Float[Tensor, "B 1+T C"]]:
        """Tokens (CLS first) after each of `feature_blocks`, in that order; images are uint8 0..255 or float 0..1.

        Runs without autograd when no parameter it uses trains.
        """
        grid = self.grid(images)
        trains = images.requires_grad or _train(self._image_parameters())
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            x = images / 255 if images.dtype == torch.uint8 else images
            return self._image_tokens((x - self.image_mean) / self.image_std, grid)

    def _image_parameters(self) -> Iterator[nn.Parameter]:
        visual = self.clip.visual
        yield from (visual.class_embedding, visual.positional_embedding)
        for module in (visual.conv1, visual.ln_pre, *visual.transformer.resblocks[: self.feature_blocks[-1] + 1]):
            yield from module.parameters()

    def _image_tokens(self, x: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        visual = self.clip.visual
        patches = visual.conv1(x.to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        cls = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        position = resize_position(visual.positional_embedding, stored=visual.grid_size, grid=grid)
        tokens = visual.ln_pre(torch.cat([cls, patches], dim=1) + position)
        features = []
        for i, block in enumerate(visual.transformer.resblocks[: self.feature_blocks[-1] + 1]):
            tokens = _run_block(block, tokens)
            if i in self.feature_blocks:
                features.append(tokens)
        return features

    # ---- text --------------------------------------------------------------------------------------------------------
    def encode_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "N D"]:
        """Projected, not normalised features of the prompts; a frozen tower computes each distinct prompt once."""
        device = self.clip.positional_embedding.device
        weights = list(self._text_parameters())
        if _train(weights):
            return encode_prompts(self, prompts, device=device)
        return self._prompts.features(prompts, lambda new: encode_prompts(self, new, device=device), weights=weights)

    def encode_tokens(self, tokens: Int[Tensor, "N L"]) -> Float[Tensor, "N D"]:
        """Projected, not normalised features at the end token; L may be anything up to the context length."""
        with torch.set_grad_enabled(_train(self._text_parameters()) and torch.is_grad_enabled()):
            return text_features(self.clip, tokens)

    def _text_parameters(self) -> Iterator[nn.Parameter]:
        clip = self.clip
        yield from (clip.positional_embedding, clip.text_projection)
        for module in (clip.token_embedding, clip.transformer, clip.ln_final):
            yield from module.parameters()


def text_features(clip: nn.Module, tokens: Int[Tensor, "N L"]) -> Float[Tensor, "N D"]:
    """Projected, not normalised features at the end token, by the text tower of a CLIP or by that tower alone."""
    x = clip.token_embedding(tokens) + clip.positional_embedding[: tokens.shape[1]]  # type: ignore[operator,index]
    for block in clip.transformer.resblocks:  # type: ignore[union-attr]
        x = _run_block(block, x, causal=True)
    # The end token has the largest id. Only its row is needed from here on, so norm and projection see one row.
    end = clip.ln_final(x[torch.arange(x.shape[0], device=x.device), tokens.argmax(dim=1)])  # type: ignore[operator]
    return end @ clip.text_projection


@torch.no_grad()
def spread_text_tower(backbone: ClipBackbone) -> None:
    """Make the features of different prompts differ, for training on random towers.

    All prompts share their start and end token and the positions, so a random tower gives them much the same feature
    (mean cosine 0.6 among Pascal-Part-116's names, in the tiny tower), and what prompts share is what a decoder learns
    first. Here these embeddings start at zero, and the last norm's bias takes off the mean feature of random words.
    """
    clip, tokenizer = backbone.clip, backbone.tokenizer
    clip.positional_embedding.zero_()
    clip.token_embedding.weight[[tokenizer.sot_token_id, tokenizer.eot_token_id]] = 0
    words = torch.randint(tokenizer.sot_token_id, (512, 1))
    ends = [torch.full_like(words, token) for token in (tokenizer.sot_token_id, tokenizer.eot_token_id)]
    mean = backbone.encode_tokens(torch.cat([ends[0], words, ends[1]], dim=1)).mean(0)
    clip.ln_final.bias -= torch.linalg.lstsq(clip.text_projection.t(), mean[:, None]).solution[:, 0]


def load_clip(backbone: ClipBackbone, source: str, *, quick_gelu: bool | None = None) -> LoadReport:
    """`load_weights` for a backbone alone: CLIP's towers out of any file that holds them."""
    holder = nn.Module()
    holder.backbone = backbone
    holder.weight_layouts = (OPEN_CLIP, HF_CLIP)  # type: ignore[assignment]
    return load_weights(holder, source, quick_gelu=quick_gelu)


def build_clip(name: str) -> open_clip.CLIP:
    """An open_clip CLIP with random weights; ValueError if it is not a ViT with CLIP's own text tower."""
    config = dict(clip_config(name))
    if config.pop("custom_text", False):
        raise ValueError(f"{name} has a custom text tower; partseg needs CLIP's own (try {name}-quickgelu or ViT-B-16)")
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    if vision.get("timm_model_name") or not isinstance(vision.get("layers"), int) or text.get("hf_model_name"):
        raise ValueError(f"{name} is not a plain CLIP ViT; use one such as ViT-B-16, ViT-B-32 or ViT-L-14")
    clip = open_clip.CLIP(**config)
    blocks = [*clip.visual.transformer.resblocks, *clip.transformer.resblocks]
    plain = isinstance(clip.visual, VisionTransformer) and all(type(b) is ResidualAttentionBlock for b in blocks)
    if not plain or clip.text_pool_type != "argmax" or not isinstance(clip.text_projection, nn.Parameter):
        raise ValueError(f"{name} changes CLIP's blocks, pooling or projection; use a plain CLIP ViT such as ViT-B-16")
    return clip


def clip_config(name: str) -> Mapping[str, Any]:
    """The open_clip configuration called `name`: a JSON file, one shipped with partseg, or one of open_clip's."""
    shipped = resources.files("partseg.backbones") / "configs" / f"{name}.json"
    if name.endswith(".json"):
        if not Path(name).is_file():
            raise FileNotFoundError(f"no CLIP config file {name}")
        return json.loads(Path(name).read_text(encoding="utf-8"))
    if shipped.is_file():
        return json.loads(shipped.read_text(encoding="utf-8"))
    config = open_clip.get_model_config(name)
    if config is None:
        own = sorted(p.name[:-5] for p in (resources.files("partseg.backbones") / "configs").iterdir())
        vits = [m for m in open_clip.list_models() if m.startswith("ViT")]
        near = difflib.get_close_matches(name, [*own, *vits], n=3)
        hint = f" did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise KeyError(f"no CLIP model {name!r};{hint} partseg has {own}, open_clip.list_models() tells the others")
    return config


def _train(parameters: Iterable[nn.Parameter]) -> bool:
    """Does any of them train? Not by any(), which leaves the others unread: torch.compile cannot follow that."""
    return True in [p.requires_grad for p in parameters]


def _run_block(block: ResidualAttentionBlock, x: Tensor, *, causal: bool = False) -> Tensor:
    """One pre-norm block. Same in train and eval mode, unlike MultiheadAttention's own forward, and always fused."""
    x = x + block.ls_1(_attend(block.attn, block.ln_1(x), causal=causal))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _attend(attention: nn.MultiheadAttention, x: Tensor, *, causal: bool) -> Tensor:
    batch, length, width = x.shape
    packed = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = packed.view(batch, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return attention.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))
