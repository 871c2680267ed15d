"""The whole model: image features, through the connector, written over the placeholder tokens of the text.

Shapes: T tokens of a row, S samples in it, I images, M connector tokens of an image, D width of the LLM,
P positions whose next token is supervised, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from tinyvlm_cli.data.batch import MicroBatch
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model import attention
from tinyvlm_cli.model.connectors import Connector
from tinyvlm_cli.model.vision import VisionEncoder


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

    def embed(self, ids: Tensor, is_image: Tensor, pixels: Tensor) -> Tensor:
        """ids, is_image: [B, T], pixels: [I, 3, size, size] -> [B, T, D].

        There is one path through the modules for every batch: ranks that ran them in another order, or not at all,
        would mix up or wait for each other's gradients. A row without images therefore brings a blank one, of which
        nothing is written; its gradients are zero.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and any(p.requires_grad for p in self.vision.parameters())):
            features = self.vision(pixels)
        image_tokens = self.connector(features)  # [I, M, D]
        text = self.llm.get_input_embeddings()(ids)
        out: Tensor = text.masked_scatter(is_image[..., None], image_tokens.to(text.dtype))
        return out

    def logits(self, batch: MicroBatch) -> Tensor:
        """[P, V] in fp32 at the positions `batch.predict`."""
        attention.set_lengths(batch.lengths)
        out: Tensor = self.llm(
            inputs_embeds=self.embed(batch.ids, batch.is_image, batch.pixels),
            position_ids=batch.positions,
            attention_mask=None,
            use_cache=False,
            logits_to_keep=batch.predict,
        ).logits  # [1, P, V]
        return out[0].float()

    def forward(self, batch: MicroBatch) -> Tensor:
        """The weighted sum of the supervised tokens' cross-entropy, in fp32."""
        return torch.dot(cross_entropy(self.logits(batch), batch.targets, reduction="none"), batch.weights)
