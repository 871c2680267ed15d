"""The vision encoder: any transformers vision model, cut behind the layer whose features are used."""

import copy

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, PretrainedConfig, PreTrainedModel

from tinyvlm_cli.config import Tokens, Vision
from tinyvlm_cli.data.images import normalisation_table
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.pretrained import config_from_architecture, load, read_config


class VisionEncoder(nn.Module):
    """Pixels -> patch features of one layer, without the encoder's final norm, as LLaVA takes them.

    Layers behind the feature layer, the final norm and the pooling head are not kept.
    B images, S pixels an edge, N patches, D width.
    """

    table: Tensor  # [3, 256] pixel value -> normalised value
    channel: Tensor  # [1, 3, 1, 1] 0, 1, 2

    def __init__(self, model: PreTrainedModel, spec: Vision) -> None:
        super().__init__()
        for name in spec.unused:
            setattr(model, name, nn.Identity())
        self.model = model
        self.dim: int = model.config.hidden_size
        self.drop = 1 if spec.tokens is Tokens.drop_first else 0
        self.num_patches = (spec.image_size // model.config.patch_size) ** 2
        table = torch.from_numpy(normalisation_table(spec.mean, spec.std))
        self.register_buffer("table", table, persistent=False)
        self.register_buffer("channel", torch.arange(3)[None, :, None, None], persistent=False)

    @property
    def layers(self) -> nn.ModuleList:
        """The encoder's layers, first to last."""
        depth = self.model.config.num_hidden_layers
        stacks = [m for m in self.model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
        assert stacks, "a vision model keeps its layers in a ModuleList"
        return stacks[0]

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: [B, 3, S, S] uint8 -> [B, N, D]"""
        values = self.table[self.channel, pixels.long()].to(self.model.dtype)
        features: Tensor = self.model(pixel_values=values).last_hidden_state
        return features[:, self.drop :]


def vision_config(spec: Vision, *, planned: bool) -> PretrainedConfig:
    """The encoder's transformers configuration, cut to the layers that are needed.

    planned: take `architecture` where the YAML has one, so that no file is needed.
    """
    if planned and spec.architecture:
        config = config_from_architecture(spec.architecture)
    else:
        config = read_config(spec.path, where="vision.path")
    config = copy.deepcopy(
        getattr(config, "vision_config", config)
    )  # CLIP and SigLIP checkpoints hold a text model too
    depth = config.num_hidden_layers
    layer = spec.feature_layer if spec.feature_layer >= 0 else depth + 1 + spec.feature_layer
    if not 1 <= layer <= depth:
        raise UserError(
            f"vision.feature_layer: {spec.feature_layer} is not a layer of {spec.path}, which has {depth}; "
            f"choose from 1..{depth} or -{depth}..-1"
        )
    config.num_hidden_layers = layer
    return config


def load_vision(spec: Vision, *, dtype: torch.dtype, state: dict[str, Tensor] | None = None) -> VisionEncoder:
    """The encoder with its published weights, or with `state`, the weights a stage saved."""
    if state is not None:
        encoder = blank_vision(spec, dtype=dtype)
        encoder.load_state_dict(state)
        return encoder
    config = vision_config(spec, planned=False)
    model_class = MODEL_MAPPING[type(config)]
    model = load(model_class, config, path=spec.path, state=None, dtype=dtype, attention="sdpa", where="vision.path")
    return VisionEncoder(model, spec)


def blank_vision(spec: Vision, *, dtype: torch.dtype = torch.float32, planned: bool = False) -> VisionEncoder:
    """The encoder without its weights: for counting on the meta device, for tests and for saved states."""
    config = vision_config(spec, planned=planned)
    model = MODEL_MAPPING[type(config)]._from_config(config, dtype=dtype, attn_implementation="sdpa")
    return VisionEncoder(model, spec)
