"""The vision encoder: any transformers vision model, truncated after the layer whose features are used."""

import copy
from difflib import get_close_matches

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, PretrainedConfig, PreTrainedModel

from tinyvlm_cli.config.schema import SecondEncoder, Tokens, Vision
from tinyvlm_cli.data.images import normalisation_table
from tinyvlm_cli.errors import UserError, raise_findings
from tinyvlm_cli.model.pretrained import load, load_whole, part_config


class VisionEncoder(nn.Module):
    """Maps pixels to the patch features of one layer, without the encoder's final norm, as in LLaVA.

    Layers after the feature layer, the final norm and the pooling head are removed. A second encoder sees the same
    pixels, and the features of the two encoders alternate.

    Shapes: B images, S pixels per image edge, N patches of all encoders together, D feature dimension.
    """

    table: Tensor  # [3, 256] normalised value for each pixel value
    channel: Tensor  # [1, 3, 1, 1] 0, 1, 2

    def __init__(self, model: PreTrainedModel, spec: Vision, second: PreTrainedModel | None = None) -> None:
        super().__init__()
        findings = [
            f"vision.{name}: found {len(values)} values; use three, for red, green and blue"
            for name, values in (("mean", spec.mean), ("std", spec.std))
            if len(values) != 3
        ]
        findings += remove_modules(model, spec.unused, setting="vision.unused")
        if second is not None and spec.second is not None:
            findings += remove_modules(second, spec.second.unused, setting="vision.second.unused")
            width, other = model.config.hidden_size, second.config.hidden_size
            edge, others = (spec.image_size // one.config.patch_size for one in (model, second))
            if (width, edge) != (other, others):
                findings.append(
                    f"vision.second: found {others} x {others} patches of dimension {other}, but the first encoder has "
                    f"{edge} x {edge} of dimension {width}; choose encoders with equal sizes"
                )
        raise_findings(findings)
        self.model = model
        self.second = second
        self.dim: int = model.config.hidden_size
        self.drop = 1 if spec.tokens is Tokens.drop_first else 0  # number of leading positions to drop
        # Class and register tokens precede the patches.
        sizes = {name.rpartition(".")[2]: parameter.shape for name, parameter in model.named_parameters()}
        extra = int("class_embedding" in sizes or "cls_token" in sizes)
        extra += sizes["register_tokens"][1] if "register_tokens" in sizes else 0
        self.num_patches = ((spec.image_size // model.config.patch_size) ** 2 + extra - self.drop) * len(self.models)
        table = torch.tensor(normalisation_table(spec.mean, spec.std))  # from_numpy would ignore the meta device
        self.register_buffer("table", table, persistent=False)
        self.register_buffer("channel", torch.arange(3)[None, :, None, None], persistent=False)

    @property
    def models(self) -> list[PreTrainedModel]:
        """The encoder, or both encoders, in order."""
        return [self.model] if self.second is None else [self.model, self.second]

    def first_layer(self, spec: Vision) -> "VisionEncoder":
        """Return an encoder of the same class and sizes with one layer and random weights. spec: its settings."""
        models = [
            type(model)._from_config(cut_config(model.config, 1, spec.path), dtype=model.dtype) for model in self.models
        ]
        return VisionEncoder(models[0], spec, *models[1:])

    def forward(self, pixels: Tensor) -> Tensor:
        """Return [B, N, D] features of [B, 3, S, S] uint8 pixels. The features of two encoders alternate."""
        values = self.table[self.channel, pixels.long()].to(self.model.dtype)
        features = [model(pixel_values=values).last_hidden_state[:, self.drop :] for model in self.models]
        return features[0] if len(features) == 1 else torch.stack(features, dim=2).flatten(1, 2)


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """Return the layers of a transformers model, in order."""
    depth = model.config.num_hidden_layers
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    assert stacks, "expected the layers in a ModuleList"
    return stacks[0]


def remove_modules(model: PreTrainedModel, names: list[str], *, setting: str) -> list[str]:
    """Replace modules after an encoder's last layer (a final norm or a pooling head) with the identity.

    Returns an error message for any other name, which would silently change the features or have no effect.
    """
    layers, removable = layers_of(model), []
    place = next(name for name, module in model.named_modules() if module is layers)
    for level, part in enumerate(place.split(".")):  # at each level, the modules after the one with the layers
        prefix = place.split(".")[:level]
        siblings = [name for name, _ in model.get_submodule(".".join(prefix)).named_children()]
        removable += [".".join([*prefix, name]) for name in siblings[siblings.index(part) + 1 :]]
    findings = []
    for name in names:
        if name in removable:
            model.set_submodule(name, nn.Identity())
            continue
        near = get_close_matches(name, removable, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose from {removable}"
        kind = type(model).__name__
        findings.append(f"{setting}: '{name}' is not a module after the last layer of {kind}; {hint}")
    return findings


def vision_config(spec: Vision | SecondEncoder, feature_layer: int, *, planned: bool) -> PretrainedConfig:
    """Return an encoder's transformers configuration, truncated to the layers in use. planned: see `part_config`."""
    where = "vision.path" if isinstance(spec, Vision) else "vision.second.path"
    config = part_config(spec, where=where, planned=planned)
    # CLIP and SigLIP checkpoints also contain a text model.
    return cut_config(getattr(config, "vision_config", config), feature_layer, spec.path)


def cut_config(config: PretrainedConfig, feature_layer: int, path: str) -> PretrainedConfig:
    """Return the configuration of an encoder that ends with the feature layer.

    feature_layer: index into the hidden states as in transformers: 0 is the embeddings, -1 the last layer.
    """
    cut: PretrainedConfig = copy.deepcopy(config)
    if type(cut) not in MODEL_MAPPING or not hasattr(cut, "num_hidden_layers") or not hasattr(cut, "patch_size"):
        raise UserError(
            f"vision.path: {path} has model type '{cut.model_type}', which is not a vision transformer; "
            "choose an encoder such as CLIP, SigLIP or DINOv2"
        )
    depth = cut.num_hidden_layers
    layer = feature_layer if feature_layer >= 0 else depth + 1 + feature_layer
    if not 1 <= layer <= depth:
        raise UserError(
            f"vision.feature_layer: {feature_layer} does not exist in {path}, which has {depth} layers; "
            f"choose from 1 to {depth} or -{depth} to -1"
        )
    cut.num_hidden_layers = layer
    return cut


def load_vision(
    spec: Vision, *, dtype: torch.dtype, state: dict[str, Tensor] | None = None, four_bit: bool = False
) -> VisionEncoder:
    """Load the encoder with its published weights, or with `state`, the weights saved by a stage."""
    if state is not None and four_bit:
        raise UserError("train.vision: qlora does not support an encoder trained by an earlier stage; use lora")
    if state is not None:
        encoder = blank_vision(spec, dtype=dtype)
        load_whole(encoder, state, where="vision")
        return encoder
    models = []
    for one, where in ((spec, "vision.path"), (spec.second, "vision.second.path")):
        if one is not None:
            config = vision_config(one, spec.feature_layer, planned=False)
            kind, path = MODEL_MAPPING[type(config)], one.path
            models.append(load(kind, config, path=path, where=where, dtype=dtype, four_bit=four_bit))
    return VisionEncoder(models[0], spec, *models[1:])


def blank_vision(spec: Vision, *, dtype: torch.dtype = torch.float32, planned: bool = False) -> VisionEncoder:
    """Build the encoder with random weights: for the meta device, tests or saved states. planned: see `part_config`."""
    models = []
    for one in (spec, spec.second):
        if one is not None:
            config = vision_config(one, spec.feature_layer, planned=planned)
            kind = MODEL_MAPPING[type(config)]
            models.append(kind._from_config(config, dtype=dtype, attn_implementation="sdpa"))
    return VisionEncoder(models[0], spec, *models[1:])
