"""cuDNN's attention over rows of whole samples: on Hopper GPUs half again as fast as PyTorch's own kernel.

PyTorch reaches cuDNN for padded batches only (its variable-length backward pass gives wrong numbers in 2.11), so the
two graphs are built here with NVIDIA's front end. https://docs.nvidia.com/deeplearning/cudnn/frontend, Attention.
"""

import importlib.util
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tinyvlm_cli.model.attention.row import Row, round_up

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shape:
    """What a pair of graphs is built for."""

    slots: int
    longest: int
    tokens: int  # of a row at most; bounds the workspace
    heads: int
    key_heads: int
    width: int
    scale: float
    dtype: torch.dtype
    device: torch.device


def shape_of(query: Tensor, key: Tensor, row: Row, scale: float) -> Shape:
    """query: [T, H, D]; key: [T, K, D]."""
    tokens, heads, width = query.shape
    return Shape(
        slots=row.slots,
        longest=int(row.longest),
        tokens=round_up(tokens, 8192),
        heads=heads,
        key_heads=key.shape[1],
        width=width,
        scale=scale,
        dtype=query.dtype,
        device=query.device,
    )


@cache
def graphs(shape: Shape) -> "Graphs | None":
    """The two graphs of that shape; None where cuDNN or its front end has none."""
    if torch.version.cuda is None or importlib.util.find_spec("cudnn") is None:
        return None
    import cudnn

    try:
        return Graphs(shape)
    except (cudnn.cudnnGraphNotSupportedError, RuntimeError) as error:
        log.info("cuDNN has no attention for %s (%s)", shape, str(error).splitlines()[0])
        return None


class Graphs:
    """Attention forward and backward, built once and run on every row that fits."""

    def __init__(self, shape: Shape) -> None:
        import cudnn

        self.shape = shape
        self.handle = _handle(shape.device)
        self.dtype = {torch.bfloat16: cudnn.data_type.BFLOAT16, torch.float16: cudnn.data_type.HALF}[shape.dtype]
        self.forward_graph, self.forward_ports = self._build_forward()
        self.backward_graph, self.backward_ports = self._build_backward()

    def forward(self, query: Tensor, key: Tensor, value: Tensor, row: Row) -> tuple[Tensor, Tensor]:
        """[T, H, D], and the softmax's logarithms of sums as [H, T] numbers in cuDNN's order."""
        out = torch.empty_like(query)
        sums = query.new_empty(query.shape[1], query.shape[0], dtype=torch.float32)
        tensors = {"q": query, "k": key, "v": value, "out": out, "sums": sums}
        self._run(self.forward_graph, self.forward_ports, tensors, row)
        return out, sums

    def backward(  # noqa: PLR0917 - the operation's own tensors
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, sums: Tensor, row: Row
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of query, key and value."""
        grads = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        tensors = {"q": query, "k": key, "v": value, "out": out, "sums": sums, "grad": grad}
        tensors |= dict(zip(("dq", "dk", "dv"), grads, strict=True))
        self._run(self.backward_graph, self.backward_ports, tensors, row)
        return grads

    def _build_forward(self) -> tuple[Any, dict[str, Any]]:
        graph, ports = self._begin(("q", "k", "v"))
        ports["out"], ports["sums"] = graph.sdpa(
            q=ports["q"], k=ports["k"], v=ports["v"], generate_stats=True, **self._masks(ports)
        )
        self._give(ports, ("out", "sums"))
        return self._finish(graph), ports

    def _build_backward(self) -> tuple[Any, dict[str, Any]]:
        graph, ports = self._begin(("q", "k", "v", "out", "grad", "sums"))
        ports["dq"], ports["dk"], ports["dv"] = graph.sdpa_backward(
            q=ports["q"],
            k=ports["k"],
            v=ports["v"],
            o=ports["out"],
            dO=ports["grad"],
            stats=ports["sums"],
            max_total_seq_len_q=self.shape.tokens,
            max_total_seq_len_kv=self.shape.tokens,
            **self._masks(ports),
        )
        self._give(ports, ("dq", "dk", "dv"))
        return self._finish(graph), ports

    def _begin(self, names: Iterable[str]) -> tuple[Any, dict[str, Any]]:
        """A graph with its inputs: tensors of the row, and where its samples lie in them."""
        import cudnn

        graph = cudnn.pygraph(
            io_data_type=self.dtype,
            intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
            handle=self.handle,
        )
        slots = self.shape.slots
        ports = {
            name: graph.tensor(name=name, dim=[count, 1, 1, 1], stride=[1, 1, 1, 1], data_type=cudnn.data_type.INT32)
            for name, count in (
                ("sizes", slots),
                ("at_query", slots + 1),
                ("at_key", slots + 1),
                ("at_sums", slots + 1),
            )
        }
        for name in names:
            dim, stride, at = self._layout(name)
            kind = cudnn.data_type.FLOAT if name == "sums" else self.dtype
            ports[name] = graph.tensor(name=name, dim=dim, stride=stride, data_type=kind)
            ports[name].set_ragged_offset(ports[at])
        return graph, ports

    def _give(self, ports: dict[str, Any], names: Iterable[str]) -> None:
        """Mark outputs."""
        import cudnn

        for name in names:
            dim, stride, at = self._layout(name)
            ports[name].set_output(True).set_dim(dim).set_stride(stride)
            ports[name].set_ragged_offset(ports[at])
            if name == "sums":
                ports[name].set_data_type(cudnn.data_type.FLOAT)

    def _layout(self, name: str) -> tuple[list[int], list[int], str]:
        """Sizes and strides [sample, head, token, width] of a tensor, and which offsets say where a sample begins."""
        shape = self.shape
        if name == "sums":
            return (
                [shape.slots, shape.heads, shape.longest, 1],
                [shape.longest * shape.heads, 1, shape.heads, 1],
                "at_sums",
            )
        is_key = name in ("k", "v", "dk", "dv")
        heads = shape.key_heads if is_key else shape.heads
        strides = [shape.longest * heads * shape.width, shape.width, heads * shape.width, 1]
        return [shape.slots, heads, shape.longest, shape.width], strides, "at_key" if is_key else "at_query"

    def _masks(self, ports: dict[str, Any]) -> dict[str, Any]:
        return {
            "attn_scale": self.shape.scale,
            "use_causal_mask": True,
            "use_padding_mask": True,
            "seq_len_q": ports["sizes"],
            "seq_len_kv": ports["sizes"],
        }

    def _finish(self, graph: Any) -> Any:
        import cudnn

        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A])
        graph.check_support()
        graph.build_plans()
        return graph

    def _run(self, graph: Any, ports: dict[str, Any], tensors: dict[str, Tensor], row: Row) -> None:
        import cudnn

        shape = self.shape
        places = {
            "sizes": row.sizes,
            "at_query": row.ends * (shape.heads * shape.width),
            "at_key": row.ends * (shape.key_heads * shape.width),
            "at_sums": row.ends * shape.heads,
        }
        workspace = torch.empty(graph.get_workspace_size(), device=shape.device, dtype=torch.uint8)
        cudnn.set_stream(handle=self.handle, stream=torch.cuda.current_stream(shape.device).cuda_stream)
        buffers = {ports[name]: tensor for name, tensor in (tensors | places).items()}
        graph.execute(buffers, workspace, handle=self.handle)


@cache
def _handle(device: torch.device) -> Any:
    import cudnn

    with torch.cuda.device(device):
        return cudnn.create_handle()
