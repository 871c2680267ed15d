"""A checkpoint of the reference, whatever its layout, gives the reference's numbers."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.tinyllava_reference import LLMS, VISIONS, VOCAB, Reference, write_common
from torch.nn.functional import cross_entropy

import tinyvlm_cli
from tinyvlm_cli.checkpoint.parts import build_model
from tinyvlm_cli.config.commands import Import
from tinyvlm_cli.config.saved import from_yaml
from tinyvlm_cli.config.schema import ImageMode, Prompt, Tokens, Train
from tinyvlm_cli.data.chat import IMAGE
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.llm import load_tokenizer
from tinyvlm_cli.model.vlm import VLM
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.models import model_of

command = importlib.import_module("tinyvlm_cli.cli.commands.import")
IDS = torch.tensor([5, 9, -200, 17, 30, 4, 8])


def imported(folder: Path, results: Path, **more: Any) -> tuple[VLM, Train]:
    assert command.run(Import(path=str(folder), name="m", results_dir=str(results), **more)) == 0
    (run,) = Results(results).find_runs("m")
    config = from_yaml(Train, run.folder / "config.yaml")
    stage_dirs = model_of(run, "import", Results(results)).stage_dirs
    model = build_model(
        config.llm, config.vision, config.connector, stage_dirs, seed=0, dtype=torch.float32, attention="sdpa"
    )
    return model.eval(), config


@torch.no_grad()
def logits(model: VLM, ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    tokens = model.tokens_per_image
    row = torch.cat([t.expand(tokens) if t == -200 else t[None] for t in ids])[None]
    return model.llm(
        inputs_embeds=model.embed(row.clamp_min(0), (row == -200).flatten().nonzero()[:, 0], pixels), use_cache=False
    ).logits[0]


def assert_same(reference: Reference, model: VLM) -> None:
    """Features within 1e-5 (an eps that is wrong moves logits by less), logits within 1e-4."""
    pixels = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = model.connector(model.vision(pixels))
    torch.testing.assert_close(ours, reference.features(pixels), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(model, IDS, pixels), reference.logits(IDS, pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("connector", ["linear", "mlp2x_gelu", "mlp3x_gelu", "resampler"])
@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("llm", LLMS)
def test_the_factorys_tuned_model(tmp_path: Path, llm: str, vision: str, connector: str) -> None:
    reference = Reference(llm, vision, connector)
    folder = write_common(tmp_path / "tuned", reference.config())
    save_file(reference.state(), folder / "model-00001-of-00001.safetensors")
    model, config = imported(folder, tmp_path / "results")
    assert_same(reference, model)
    assert (config.vision.tokens, config.recipe.stages["import"].image_mode) == (Tokens.drop_first, ImageMode.square)
    assert (config.llm.name, config.llm.label, config.llm.max_length) == ("phi2+imported", "Phi", 200)


def save_split(reference: Reference, folder: Path, state: dict[str, torch.Tensor] | None = None) -> Path:
    """The Factory's layout after pretraining: a pickle of tensors for each part."""
    write_common(folder, reference.config())
    for part, prefix in (
        ("language_model", "language_model."),
        ("vision_tower", "vision_tower._vision_tower."),
        ("connector", "connector."),
    ):
        named = (state or reference.state()).items()
        tensors = {name.removeprefix(prefix): t for name, t in named if name.startswith(prefix)}
        (folder / part).mkdir()
        torch.save(tensors, folder / part / "pytorch_model.bin")
    return folder


def test_the_factorys_pretrained_model(tmp_path: Path) -> None:
    reference = Reference("stablelm", "siglip_vision_model", "mlp2x_gelu")
    model, config = imported(save_split(reference, tmp_path / "split"), tmp_path / "results")
    assert_same(reference, model)
    assert config.recipe.stages["import"].prompt is Prompt.plain


def test_the_factorys_lora_model(tmp_path: Path) -> None:
    reference = Reference("phi", "siglip_vision_model", "mlp2x_gelu")
    name = "language_model.model.layers.0.self_attn.q_proj"
    state = reference.state()
    base = {key.replace("q_proj.", "q_proj.base_layer."): tensor.clone() for key, tensor in state.items()}
    folder = save_split(reference, tmp_path / "lora", base)
    lower, upper = torch.randn(4, 32) * 0.1, torch.randn(32, 4) * 0.1
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    adapter = {f"base_model.model.{name}.lora_A.weight": lower, f"base_model.model.{name}.lora_B.weight": upper}
    save_file(adapter, folder / "adapter_model.safetensors")
    with torch.no_grad():
        state[f"{name}.weight"] += 2 * upper @ lower  # the reference's own tensor
    model, config = imported(folder, tmp_path / "results")
    assert_same(reference, model)
    assert config.recipe.stages["import"].prompt is Prompt.chat


@pytest.mark.parametrize("inner", [None, 40])
def test_the_factorys_qformer(tmp_path: Path, inner: int | None) -> None:
    reference = Reference("llama", "clip_vision_model", "qformer", inner=inner)
    folder = write_common(tmp_path / "tuned", reference.config())
    save_file(reference.state(), folder / "model.safetensors")
    write_common(tmp_path / "bert", {"model_type": "bert", "num_attention_heads": 4})
    model, config = imported(folder, tmp_path / "results", qformer_dir=str(tmp_path / "bert"))
    assert_same(reference, model)
    assert config.connector.get("intermediate_dim") == inner


def test_the_factorys_resampler_with_narrow_feed_forward_blocks(tmp_path: Path) -> None:
    reference = Reference("llama", "clip_vision_model", "resampler", inner=48)
    folder = write_common(tmp_path / "tuned", reference.config())
    save_file(reference.state(), folder / "model.safetensors")
    model, config = imported(folder, tmp_path / "results")
    assert_same(reference, model)
    assert (config.connector["intermediate_dim"], config.connector["num_heads"]) == (48, 8)


def test_a_connector_of_other_shapes_is_rejected(tmp_path: Path) -> None:
    reference = Reference("llama", "clip_vision_model", "mlp2x_gelu")
    folder = write_common(tmp_path / "tuned", reference.config())
    weight = {"connector._connector.0.weight": torch.zeros(32, 12)}
    save_file(reference.state() | weight, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"layers.0.weight has shape \[32, 12\], .* \[32, 16\]"):
        imported(folder, tmp_path / "results")


def test_the_factorys_mof(tmp_path: Path) -> None:
    reference, second = (Reference("llama", kind, "mlp2x_gelu") for kind in ("clip_vision_model", "dinov2"))
    state = {name: t for name, t in reference.state().items() if name.startswith("language_model.")}
    for name, one in (("clip", reference), ("dinov2", second)):
        tower = one.vision_state() if name == "clip" else one.vision.state_dict()
        state |= {f"vision_tower._vision_tower.{name}.{key}": t for key, t in tower.items()}
        state |= {f"connector._connector.{name}.{key}": t.clone() for key, t in one.connector.state_dict().items()}
    changes = {"connector_type": "mof_mlp", "vision_model_name_or_path2": "mof:facebook/dinov2-large"}
    folder = write_common(tmp_path / "mof", {**reference.config(), **changes})
    save_file(state, folder / "model.safetensors")
    second.vision.config.save_pretrained(tmp_path / "dino")
    model, _ = imported(folder, tmp_path / "results", second_vision_dir=str(tmp_path / "dino"))
    pixels = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        ours = model.connector(model.vision(pixels))
    mean, std = reference.normalisation
    for start, one in enumerate((reference, second)):
        hidden = one.vision(pixel_values=(pixels / 255 - mean) / std, output_hidden_states=True).hidden_states[-2]
        torch.testing.assert_close(ours[:, start::2], one.connector(hidden[:, 1:]), rtol=1e-5, atol=1e-5)


BENCH_LLM = {"phi": "tiny_llava_phi", "llama": "tiny_llava_llama", "stablelm": "tiny_llava_stablelm"}


def save_bench(reference: Reference, folder: Path) -> Path:
    """TinyLLaVABench's layout: the vision encoder beside it, shortened by its last layer and without its head."""
    llm = reference.llm.config.to_diff_dict()
    if llm["model_type"] == "stablelm":
        rope = llm.pop("rope_parameters", None) or {}
        llm |= {"rope_pct": rope.get("partial_rotary_factor", 0.25), "norm_eps": 1e-5}
        llm.pop("use_qkv_bias")  # its default there
    named = {"mm_projector_type": reference.kind, "mm_vision_tower": "tower", "mm_vision_select_feature": "patch"}
    config = {**llm, **named, "model_type": BENCH_LLM[llm["model_type"]], "image_aspect_ratio": "pad"}
    write_common(folder, config)
    state = {name: p.detach() for name, p in reference.llm.named_parameters() if name != "lm_head.bias"}
    state |= {f"model.mm_projector.{name}": t for name, t in reference.connector.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    tower = write_common(folder / "tower", reference.vision.config.to_diff_dict())
    kept = {k: t for k, t in reference.vision_state().items() if ".layers.3." not in k and ".head." not in k}
    save_file(kept, tower / "model.safetensors")
    return folder


@pytest.mark.parametrize("connector", ["mlp2x_gelu", "resampler"])
@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("llm", BENCH_LLM)
def test_the_benchs_model(tmp_path: Path, llm: str, vision: str, connector: str) -> None:
    reference = Reference(llm, vision, connector, bench=True)
    if llm == "phi":
        torch.nn.init.zeros_(reference.llm.lm_head.bias)  # its head has none
    model, config = imported(save_bench(reference, tmp_path / "bench"), tmp_path / "results")
    assert_same(reference, model)
    expected = Tokens.all if vision == "siglip_vision_model" else Tokens.drop_first
    assert (config.vision.tokens, config.recipe.stages["import"].image_mode) == (expected, ImageMode.pad)


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.update({"connector._connector.4.weight": torch.zeros(1)}), "unexpected tensors"),
        (lambda state: state.update({"other.weight": torch.zeros(1)}), "unexpected tensors other.weight"),
        (lambda state: state.pop("connector._connector.2.bias"), "1 weights are missing, starting with layers.2.bias"),
        (lambda state: state.pop("language_model.model.norm.weight"), "the LLM: 1 weights are missing"),
        (lambda state: state.update({"language_model.model.extra": torch.zeros(1)}), "unexpected tensors"),
    ],
)
def test_every_tensor_is_accounted_for(tmp_path: Path, change: Any, says: str) -> None:
    reference = Reference("llama", "clip_vision_model", "mlp2x_gelu")
    folder = write_common(tmp_path / "tuned", reference.config())
    state = reference.state()
    change(state)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError, match=says):
        imported(folder, tmp_path / "results")
    assert not list((tmp_path / "results").glob("stages/[!.]*"))


def test_a_pickle_with_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_common(tmp_path / "bad", Reference("llama", "clip_vision_model", "linear").config())
    torch.save({"x": Attack()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="contains objects other than tensors"):
        imported(folder, tmp_path / "results")
    assert capsys.readouterr().out == ""


def test_importing_twice_is_one_run_and_a_changed_checkpoint_another(tmp_path: Path) -> None:
    reference = Reference("llama", "clip_vision_model", "linear")
    folder = write_common(tmp_path / "tuned", reference.config())
    save_file(reference.state(), folder / "model.safetensors")
    for _ in range(2):
        imported(folder, tmp_path / "results")
    assert len(Results(tmp_path / "results").find_runs("all")) == 1
    write_common(folder, {**reference.config(), "image_aspect_ratio": "pad"})
    command.run(Import(path=str(folder), name="m", results_dir=str(tmp_path / "results")))
    assert len(Results(tmp_path / "results").find_runs("all")) == 2


@pytest.mark.parametrize("setting", ["vision_dir", "second_vision_dir", "qformer_dir"])
def test_a_folder_that_the_checkpoint_does_not_need_is_refused(tmp_path: Path, setting: str) -> None:
    reference = Reference("llama", "clip_vision_model", "linear")
    folder = write_common(tmp_path / "tuned", reference.config())
    save_file(reference.state(), folder / "model.safetensors")
    with pytest.raises(UserError, match=rf"{setting}=.*has no effect on this checkpoint, because it"):
        imported(folder, tmp_path / "results", **{setting: str(folder)})
    assert not list((tmp_path / "results").glob("stages/[!.]*"))


def with_token(folder: Path, name: str) -> None:
    """Add the special token <x>, which has no embedding, to tokenizer.json or tokenizer_config.json."""
    record = json.loads((folder / name).read_text(encoding="utf-8"))
    if name == "tokenizer.json":
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        record["added_tokens"].append({"id": VOCAB, "content": "<x>", "special": True, **flags})
    else:
        record["extra_special_tokens"] = ["<x>"]
    (folder / name).write_text(json.dumps(record), encoding="utf-8")


def test_special_tokens_without_an_embedding(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reference = Reference("llama", "clip_vision_model", "linear")
    folder = write_common(tmp_path / "tuned", reference.config())
    save_file(reference.state(), folder / "model.safetensors")
    with_token(folder, "tokenizer_config.json")
    model, config = imported(folder, tmp_path / "results")
    assert_same(reference, model)
    assert "<x>" in caplog.text and "<x>" not in load_tokenizer(config.llm, num_embeddings=VOCAB).get_vocab()
    with_token(folder, "tokenizer.json")
    with pytest.raises(UserError, match="up to 582, but the model has only 582"):
        imported(folder, tmp_path / "other")
    assert not list((tmp_path / "other").glob("stages/[!.]*"))


def test_a_notebook_gets_the_references_numbers(tmp_path: Path) -> None:
    reference = Reference(next(iter(LLMS)), VISIONS[0], "mlp2x_gelu")
    folder = write_common(tmp_path / "tuned", reference.config())
    save_file(reference.state(), folder / "model-00001-of-00001.safetensors")
    imported(folder, tmp_path / "results")
    model = tinyvlm_cli.load("m", results_dir=tmp_path / "results", device="cpu", dtype="fp32")
    Image.effect_noise((20, 12), 90).save(tmp_path / "a.png")
    talk = [{"from": "human", "value": "<image>\nhi"}, {"from": "gpt", "value": "you"}]
    sample = model.encode({"id": "1", "image": "a.png", "conversations": talk}, tmp_path)
    is_image = sample.ids == IMAGE
    with torch.no_grad():
        expected = reference.logits(sample.ids[~is_image | (is_image.cumsum(0) == 1)], sample.pixels)
    torch.testing.assert_close(model.logits(sample), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.loss([sample]), cross_entropy(expected[:-1], sample.labels[1:]))
