"""The forward passes of decoding: for images, for rows of prompts, and for steps that extend answers by one token.

On a GPU, each pass has fixed shapes and is recorded as a CUDA graph, so its result for a token is bitwise identical in
any batch. On a CPU, nothing is padded.

Shapes: I images, S pixels per edge, M connector tokens per image, D hidden size, T tokens per row, R questions.
"""

import os
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyvlm_cli.model.attention.cached import TILE_ROWS, TRASH, Cache, CachedRow
from tinyvlm_cli.model.vlm import VLM, compile_layers, fuse_gelu

TOKENS = 12_288  # per row of prefixes and questions; enough for matrix products at full speed
ROWS = 256  # answers per decoding step, and questions completed per row, at most
IMAGES = 16  # per call of the vision encoder
SPARE = 0.06  # fraction of GPU memory reserved for image tokens and libraries
CPU_FRACTION = 0.25  # of the free memory that the cache may take on a CPU
MAX_CPU_TOKENS = 2**18  # in the cache on a CPU


class Passes:
    """The forward passes of a model with a key-value cache.

    image_size: pixels per edge. cache_tokens: size of the cache; None for as many tokens as fit into memory.
    is_trained: whether the model is being trained, so that its modules must not be changed.
    """

    def __init__(
        self, model: VLM, *, image_size: int, cache_tokens: int | None = None, is_trained: bool = False
    ) -> None:
        self.model, self.image_size = model, image_size
        self.device = model.llm.device
        self.is_fixed = self.device.type == "cuda"  # whether all shapes are fixed
        if self.is_fixed and not is_trained:
            # Expandable segments avoid fragmentation, which fixed shapes do not cause, and are slow to allocate.
            torch._C._accelerator_setAllocatorSettings("expandable_segments:False")
            fuse_gelu(model)  # it waits for the GPU, which is idle here
        self.cache = Cache(model.llm)
        self.tile = max(1, TILE_ROWS // self.cache.group) if self.is_fixed else TOKENS
        self.tiles = TOKENS // self.tile + 2 * ROWS + 2  # per row at most; each span can end with a partly filled one
        self.num_tokens = cache_tokens or _rounded(self._cache_size())
        self.cache.allocate(self.num_tokens)
        self.image_tokens: Callable[..., Tensor] = self._image_tokens
        self.next_tokens: Callable[..., Tensor] = self._next_tokens
        self.next_step: Callable[..., Tensor] = self._next_step
        if self.is_fixed:
            if not is_trained:
                compile_layers(model, is_fixed=True)
            with torch.inference_mode(), self.cache.in_use():
                self.image_tokens = Captured(self._image_tokens, *self._blank_images())
                self.next_tokens = Captured(self._next_tokens, *self._blank_row())
                self.next_step = Captured(self._next_step, torch.zeros(ROWS, 9, dtype=torch.int64, device=self.device))

    def close(self) -> None:
        """Free the cache and the CUDA graphs. No pass can be run afterwards."""
        self.cache.free()
        del self.image_tokens, self.next_tokens, self.next_step  # also reference cycles
        if self.is_fixed:
            torch.cuda.empty_cache()

    def _image_tokens(self, batch: Tensor) -> Tensor:
        """Return the connector's tokens of images, [I, M, D]. batch: [I, 3, S, S] uint8."""
        tokens: Tensor = self.model.connector(self.model.vision(batch.to(self.device)))
        return tokens.to(self.cache.dtype)

    def _next_step(self, fields: Tensor) -> Tensor:
        """Return the next tokens, [R]. fields: [R, 9] last token, position id, cache position and `Piece`."""
        ids, positions, write_at = fields[:, :3].unbind(1)
        embeds = self.model.llm.get_input_embeddings()(ids)
        last = torch.arange(len(fields), device=self.device)
        return self._next_tokens(embeds, positions, write_at.contiguous(), fields[:, 3:].int().contiguous(), last)

    def _next_tokens(self, embeds: Tensor, positions: Tensor, write_at: Tensor, table: Tensor, last: Tensor) -> Tensor:
        """Return the most probable next token at each index in `last`. embeds: [T, D]; the others: see `CachedRow`."""
        CachedRow.current = CachedRow(write_at, table)
        logits: Tensor = self.model.llm(
            inputs_embeds=embeds[None], position_ids=positions[None], use_cache=False, logits_to_keep=last
        ).logits[0]
        return logits.float().argmax(dim=-1)

    def tensor(self, values: NDArray[np.generic]) -> Tensor:
        """Return the values on the device, without waiting for the copy."""
        tensor = torch.from_numpy(values)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.is_fixed else tensor

    def _cache_size(self) -> int:
        """Return the size of the cache in tokens."""
        need = self.cache.bytes_per_token
        if not self.is_fixed:
            pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"  # macOS: all memory
            free = os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
            return min(MAX_CPU_TOKENS, int(CPU_FRACTION * free) // need)
        self.cache.allocate(TRASH + 1)
        peak = 0  # in total, because each CUDA graph keeps its memory
        with torch.inference_mode(), self.cache.in_use(), torch.compiler.set_stance("force_eager"):
            for function, blank in ((self._image_tokens, self._blank_images()), (self._next_tokens, self._blank_row())):
                torch.cuda.reset_peak_memory_stats(self.device)
                before = torch.cuda.memory_allocated(self.device)
                function(*blank)
                peak += torch.cuda.max_memory_allocated(self.device) - before
        del blank
        self.cache.allocate(0)
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.device)
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return max(0, free + unused - peak - int(SPARE * total)) // need

    def _blank_images(self) -> tuple[Tensor]:
        """Return inputs of `_image_tokens` on the GPU."""
        shape = (IMAGES, 3, self.image_size, self.image_size)
        return (torch.zeros(shape, dtype=torch.uint8, device=self.device),)

    def _blank_row(self) -> tuple[Tensor, ...]:
        """Return inputs of `_next_tokens` on the GPU, for a row without questions."""
        width = self.model.llm.get_input_embeddings().weight.shape[1]
        embeds = torch.zeros(TOKENS, width, dtype=self.cache.dtype, device=self.device)
        # Views of one tensor would be compiled for this length only, because the second one starts at TOKENS.
        positions, write_at = (torch.zeros(TOKENS, dtype=torch.int64, device=self.device) for _ in range(2))
        table = torch.zeros(self.tiles, 6, dtype=torch.int32, device=self.device)
        return embeds, positions, write_at, table, torch.zeros(ROWS, dtype=torch.int64, device=self.device)


def _rounded(size: int) -> int:
    """Round down to five significant bits. Layers are compiled for one size of the cache, and free memory varies."""
    unit = 1 << max(0, size.bit_length() - 5)
    return size // unit * unit


class Captured:
    """A function of tensors with fixed shapes, recorded as a CUDA graph. Each call overwrites the previous result."""

    def __init__(self, function: Callable[..., Tensor], *given: Tensor) -> None:
        self.given = given
        function(*given)  # compiles what the graph records
        self.graph = torch.cuda.CUDAGraph()
        # Other threads may allocate memory in the meantime, such as the one that pins batches during training.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.result = function(*given)

    def __call__(self, *given: Tensor) -> Tensor:
        for buffer, values in zip(self.given, given, strict=True):
            buffer.copy_(values, non_blocking=True)
        self.graph.replay()
        return self.result
