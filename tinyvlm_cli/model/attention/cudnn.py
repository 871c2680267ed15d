"""cuDNN attention over rows of packed samples, 1.5 times as fast as PyTorch's own kernel on Hopper GPUs.

PyTorch uses cuDNN for padded batches only (in 2.11, its variable-length backward pass returns wrong gradients), so the
graphs are built here with NVIDIA's frontend; see "Attention" in https://docs.nvidia.com/deeplearning/cudnn/frontend.

Shapes: T tokens and S sample slots in a row, H query heads, K key and value heads, D head dimension.
"""

import importlib.util
import logging
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shape:
    """Sizes for which a pair of graphs is built."""

    slots: int
    longest: int
    tokens: int  # maximum number of tokens in a row; bounds the workspace
    heads: int
    key_heads: int
    width: int
    scale: float
    dtype: torch.dtype
    device: torch.device


def shape_of(query: Tensor, key: Tensor, ends: Tensor, longest: Tensor, scale: float) -> Shape:
    """Return the shape of a row. query: [T, H, D]; key: [T, K, D]; ends: [S + 1]."""
    tokens, heads, width = query.shape
    tokens += -tokens % 8192  # rounded up, so that few different graphs are built
    return Shape(
        slots=len(ends) - 1, longest=int(longest), tokens=tokens, heads=heads, key_heads=key.shape[1], width=width,
        scale=scale, dtype=query.dtype, device=query.device,
    )  # fmt: skip


@cache
def graphs(shape: Shape) -> "Graphs | None":
    """Return the graphs for a shape, or None if cuDNN does not support it or its frontend is not installed."""
    if torch.version.cuda is None or importlib.util.find_spec("cudnn") is None:
        return None
    import cudnn

    try:
        return Graphs(shape)
    except (cudnn.cudnnGraphNotSupportedError, RuntimeError) as error:
        log.info("cuDNN attention does not support %s (%s)", shape, str(error).splitlines()[0])
        return None


class Graphs:
    """Graphs for the forward and backward pass of attention, built once and run on every row that fits."""

    handles: ClassVar[dict[torch.device, Any]] = {}  # cuDNN handles, one per device

    def __init__(self, shape: Shape) -> None:
        import cudnn

        self.shape = shape
        self.dtype = {torch.bfloat16: cudnn.data_type.BFLOAT16, torch.float16: cudnn.data_type.HALF}[shape.dtype]
        if shape.device not in self.handles:
            with torch.cuda.device(shape.device):
                self.handles[shape.device] = cudnn.create_handle()
        self.handle = self.handles[shape.device]
        inputs = {"q": "q", "k": "k", "v": "v"}
        self.forward = self._build("sdpa", inputs, ("out", "sums"), generate_stats=True)
        inputs |= {"o": "out", "dO": "grad", "stats": "sums"}
        workspace = {"max_total_seq_len_q": shape.tokens, "max_total_seq_len_kv": shape.tokens}
        self.backward = self._build("sdpa_backward", inputs, ("dq", "dk", "dv"), **workspace)

    def run(self, built: tuple[Any, dict[str, Any]], tensors: dict[str, Tensor], ends: Tensor) -> None:
        """Run a graph on a row.

        built: `forward` or `backward`. tensors: its inputs and outputs by name, each [T, H or K, D], and `sums`, the
        log-sum-exp of the attention scores, H * T values in cuDNN's order. ends: [S + 1], see `packed.Row`.
        """
        import cudnn

        (graph, ports), shape = built, self.shape
        places = {
            "sizes": ends.diff(),
            "at_query": ends * (shape.heads * shape.width),
            "at_key": ends * (shape.key_heads * shape.width),
            "at_sums": ends * shape.heads,
        }
        workspace = torch.empty(graph.get_workspace_size(), device=shape.device, dtype=torch.uint8)
        cudnn.set_stream(handle=self.handle, stream=torch.cuda.current_stream(shape.device).cuda_stream)
        buffers = {ports[name]: tensor for name, tensor in (tensors | places).items()}
        graph.execute(buffers, workspace, handle=self.handle)

    def _build(
        self, operation: str, inputs: dict[str, str], outputs: tuple[str, ...], **settings: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Build a graph of one operation. Return it, ready to run, and its tensors by name.

        operation: name of a graph method. inputs: its tensor parameters -> our names of these tensors.
        """
        import cudnn

        graph = cudnn.pygraph(
            io_data_type=self.dtype,
            intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
            handle=self.handle,
        )
        # The sizes of the samples, and their offsets in the memory of three kinds of tensors.
        slots = self.shape.slots
        counts = {"sizes": slots, "at_query": slots + 1, "at_key": slots + 1, "at_sums": slots + 1}
        ports = {
            name: graph.tensor(name=name, dim=[count, 1, 1, 1], stride=[1, 1, 1, 1], data_type=cudnn.data_type.INT32)
            for name, count in counts.items()
        }
        for name in inputs.values():
            dim, stride, at = self._layout(name)
            kind = cudnn.data_type.FLOAT if name == "sums" else self.dtype
            ports[name] = graph.tensor(name=name, dim=dim, stride=stride, data_type=kind)
            ports[name].set_ragged_offset(ports[at])
        found = getattr(graph, operation)(
            **{parameter: ports[name] for parameter, name in inputs.items()},
            attn_scale=self.shape.scale,
            use_causal_mask=True,
            use_padding_mask=True,
            seq_len_q=ports["sizes"],
            seq_len_kv=ports["sizes"],
            **settings,
        )
        ports |= dict(zip(outputs, found, strict=True))
        for name in outputs:
            dim, stride, at = self._layout(name)
            ports[name].set_output(True).set_dim(dim).set_stride(stride)
            ports[name].set_ragged_offset(ports[at])
            if name == "sums":
                ports[name].set_data_type(cudnn.data_type.FLOAT)
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A])
        graph.check_support()
        graph.build_plans()
        return graph, ports

    def _layout(self, name: str) -> tuple[list[int], list[int], str]:
        """Return a tensor's sizes and strides as [sample, head, token, width], and the name of its offsets."""
        shape = self.shape
        if name == "sums":
            sizes = [shape.slots, shape.heads, shape.longest, 1]
            return sizes, [shape.longest * shape.heads, 1, shape.heads, 1], "at_sums"
        is_key = name in ("k", "v", "dk", "dv")
        heads = shape.key_heads if is_key else shape.heads
        strides = [shape.longest * heads * shape.width, shape.width, heads * shape.width, 1]
        return [shape.slots, heads, shape.longest, shape.width], strides, "at_key" if is_key else "at_query"
