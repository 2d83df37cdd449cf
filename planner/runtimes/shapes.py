"""Shapes of decoders without weights: calibration, tests and benchmarks serve them with random ones."""

from __future__ import annotations

from dataclasses import dataclass

from supernet.spec import EMBEDDING, HEAD, LinearSpec, ModelSpec, UnitSpec


@dataclass(frozen=True)
class Shape:
    """A decoder of the Llama architecture. `tied`: the head reads the embedding's weights."""

    name: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = True
    max_context: int = 8192

    def spec(self) -> ModelSpec:
        units = [_unit("model.embed_tokens", EMBEDDING, None, {"embed_tokens": (self.vocabulary, self.hidden)})]
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        wide = (self.feed_forward, self.hidden)
        joined = {"q_proj": (queries, self.hidden), "k_proj": (keys, self.hidden), "v_proj": (keys, self.hidden)}
        for i in range(self.layers):
            attention, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
            units += [
                _unit(f"{attention}.qkv", "qkv", i, joined),
                _unit(f"{attention}.o_proj", "o", i, {"o_proj": (self.hidden, queries)}),
                _unit(f"{mlp}.gate_up", "gate_up", i, {"gate_proj": wide, "up_proj": wide}),
                _unit(f"{mlp}.down_proj", "down", i, {"down_proj": wide[::-1]}),
            ]
        if not self.tied:
            units.append(_unit("lm_head", HEAD, None, {"lm_head": (self.vocabulary, self.hidden)}))
        return ModelSpec(
            name=self.name, architecture="LlamaForCausalLM", num_layers=self.layers, hidden_size=self.hidden,
            num_heads=self.heads, num_kv_heads=self.kv_heads, head_dim=self.head_dim, vocab_size=self.vocabulary,
            max_context=self.max_context, tied=self.tied, float_parameters=(2 * self.layers + 1) * self.hidden,
            units=tuple(units), rotary_dim=self.head_dim, ropes=("default",),
        )  # fmt: skip


def _unit(name: str, role: str, layer: int | None, linears: dict[str, tuple[int, int]]) -> UnitSpec:
    """`linears`: the last part of each one's name, with (out_features, in_features)."""
    parent = name.rpartition(".")[0]
    found = (LinearSpec(f"{parent}.{tail}" if parent else tail, n, k) for tail, (n, k) in linears.items())
    return UnitSpec(name, role, layer, tuple(found))


SMOLLM2 = Shape("SmolLM2-135M", 30, 576, 1536, 9, 3, 64, 49152)
HALF_B = Shape("0.5B", 24, 896, 4864, 14, 2, 64, 151936)
HALF_B_UNTIED = Shape("0.5B, untied", 24, 896, 4864, 14, 2, 64, 151936, tied=False)
