"""The vision encoder: any transformers vision model, cut behind the layer whose features are used."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, PretrainedConfig, PreTrainedModel

from tinyvlm_cli.config.schema import SecondEncoder, Tokens, Vision
from tinyvlm_cli.data.images import normalisation_table
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.connectors import interleave
from tinyvlm_cli.model.pretrained import config_from_architecture, load, read_config


class VisionEncoder(nn.Module):
    """Pixels -> patch features of one layer, without the encoder's final norm, as LLaVA takes them.

    Layers behind the feature layer, the final norm and the pooling head are not kept.
    B images, S pixels an edge, N patches, D width.
    """

    table: Tensor  # [3, 256] pixel value -> normalised value
    channel: Tensor  # [1, 3, 1, 1] 0, 1, 2

    def __init__(self, model: PreTrainedModel, spec: Vision, second: PreTrainedModel | None = None) -> None:
        super().__init__()
        self.model = _without(model, spec.unused)
        self.second = _without(second, spec.second.unused) if second is not None and spec.second else None
        self.dim: int = model.config.hidden_size
        self.drop = 1 if spec.tokens is Tokens.drop_first else 0
        self.num_patches = (spec.image_size // model.config.patch_size) ** 2 + _extra_tokens(model) - self.drop
        if self.second is not None:
            _check_alike(spec, model, self.second)
            self.num_patches *= 2
        table = torch.from_numpy(normalisation_table(spec.mean, spec.std))
        self.register_buffer("table", table, persistent=False)
        self.register_buffer("channel", torch.arange(3)[None, :, None, None], persistent=False)

    @property
    def models(self) -> list[PreTrainedModel]:
        """The encoder, or both of two."""
        return [self.model] if self.second is None else [self.model, self.second]

    @property
    def stacks(self) -> list[nn.ModuleList]:
        """Each encoder's layers, first to last."""
        return [layers_of(model) for model in self.models]

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: [B, 3, S, S] uint8 -> [B, N, D]; of two encoders [B, 2N, D], their tokens in turn"""
        values = self.table[self.channel, pixels.long()].to(self.model.dtype)
        features = [model(pixel_values=values).last_hidden_state[:, self.drop :] for model in self.models]
        return features[0] if len(features) == 1 else interleave(*features)


def _without(model: PreTrainedModel, unused: Iterable[str]) -> PreTrainedModel:
    for name in unused:
        setattr(model, name, nn.Identity())
    return model


def _extra_tokens(model: PreTrainedModel) -> int:
    """Class and register tokens before the patches."""
    sizes = {name.rpartition(".")[2]: parameter.shape for name, parameter in model.named_parameters()}
    has_class = any(name in sizes for name in ("class_embedding", "cls_token"))
    return has_class + (sizes["register_tokens"][1] if "register_tokens" in sizes else 0)


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """A transformers model's layers, first to last."""
    depth = model.config.num_hidden_layers
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    assert stacks, "a model keeps its layers in a ModuleList"
    return stacks[0]


def _check_alike(spec: Vision, first: PreTrainedModel, second: PreTrainedModel) -> None:
    """Two encoders whose tokens alternate have as many of them, as wide."""
    shapes = [(model.config.hidden_size, spec.image_size // model.config.patch_size) for model in (first, second)]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"vision.second: its features are {shapes[1][0]} wide on {shapes[1][1]} x {shapes[1][1]} patches, the "
            f"first encoder's {shapes[0][0]} on {shapes[0][1]} x {shapes[0][1]}; choose encoders that agree"
        )


def vision_config(spec: Vision | SecondEncoder, feature_layer: int, *, planned: bool) -> PretrainedConfig:
    """An encoder's transformers configuration, cut to the layers that are needed.

    planned: take `architecture` where the YAML has one, so that no file is needed.
    """
    if planned and spec.architecture:
        config = config_from_architecture(spec.architecture)
    else:
        config = read_config(spec.path, where="vision.path")
    # CLIP and SigLIP checkpoints hold a text model too.
    return cut_config(getattr(config, "vision_config", config), feature_layer, spec.path)


def cut_config(config: PretrainedConfig, feature_layer: int, path: str) -> PretrainedConfig:
    """The configuration of an encoder that ends with the feature layer."""
    cut: PretrainedConfig = copy.deepcopy(config)
    depth = cut.num_hidden_layers
    layer = feature_layer if feature_layer >= 0 else depth + 1 + feature_layer
    if not 1 <= layer <= depth:
        raise UserError(
            f"vision.feature_layer: {feature_layer} is not a layer of {path}, which has {depth}; "
            f"choose from 1..{depth} or -{depth}..-1"
        )
    cut.num_hidden_layers = layer
    return cut


def load_vision(
    spec: Vision, *, dtype: torch.dtype, state: dict[str, Tensor] | None = None, four_bit: bool = False
) -> VisionEncoder:
    """The encoder with its published weights, or with `state`, the weights a stage saved."""
    if state is not None and four_bit:
        raise UserError("train.vision: qlora is for published weights; an earlier stage trained this encoder, use lora")
    if state is not None:
        encoder = blank_vision(spec, dtype=dtype)
        encoder.load_state_dict(state)
        return encoder

    def published(one: Vision | SecondEncoder) -> PreTrainedModel:
        config = vision_config(one, spec.feature_layer, planned=False)
        kind = MODEL_MAPPING[type(config)]
        return load(
            kind,
            config,
            path=one.path,
            state=None,
            dtype=dtype,
            attention="sdpa",
            where="vision.path",
            four_bit=four_bit,
        )

    return VisionEncoder(published(spec), spec, published(spec.second) if spec.second else None)


def blank_vision(spec: Vision, *, dtype: torch.dtype = torch.float32, planned: bool = False) -> VisionEncoder:
    """The encoder without its weights: for counting on the meta device, for tests and for saved states."""

    def blank(one: Vision | SecondEncoder) -> PreTrainedModel:
        config = vision_config(one, spec.feature_layer, planned=planned)
        model: PreTrainedModel = MODEL_MAPPING[type(config)]._from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
        return model

    return VisionEncoder(blank(spec), spec, blank(spec.second) if spec.second else None)
