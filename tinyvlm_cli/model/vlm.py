"""The whole model: image features pass through the connector and replace the image placeholders in the text.

Shapes: B rows, T tokens per row, I images, M connector tokens per image, D hidden size of the LLM, S pixels per image
edge, P positions whose next token is supervised, V vocabulary size.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from tinyvlm_cli.config.schema import LLM, Vision
from tinyvlm_cli.data.batch import MicroBatch
from tinyvlm_cli.errors import UserError, collected, raise_findings
from tinyvlm_cli.model.attention import packed as attention
from tinyvlm_cli.model.connectors import Connector, build_connector
from tinyvlm_cli.model.llm import blank_llm, load_tokenizer
from tinyvlm_cli.model.vision import VisionEncoder, blank_vision, layers_of

LOGITS_AT_ONCE = 4096  # maximum number of positions whose logits are computed at once


class VLM(nn.Module):
    """Vision encoder -> connector -> LLM.

    Its forward pass returns the training loss of a `MicroBatch`. Generation calls `embed` and then `llm`.
    """

    def __init__(self, vision: VisionEncoder, connector: Connector, llm: PreTrainedModel) -> None:
        super().__init__()
        if connector.needs_two_encoders and len(vision.models) == 1:
            raise UserError(
                f"connector: {type(connector).__name__} requires two vision encoders but found one; "
                "choose vision=mof or another connector"
            )
        self.vision = vision
        self.connector = connector
        self.llm = llm
        self.token_losses = token_losses
        self.position_losses = torch.zeros(0)  # of the last forward pass: the cross-entropy at each position, [P]

    @property
    def tokens_per_image(self) -> int:
        """Number of LLM tokens per image."""
        return self.connector.num_tokens(self.vision.num_patches)

    def embed(self, ids: Tensor, image_at: Tensor, pixels: Tensor) -> Tensor:
        """Return the embeddings of a batch's tokens, including image tokens.

        ids: [B, T], image_at: [I * M] positions in the flattened ids, pixels: [I, 3, S, S] uint8 -> [B, T, D].

        Every batch takes the same path through the modules. If ranks ran modules in different orders, or skipped some,
        their gradients would be mixed up, or they would wait for each other forever. A row without images therefore
        has a blank image, whose tokens are discarded and whose gradients are zero.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and any(p.requires_grad for p in self.vision.parameters())):
            features = self.vision(pixels)
        image_tokens = self.connector(features).flatten(0, 1)[: len(image_at)]  # drops a blank image
        text: Tensor = self.llm.get_input_embeddings()(ids)
        # masked_scatter is not used, because its backward pass makes the CPU wait for the GPU.
        filled = text.flatten(0, 1).index_copy(0, image_at, image_tokens.to(text.dtype))
        return filled.view_as(text).clone()  # with a view, PyTorch would compile the first layer separately

    def logits(self, batch: MicroBatch) -> Tensor:
        """Return the logits at the positions `batch.predict`: [P, V], fp32."""
        logits: Tensor = self.llm.get_output_embeddings()(self._hidden(batch))
        return logits.float()

    def forward(self, batch: MicroBatch) -> Tensor:
        """Return the weighted sum of the cross-entropy over all supervised tokens, as an fp32 scalar."""
        hidden = self._hidden(batch)
        count = -(-len(hidden) // LOGITS_AT_ONCE)
        if count <= 1:
            loss, self.position_losses = self._loss(hidden, batch.targets, batch.weights)
            return loss
        # The logits of all positions at once could exceed the planned peak memory.
        targets = [piece.clone() for piece in batch.targets.tensor_split(count)]  # views would be compiled separately
        pieces = zip(hidden.tensor_split(count), targets, batch.weights.tensor_split(count), strict=True)
        done = [checkpoint(self._loss, *piece, use_reentrant=False) for piece in pieces]
        self.position_losses = torch.cat([losses for _, losses in done])
        return torch.stack([loss for loss, _ in done]).sum()

    @torch.no_grad()
    def check_head(self) -> None:
        """Raise UserError for an LLM that modifies its head's logits (by scaling or soft-capping)."""
        self.llm.eval()
        weight = self.llm.get_input_embeddings().weight
        embeds = torch.linspace(-1, 1, 2 * weight.shape[1], device=weight.device, dtype=weight.dtype).view(1, 2, -1)
        attention.set_lengths(torch.tensor([2]), weight.device)
        given = {"inputs_embeds": embeds, "use_cache": False}
        ours = self.llm.get_output_embeddings()(self.llm.base_model(**given).last_hidden_state)
        if not torch.equal(ours, self.llm(**given).logits):
            kind = self.llm.config.model_type
            raise UserError(f"llm.path: '{kind}' scales or caps logits, which is not supported; choose another LLM")

    @torch.no_grad()
    def check_shapes(self, spec: Vision) -> None:
        """Run an image through the encoder and the connector. Raise UserError if they do not fit each other or the LLM.

        This is cheap on the meta device. Only the encoder's first layer is run, because all layers have equal shapes.
        """
        image_size, num_patches, kind = spec.image_size, self.vision.num_patches, type(self.connector).__name__
        with self.vision.model.device:
            pixels = torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8)
            first_layer = self.vision.first_layer(spec)
        try:
            features = first_layer(pixels)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"vision.image_size: the encoder does not support images of {image_size} x {image_size} pixels "
                f"({str(error).strip().splitlines()[0]}); use the size that it was trained with"
            ) from None
        if features.shape != (1, num_patches, self.vision.dim):
            raise UserError(
                f"vision.path: the encoder returns features of shape {list(features.shape)} for one image, but "
                f"{[1, num_patches, self.vision.dim]} is required; choose an encoder such as CLIP or SigLIP"
            )
        try:
            found = list(self.connector(features).shape)
        except (RuntimeError, TypeError, ValueError) as error:  # a missing `forward` is a RuntimeError
            reason = f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]
            raise UserError(
                f"connector: {kind} fails on features of shape {list(features.shape)} ({reason}); change its "
                "settings or its `forward`"
            ) from error
        expected = [1, self.tokens_per_image, self.llm.config.hidden_size]
        if found != expected:
            raise UserError(
                f"connector: {kind} returns shape {found} for an image of {num_patches} patches, but its `num_tokens` "
                f"and the LLM's hidden size require {expected}; correct its `forward` or `num_tokens`"
            )

    def _hidden(self, batch: MicroBatch) -> Tensor:
        """Return the head's input at the positions `batch.predict`: [P, D]."""
        attention.set_lengths(batch.lengths, batch.ids.device)
        hidden: Tensor = self.llm.base_model(
            inputs_embeds=self.embed(batch.ids, batch.image_at, batch.pixels),
            position_ids=batch.positions,
            attention_mask=None,
            use_cache=False,
        ).last_hidden_state  # [1, T, D]
        return hidden[0, batch.predict]

    def _loss(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of the cross-entropy, and the cross-entropy at each position without gradients."""
        losses = self.token_losses(self.llm.get_output_embeddings()(hidden), targets)
        return torch.dot(losses, weights), losses.detach()


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy at each position, in fp32. logits: [P, V], targets: [P] -> [P]."""
    return cross_entropy(logits.float(), targets, reduction="none")


def meta_model(llm: LLM, vision: Vision, connector: dict[str, Any]) -> VLM:
    """Build the whole model on the meta device, without allocating memory.

    Raises UserError if the parts do not fit each other, or a sample of `llm.max_length` tokens does not hold an image
    and text. The tokenizer is checked too, if it is in a local folder.
    """
    model = random_model(llm, vision, connector, torch.device("meta"), dtype=torch.float32, attention="sdpa")
    findings: list[str] = []
    with collected(findings):
        model.check_shapes(vision)
        if llm.max_length <= (size := model.tokens_per_image):
            raise UserError(f"llm.max_length: found {llm.max_length}, but an image takes {size} tokens; use more")
    if (Path(llm.path) / "tokenizer.json").is_file():
        with collected(findings):
            load_tokenizer(llm, num_embeddings=model.llm.get_input_embeddings().num_embeddings)
    raise_findings(findings)
    return model


def random_model(
    llm: LLM, vision: Vision, connector: dict[str, Any], device: torch.device, *, dtype: torch.dtype, attention: str
) -> VLM:
    """Build the whole model with random weights.

    A part whose path is a local folder has the sizes in its config.json, which may differ from its `architecture`
    setting.
    """
    encoders = [one for one in (vision, vision.second) if one is not None]
    is_here = {one.path: (Path(one.path) / "config.json").is_file() for one in (*encoders, llm)}
    findings: list[str] = []
    with device:
        with collected(findings):
            encoder = blank_vision(vision, dtype=dtype, planned=not all(is_here[one.path] for one in encoders))
        with collected(findings):
            language = blank_llm(llm, attention=attention, dtype=dtype, planned=not is_here[llm.path])
        raise_findings(findings)
        built = build_connector(connector, vision_dim=encoder.dim, llm_dim=language.config.hidden_size)
    return VLM(encoder, built.to(dtype), language)


class LinearGELU(nn.Linear):
    """A linear layer and the tanh approximation of GELU in one kernel, for inference on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., D] -> [..., F]."""
        out = torch._addmm_activation(self.bias, x.flatten(0, -2), self.weight.t(), use_gelu=True)
        return out.view(*x.shape[:-1], -1)


def fuse_gelu(model: VLM) -> None:
    """Make each linear layer in front of GELU a `LinearGELU`. These are in the MLPs of Phi and SigLIP."""
    probe = torch.linspace(-4, 4, 64, device=model.llm.device)
    for mlp in model.modules():
        linear, activation = getattr(mlp, "fc1", None), getattr(mlp, "activation_fn", None)
        if type(linear) is not nn.Linear or linear.bias is None or activation is None:
            continue
        if torch.allclose(activation(probe), gelu(probe, approximate="tanh"), rtol=0, atol=1e-6):
            linear.__class__, mlp.activation_fn = LinearGELU, nn.Identity()


def compile_layers(model: VLM, *, is_fixed: bool = False) -> None:
    """Compile each layer and the loss separately, for rows of any length.

    Identical layers share their compiled code. PyTorch caches it on disk, so later runs start within seconds.
    is_fixed: whether all batches have the same number of images, and all processes use the same kernels.
    """
    import torch._dynamo.config
    import torch._inductor.config  # takes a second, which commands that compile nothing need not wait for

    # The limit counts all kinds of layers: of two vision encoders and an LLM, each with and without gradients.
    torch._dynamo.config.recompile_limit = 64
    # Constants of a layer, such as the scale of low-rank adapters, would be inputs on the CPU. Each layer would be
    # traced twice, and operations on these inputs compiled by a C++ compiler, which takes 25 s.
    torch._dynamo.config.specialize_float = True
    # PyTorch's random numbers for dropout equal those of eager mode and are faster than Inductor's.
    torch._inductor.config.fallback_random = True
    if is_fixed:  # otherwise each process chooses kernels by measuring them, even those that add in another order
        torch._inductor.config.deterministic = True
    for one in (*model.vision.models, model.llm):
        for layer in layers_of(one):
            layer.compile(dynamic=one is model.llm or not is_fixed)
    model.token_losses = torch.compile(token_losses, dynamic=True)
    if torch.cuda.is_available():
        # Recomputation runs in autograd's thread, where PyTorch's pin-memory thread has set the number of CPU threads
        # to 1. If the main thread used a different number, the layers would be compiled again in that thread.
        torch.set_num_threads(1)
