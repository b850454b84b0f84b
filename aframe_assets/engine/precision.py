"""An exported network in lower precision: weights and multiplications in it, the last linear layers and the logits in float32."""

from __future__ import annotations

import torch
from torch import nn
from torch.fx import GraphModule, Node

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def in_precision(module: GraphModule, dtype: torch.dtype) -> GraphModule:
    """`module`, changed in place, with floating-point parameters of `dtype`, float32 in and out.

    Linear layers keep float32: a logit of 20 in bfloat16 moves in steps of 0.125, which would tie the loudest events.

    Args:
        module: of an exported program, ``program.module()``.
        dtype: torch.float16 or torch.bfloat16.
    """
    graph, exact = module.graph, set()
    for node in list(graph.nodes):
        if node.op == "placeholder":
            _cast_after(graph, node, dtype)
        elif node.op == "call_function" and node.target is torch.ops.aten.linear.default:
            exact |= {a.target for a in node.args[1:] if isinstance(a, Node) and a.op == "get_attr"}
            _cast_input(graph, node, torch.float32)
        elif node.op == "output":
            with graph.inserting_before(node):
                node.args = (torch.fx.map_arg(node.args[0], lambda a: graph.call_function(_TO, (a, torch.float32))),)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name not in exact and tensor.is_floating_point():
            owner, _, leaf = name.rpartition(".")
            # a new tensor: the old one is still the network's
            lower = tensor.detach().to(dtype)
            setattr(
                module.get_submodule(owner), leaf, nn.Parameter(lower, requires_grad=False) if isinstance(tensor, nn.Parameter) else lower
            )
    graph.lint()
    module.recompile()
    return module


_TO = torch.ops.aten.to.dtype


def _cast_after(graph: torch.fx.Graph, node: Node, dtype: torch.dtype) -> None:
    users = [u for u in node.users if not (u.op == "call_module" and "guards" in str(u.target))]
    with graph.inserting_after(node):
        cast = graph.call_function(_TO, (node, dtype))
    for user in users:
        user.replace_input_with(node, cast)


def _cast_input(graph: torch.fx.Graph, node: Node, dtype: torch.dtype) -> None:
    with graph.inserting_before(node):
        node.replace_input_with(node.args[0], graph.call_function(_TO, (node.args[0], dtype)))


def reduced(module: nn.Module, precision: str) -> nn.Module:
    """`module` in `precision`: itself for fp32 and tf32, `in_precision` otherwise."""
    return in_precision(module, TYPES[precision]) if precision in TYPES else module
