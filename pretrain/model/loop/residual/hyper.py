"""Hyper-connections: inside the loop a token has n residual streams H [n, d] in place of one, and each half f of a
layer (attention, feed-forward) learns what it reads of them, how they mix and to which it adds (Zhu et al. 2024, arXiv
2409.19606, section 2).

    h = Σ_i read_i H_i        H'_j = Σ_i mix_ij H_i + write_j f(h)

static: read, mix and write are weights. dynamic: to them is added s · tanh(norm(H) W), with W [d, n + 2] zeros at first
and the norm without a scale of its own.

Half number m of the block begins by reading stream m mod n, with mix the identity and write 1: at first the streams
stay equal, and the model is the one with a single stream. What enters the loop is copied to all streams, what leaves it
is their mean. (In the paper the whole model has streams, and their sum goes to the final norm.) All loops share the
weights. Cost: n times the states between layers and in the messages of the ring, and the products counted below.
"""

from typing import TYPE_CHECKING, Any, ClassVar

from pretrain.model.loop.variant import Held, Part, Residual
from pretrain.model.weight_kinds import Weight, Weights, stream_vector
from pretrain.schema.section import Field, Section

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class HyperSection(Section):
    streams: int = Field(default=2, gt=1)
    """n."""
    dynamic: bool = True
    """Whether a token's streams have a say in how they are connected, beside the weights."""


class Hyper(Residual):
    Section: ClassVar[Any] = HyperSection

    @property
    def num_streams(self) -> int:
        return self.settings.streams

    def layer_weights(self) -> Weights:
        n, width = self.num_streams, self.shape.width
        weights: dict[str, Weight] = {}
        for part in ("attention", "ffn"):
            weights |= {
                f"{part}_read": stream_vector(n, "zeros"),  # beside the stream that it begins with
                f"{part}_mix": Weight(shape=(n, n), init="zeros", is_table=True, partial_under="sequence"),  # beside 1
                f"{part}_write": stream_vector(n, "ones"),
            }
            if self.settings.dynamic:
                drawn = Weight(shape=(width, n + 2), init="zeros", is_table=True, decays=True, partial_under="sequence")
                weights |= {f"{part}_dynamic": drawn, f"{part}_scale": stream_vector(2, 0.01)}
        return weights

    def layer_flops(self) -> int:
        n, width = self.num_streams, self.shape.width
        dynamic = 2 * n * width * (n + 2) if self.settings.dynamic else 0
        return 2 * (dynamic + 2 * n * width + 2 * n * n * width)

    def expand(self, states: "Tensor") -> "Tensor":
        return states.unsqueeze(-2).expand(*states.shape[:-1], self.num_streams, -1).flatten(-2)

    def combine(self, states: "Tensor") -> "Tensor":
        return states.unflatten(-1, (self.num_streams, -1)).mean(-2)

    def branch(
        self, held: Held, part: Part, states: "Tensor", number: int
    ) -> "tuple[Tensor, Callable[[Tensor], Tensor]]":
        n = self.num_streams
        streams = states.unflatten(-1, (n, -1))  # [t, n, d]
        one = streams.new_zeros(n)
        one[(2 * number + (part == "ffn")) % n] = 1
        read, write = one + held[f"{part}_read"], held[f"{part}_write"].clone()  # [n]
        mix = streams.new_ones(n).diag() + held[f"{part}_mix"]  # [n, n]
        if self.settings.dynamic:
            wide = streams.float() if streams.itemsize < 4 else streams
            unit = (wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).to(streams.dtype)
            drawn = (unit @ held[f"{part}_dynamic"]).tanh()  # [t, n, n + 2]
            to_read, to_write = held[f"{part}_scale"]
            read, write = read + to_read * drawn[..., 0], write + to_write * drawn[..., 1]
            mix = mix + to_read * drawn[..., 2:]

        def join(update: "Tensor") -> "Tensor":
            mixed = mix.mT @ streams  # [t, n, d]
            return (mixed + write[..., None] * update.unsqueeze(-2)).flatten(-2)

        return (read.unsqueeze(-2) @ streams).squeeze(-2), join
