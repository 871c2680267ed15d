"""The whole model: image features, through the connector, written over the placeholder tokens of the text.

Shapes: T tokens of a row, S samples in it, I images, M connector tokens of an image, D width of the LLM,
P positions whose next token is supervised, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from tinyvlm_cli.data.batch import MicroBatch
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.attention import packed as attention
from tinyvlm_cli.model.connectors import Connector
from tinyvlm_cli.model.vision import VisionEncoder

LOGITS_AT_ONCE = 4096  # positions


class VLM(nn.Module):
    """vision encoder -> connector -> LLM."""

    def __init__(self, vision: VisionEncoder, connector: Connector, llm: PreTrainedModel) -> None:
        super().__init__()
        if connector.needs_two_encoders and len(vision.models) == 1:
            raise UserError(
                f"connector: {type(connector).__name__} has a projector for each of two encoders and found one; "
                "choose vision=mof or another connector"
            )
        self.vision = vision
        self.connector = connector
        self.llm = llm
        self.token_losses = token_losses

    def embed(self, ids: Tensor, image_at: Tensor, pixels: Tensor) -> Tensor:
        """ids: [B, T], image_at: [I * M] positions in the flat ids, pixels: [I, 3, size, size] -> [B, T, D].

        There is one path through the modules for every batch: ranks that ran them in another order, or not at all,
        would mix up or wait for each other's gradients. A row without images therefore brings a blank one, of which
        nothing is written; its gradients are zero.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and any(p.requires_grad for p in self.vision.parameters())):
            features = self.vision(pixels)
        image_tokens = self.connector(features).flatten(0, 1)[: len(image_at)]  # of a blank image nothing
        text: Tensor = self.llm.get_input_embeddings()(ids)
        # Not masked_scatter: its backward pass makes the CPU wait for the GPU.
        filled = text.flatten(0, 1).index_copy(0, image_at, image_tokens.to(text.dtype))
        return filled.view_as(text).clone()  # a view would have the first layer compiled by itself

    def logits(self, batch: MicroBatch) -> Tensor:
        """[P, V] in fp32 at the positions `batch.predict`."""
        logits: Tensor = self.llm.get_output_embeddings()(self._hidden(batch))
        return logits.float()

    def forward(self, batch: MicroBatch) -> Tensor:
        """The weighted sum of the supervised tokens' cross-entropy, in fp32."""
        hidden = self._hidden(batch)
        count = -(-len(hidden) // LOGITS_AT_ONCE)
        if count <= 1:
            return self._loss(hidden, batch.targets, batch.weights)
        # The logits of many positions would fill the memory that everything else was planned around.
        targets = [piece.clone() for piece in batch.targets.tensor_split(count)]  # views would be compiled anew
        pieces = zip(hidden.tensor_split(count), targets, batch.weights.tensor_split(count), strict=True)
        return torch.stack([checkpoint(self._loss, *piece, use_reentrant=False) for piece in pieces]).sum()

    @torch.no_grad()
    def check_head(self) -> None:
        """Raise UserError for an LLM that does more to its logits than its head (a scale, a soft cap)."""
        self.llm.eval()
        weight = self.llm.get_input_embeddings().weight
        embeds = torch.linspace(-1, 1, 2 * weight.shape[1], device=weight.device, dtype=weight.dtype).view(1, 2, -1)
        attention.set_lengths(torch.tensor([2]), weight.device)
        given = {"inputs_embeds": embeds, "use_cache": False}
        ours = self.llm.get_output_embeddings()(self.llm.base_model(**given).last_hidden_state)
        if not torch.equal(ours, self.llm(**given).logits):
            kind = self.llm.config.model_type
            raise UserError(f"llm.path: a model of type '{kind}' changes its head's logits, which training does not")

    def _hidden(self, batch: MicroBatch) -> Tensor:
        """[P, D] what the head reads at the positions `batch.predict`."""
        attention.set_lengths(batch.lengths, batch.ids.device)
        hidden: Tensor = self.llm.base_model(
            inputs_embeds=self.embed(batch.ids, batch.image_at, batch.pixels),
            position_ids=batch.positions,
            attention_mask=None,
            use_cache=False,
        ).last_hidden_state  # [1, T, D]
        return hidden[0, batch.predict]

    def _loss(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return torch.dot(self.token_losses(self.llm.get_output_embeddings()(hidden), targets), weights)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy at each position, in fp32. logits: [P, V], targets: [P] -> [P]"""
    return cross_entropy(logits.float(), targets, reduction="none")
