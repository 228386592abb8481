"""data2vec 2.0 encoders for transformers, in one file that needs torch and transformers only.

Every exported folder carries a copy, so that ``AutoModel.from_pretrained(FOLDER, trust_remote_code=True)`` works
where data2vec-scale is not installed. The tensors keep the names and layouts of data2vec-scale's own model, so
nothing is converted and outputs are equal to the last bit in fp32:

    frontends.MODALITY.*     raw input -> tokens: patches, positions, extra tokens, input norm, the modality's blocks
    encoder.blocks.{i}.*     the blocks that all modalities share
    *.attention.qkv          rows per head: the head's queries, its keys, its values; then the next head

A new modality is a frontend class, its fields in the configuration, and a line in ``FRONTENDS``.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


class Data2Vec2Config(PretrainedConfig):
    """What the encoder of one modality is made of."""

    model_type = "data2vec2"

    def __init__(
        self,
        modality: str = "image",
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_prenet_layers: int = 2,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        layer_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        num_extra_tokens: int = 1,
        alibi: dict[str, Any] | None = None,
        image_size: int = 224,
        patch_size: int = 16,
        num_channels: int = 3,
        **kwargs: Any,
    ) -> None:
        """Defaults are those of the base image model.

        Args:
            modality: whose frontend the encoder has.
            num_hidden_layers: blocks in all, those of the frontend included.
            num_prenet_layers: how many of them belong to the frontend.
            num_extra_tokens: learned tokens before the input's own; the last one is the CLS token.
            alibi: None, or ``distance`` (manhattan or euclidean), ``per_head`` and ``per_layer`` of a distance bias.
            image_size, patch_size, num_channels: of square images.
        """
        self.modality = modality
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_prenet_layers = num_prenet_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.num_extra_tokens = num_extra_tokens
        self.alibi = alibi
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_channels = num_channels
        super().__init__(**kwargs)


class Attention(nn.Module):
    """Multi-head self-attention with an additive bias."""

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Tokens (B, T, D) and bias, None or broadcastable to (B, H, T, T) -> (B, T, D)."""
        per_head = self.qkv(x).unflatten(-1, (self.num_heads, 3, -1))  # (B, T, H, 3, D / H)
        query, key, value = (part.transpose(1, 2) for part in per_head.unbind(3))
        if bias is not None:
            bias = bias.to(query.dtype)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.output(attended.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linears around an exact GELU."""

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, T, D) -> (B, T, D)."""
        return self.down(functional.gelu(self.up(x)))


class Block(nn.Module):
    """Post-LN transformer block."""

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = Mlp(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Tokens (B, T, D) -> (B, T, D)."""
        x = self.norm1(x + self.attention(x, bias))
        return self.norm2(x + self.mlp(x))


class ImageFrontend(nn.Module):
    """Square images -> normalised tokens, extra tokens first; and the blocks that only images pass."""

    positions: Tensor

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__()
        self.grid_size = config.image_size // config.patch_size
        self.num_heads = config.num_attention_heads
        self.num_layers = config.num_hidden_layers
        self.num_extra_tokens = config.num_extra_tokens
        self.alibi = config.alibi
        size = config.patch_size
        self.local = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=size, stride=size)
        self.register_buffer("positions", sincos_positions(self.grid_size, config.hidden_size))
        if config.num_extra_tokens:
            self.extra_tokens = nn.Parameter(torch.zeros(1, config.num_extra_tokens, config.hidden_size))
        if config.alibi:
            layers = config.num_hidden_layers if config.alibi["per_layer"] else 1
            heads = config.num_attention_heads if config.alibi["per_head"] else 1
            self.alibi_scale = nn.Parameter(torch.ones(layers, 1, heads, 1, 1))
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_prenet_layers))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Images (B, C, H, W) -> tokens (B, extra + T, D), before the frontend's own blocks."""
        side = self.grid_size * self.local.kernel_size[0]
        if pixel_values.shape[1:] != (self.local.in_channels, side, side):
            expected = f"(batch, {self.local.in_channels}, {side}, {side})"
            raise ValueError(f"pixel_values: expected {expected}, got {tuple(pixel_values.shape)}")
        x = self.local(pixel_values).flatten(2).transpose(1, 2)
        x = x + self.positions.to(x.dtype)  # transformers keeps buffers in fp32
        if self.num_extra_tokens:
            x = torch.cat([self.extra_tokens.expand(len(x), -1, -1), x], dim=1)
        return self.norm(x)

    def biases(self) -> list[Tensor | None]:
        """Attention bias of every block, the frontend's first: None, or (1, H, extra + T, extra + T) fp32."""
        if not self.alibi:
            return [None] * self.num_layers
        slopes = torch.tensor(alibi_slopes(self.num_heads)).view(-1, 1, 1)
        distances = -slopes * grid_distances(self.grid_size, self.alibi["distance"])
        # Extra tokens are at no distance from anything.
        distances = functional.pad(distances, (self.num_extra_tokens, 0, self.num_extra_tokens, 0))
        scaled = [distances.to(scale.device) * scale for scale in self.alibi_scale.float().clamp(min=0)]
        return scaled if self.alibi["per_layer"] else scaled * self.num_layers


FRONTENDS = {"image": ImageFrontend}


class Encoder(nn.Module):
    """The blocks that all modalities share."""

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__()
        num_shared = config.num_hidden_layers - config.num_prenet_layers
        self.blocks = nn.ModuleList(Block(config) for _ in range(num_shared))


class Data2Vec2PreTrainedModel(PreTrainedModel):
    """What all heads have in common: configuration, initialisation."""

    config_class = Data2Vec2Config
    base_model_prefix = "data2vec2"
    main_input_name = "pixel_values"
    _no_split_modules: ClassVar[list[str]] = ["Block"]
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, ImageFrontend):
            module.positions.copy_(sincos_positions(module.grid_size, self.config.hidden_size))
            if module.num_extra_tokens:
                nn.init.normal_(module.extra_tokens)
            if module.alibi:
                nn.init.ones_(module.alibi_scale)


class Data2Vec2Model(Data2Vec2PreTrainedModel):
    """The bare encoder: last hidden state with the extra tokens first, no masking, no decoder."""

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__(config)
        self.frontends = nn.ModuleDict({config.modality: FRONTENDS[config.modality](config)})
        self.encoder = Encoder(config)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, return_dict: bool | None = None
    ) -> BaseModelOutputWithPooling | tuple[Tensor, ...]:
        """Encode images.

        Args:
            pixel_values: (B, C, H, W), normalised as preprocessor_config.json says.
            output_hidden_states: also return the input of the first block and the output of every block.
            return_dict: False returns a plain tuple.
        Returns:
            ``last_hidden_state`` (B, extra + T, D), extra tokens first, then the patches row by row;
            ``pooler_output`` (B, D), the mean over the patches; ``hidden_states`` if asked for.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict
        frontend = self.frontends[self.config.modality]
        assert isinstance(frontend, ImageFrontend)
        x = frontend(pixel_values.to(self.dtype))
        states = [x]
        for block, bias in zip([*frontend.blocks, *self.encoder.blocks], frontend.biases(), strict=True):
            x = block(x, bias)
            states.append(x)
        output = BaseModelOutputWithPooling(
            last_hidden_state=x,
            pooler_output=x[:, self.config.num_extra_tokens :].mean(dim=1),
            hidden_states=tuple(states) if output_hidden_states else None,
        )
        return output if return_dict else output.to_tuple()


def sincos_positions(grid_size: int, dim: int) -> Tensor:
    """Fixed positions (1, T, D): first half of the channels for the column, second for the row; sines, then cosines."""
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = torch.arange(grid_size, dtype=torch.float64).unsqueeze(1) * frequencies
    table = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns, rows = table.expand(grid_size, -1, -1), table.unsqueeze(1).expand(-1, grid_size, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1).unsqueeze(0).float()


def grid_distances(grid_size: int, kind: str) -> Tensor:
    """Distance between all pairs of patches, (T, T): ``manhattan`` or ``euclidean``."""
    cells = torch.arange(grid_size**2)
    rows, columns = cells // grid_size, cells % grid_size
    vertical, horizontal = rows[:, None] - rows, columns[:, None] - columns
    if kind == "manhattan":
        return (vertical.abs() + horizontal.abs()).float()
    return (vertical.square() + horizontal.square()).float().sqrt()


def alibi_slopes(num_heads: int) -> list[float]:
    """Slope of every head: geometric for a power of two, else filled up from the next power's (Press et al.)."""
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    if power < num_heads:
        slopes += alibi_slopes(2 * power)[0::2][: num_heads - power]
    return slopes
