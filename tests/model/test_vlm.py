"""The splice of image features into the text."""

import pytest
import torch
from support.small import LLAMA, TOKENS_PER_IMAGE, micro_batches, small_vlm

from tinyvlm_cli.errors import UserError


def test_the_write_of_image_tokens_equals_a_slow_loop() -> None:
    model = small_vlm("full")
    (micros,), _ = micro_batches(0, 1)
    batch = micros[0]
    features = model.connector(model.vision(batch.pixels))
    expected = []
    image = used = 0
    places = set(batch.image_at.tolist())
    for position, token in enumerate(batch.ids[0]):
        if position in places:
            expected.append(features[image, used])
            image, used = (image + 1, 0) if used + 1 == TOKENS_PER_IMAGE else (image, used + 1)
        else:
            expected.append(model.llm.get_input_embeddings()(token))
    out = model.embed(batch.ids, batch.image_at, batch.pixels)
    torch.testing.assert_close(out[0], torch.stack(expected), rtol=0, atol=0)


def test_a_text_only_row_gives_the_connector_a_zero_gradient() -> None:
    model = small_vlm("connector")
    (micros,), _ = micro_batches(0, 1)
    assert not len(micros[-1].image_at)
    model(micros[-1]).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.connector.parameters())


@pytest.mark.parametrize(("family", "more"), [("granite", {"logits_scaling": 8.0}), ("cohere", {})])
def test_an_llm_that_changes_its_logits_is_refused(family: str, more: dict[str, float]) -> None:
    """Training asks the head at supervised positions only, and nothing behind it."""
    small_vlm("full").check_head()
    with pytest.raises(UserError, match=f"llm.path: '{family}' scales or caps logits"):
        small_vlm("full", llm_config={**LLAMA, "model_type": family, "pad_token_id": 0, **more}).check_head()


def test_the_loss_is_the_sum_over_supervised_tokens() -> None:
    model = small_vlm("full").eval()
    (micros,), _ = micro_batches(1, 1)
    batch = micros[-1]  # one sample, text only
    loss = model(batch)
    model.llm.set_attn_implementation("sdpa")
    logits = model.llm(input_ids=batch.ids).logits[0]
    torch.testing.assert_close(loss, -logits.log_softmax(-1)[batch.predict, batch.targets].sum())
