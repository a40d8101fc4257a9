"""A class-conditional prior over token grids, what it weighs and what a token costs.

LlamaGen's transformer with QK-norm (paper, A.2). It knows a codebook's size and a grid, but no
tokenizer: any tokenizer's tokens can be compared under the same prior.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Many
from pathlib import Path

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from cartok.core.checkpoint import load_model, put_tensors, save_model
from cartok.core.config import config, config_of
from cartok.core.errors import UserError
from cartok.core.shapes import Condition, Logits, Prefixes, Sequence, TokenSequence
from cartok.layers import KeyValueCache, Rotary, Transformer, TransformerConfig, rotary_table
from cartok.prior.surprise import Surprise, surprise_of_states


@config
class PriorConfig:
    """Shape of a prior; the defaults are those of the paper's class-conditional models."""

    transformer: TransformerConfig = TransformerConfig(dropout=0.1)
    codebook_size: int = 16384
    grid: tuple[int, int] = (16, 16)
    """Rows, columns."""
    num_classes: int = 1000
    """0: unconditional."""
    class_dropout: float = 0.1
    """Share of training pictures whose class is hidden, so that guidance has something to leave."""
    token_dropout: float = 0.1
    """Dropout on the embeddings (LlamaGen)."""
    query_key_norm: bool = True
    """Queries and keys are normalised (paper, A.2); in LlamaGen's published priors they are not."""
    prefix_length: int = 0
    """Vectors that stand before the tokens in place of a class; 0: a class."""
    prefix_width: int = 0
    """Of each of them, such as 768 of a text tower; projected to the transformer's."""
    class_has_key: bool = True
    """In LlamaGen's published priors its key is zero: every token looks at it with a score of 0."""

    def __post_init__(self) -> None:
        """Refuses empty vocabularies and grids, and shares outside [0, 1)."""
        if min(self.codebook_size, *self.grid) < 1:
            raise ValueError("codebook_size and both sides of grid are at least 1")
        if self.num_classes < 0:
            raise ValueError("num_classes is 0 (unconditional) or more")
        if not (0 <= self.class_dropout < 1 and 0 <= self.token_dropout < 1):
            raise ValueError("class_dropout and token_dropout lie in [0, 1)")
        if self.prefix_length < 0 or (self.prefix_length > 0) != (self.prefix_width > 0):
            raise ValueError(
                "prefix_length and prefix_width are both 0 (none) or both at least 1, but are "
                f"{self.prefix_length} and {self.prefix_width}"
            )
        if self.prefix_length and self.num_classes:
            raise ValueError("a prefix stands in place of classes, so num_classes is 0 with it")

    @property
    def num_tokens(self) -> int:
        """Tokens of one picture."""
        rows, cols = self.grid
        return rows * cols

    @property
    def num_places(self) -> int:
        """Positions of a sequence: those of the prefix, or one for the class, and all tokens but
        the last, which nothing follows."""
        return max(1, self.prefix_length) + self.num_tokens - 1


class Prior(nn.Module):
    """Next-token prediction in raster order, after a vector that names the class, or a prefix.

    With ``prefix_length`` labels are vectors, float [batch, place, feature] (``Prefixes``), and the
    label 0 stands for none of them: its one vector is repeated over the prefix.

    ``tokenizer_digest`` names the tokenizer whose tokens it was trained on, ``classes`` its
    classes in the order of the labels, ``unseen`` those labels that no training picture had; all
    travel with the weights.
    """

    rotary: Tensor

    def __init__(
        self,
        config: PriorConfig,
        *,
        tokenizer_digest: str = "",
        classes: Many[str] = (),
        unseen: Many[int] = (),
    ) -> None:
        super().__init__()
        if classes and len(classes) != config.num_classes:
            raise UserError(
                f"a prior of {config.num_classes} classes needs as many names, but got "
                f"{len(classes)}; pass one name for each label, or none at all"
            )
        if unseen and not {*unseen} < {*range(config.num_classes)}:
            raise UserError(
                f"unseen labels are some but not all of 0 to {config.num_classes - 1}, but they "
                f"are {', '.join(map(str, unseen))}"
            )
        self.config = config
        self.unseen = tuple(unseen)
        self.tokenizer_digest = tokenizer_digest
        self.classes = list(classes)
        width = config.transformer.width
        self.class_embedding = nn.Embedding(config.num_classes + 1, width)  # last row: no class
        self.token_embedding = nn.Embedding(config.codebook_size, width)
        if config.prefix_length:
            self.prefix_projection = nn.Linear(config.prefix_width, width, bias=False)
        self.dropout = nn.Dropout(config.token_dropout)
        self.transformer = Transformer(config.transformer)
        if not config.query_key_norm:
            self.transformer.leave_out_query_key_norm()
        self.head = nn.Linear(width, config.codebook_size, bias=False)
        for table in (self.class_embedding, self.token_embedding, self.head):
            nn.init.normal_(table.weight, std=0.02)
        self.register_buffer("rotary", rotation_of(config), persistent=False)

    def forward(
        self, tokens: TokenSequence, labels: Condition, generator: torch.Generator | None = None
    ) -> Logits:
        """Logits of every token, each given the class and the tokens before it alone.

        In training a share ``class_dropout`` of the labels is replaced by "no class", drawn from
        ``generator`` (the global one by default). An unconditional prior ignores the labels.

        Raises:
            UserError: prefixes are of another shape than this prior's, or it takes none.
        """
        return self.head(self._states(tokens, labels, generator))

    def surprise(
        self, tokens: TokenSequence, labels: Condition, generator: torch.Generator | None = None
    ) -> Surprise:
        """Surprise at each token, as ``forward`` sees it, but not all logits are held at once."""
        states = self._states(tokens, labels, generator)
        return surprise_of_states(states, self.head.weight, tokens)

    def nats(
        self, tokens: TokenSequence, labels: Condition, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch position"]:
        """Surprise at each token, -log p(token | class, tokens before), in nats; float32."""
        return self.surprise(tokens, labels, generator).nats

    def empty_cache(self, batch: int) -> KeyValueCache:
        """A cache for ``batch`` pictures, for ``step``."""
        return self.transformer.empty_cache(batch, self.config.num_places)

    def step(
        self, previous: Integer[Tensor, " batch"] | Condition, cache: KeyValueCache
    ) -> Float[Tensor, "batch code"]:
        """Logits of the next token; extends ``cache``.

        ``previous`` holds the labels for the first token, or mixtures of them, or prefixes, and for
        each later one the token drawn before it.
        """
        if cache.filled:
            return self.logits_after(self.token_embedding(previous), cache)
        *before, last = self.vectors_of(previous).unbind(1)
        for x in before:
            self.logits_after(x, cache)
        return self.logits_after(last, cache)

    def vectors_of(self, labels: Condition) -> Sequence:
        """What stands before the first token; a mixture's lies between those of its classes."""
        table = self.class_embedding.weight
        if labels.is_floating_point() and labels.ndim == 2:
            return (labels.to(table.dtype) @ table)[:, None]
        if labels.is_floating_point():
            prefixes = self._checked(labels)
            return self.prefix_projection(prefixes.to(table.dtype))
        rows = labels if self.config.num_classes else torch.zeros_like(labels)
        places = max(1, self.config.prefix_length)
        return self.class_embedding(rows)[:, None].expand(-1, places, -1)

    def logits_after(
        self, x: Float[Tensor, "batch width"], cache: KeyValueCache
    ) -> Float[Tensor, "batch code"]:
        """Logits of the token that follows ``x``, a vector for the next position of ``cache``."""
        return self.head(self.transformer(self.dropout(x[:, None]), self.rotary, cache)[:, 0])

    def save(self, folder: Path, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Writes the model folder: config, weights, tokenizer digest and class names.

        ``tensors`` is the whole state, where this process has but a share of it.
        """
        extra = {
            "tokenizer_digest": self.tokenizer_digest,
            "classes": self.classes,
            "unseen": list(self.unseen),
        }
        save_model(folder, self, kind="prior", config=self.config, extra=extra, tensors=tensors)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "Prior":
        """The prior of a model folder, a run folder or the hub, on the CPU and in eval mode.

        Raises:
            UserError: there is no prior, or its weights are damaged or do not fit its config.
        """
        stored = load_model(source, kind="prior")
        keys = ("tokenizer_digest", "classes", "unseen")  # older folders lack the last
        digest, classes, unseen = (stored.extra.get(key) for key in keys)
        config = config_of(PriorConfig, stored.config)
        prior = cls(
            config, tokenizer_digest=digest or "", classes=classes or (), unseen=unseen or ()
        )
        put_tensors(prior, stored.tensors, f"the prior of {source}")
        return prior.eval()

    def _states(
        self, tokens: TokenSequence, labels: Condition, generator: torch.Generator | None
    ) -> Sequence:
        """What the head reads at each position."""
        before = self._dropped(self.vectors_of(labels), generator)
        x = torch.cat([before, self.token_embedding(tokens[:, :-1])], dim=1)
        return self.transformer(self.dropout(x), self.rotary)[:, before.shape[1] - 1 :]

    def _dropped(self, before: Sequence, generator: torch.Generator | None) -> Sequence:
        """In training, "no class" in place of a share of what stands before the tokens."""
        config = self.config
        is_conditional = config.num_classes or config.prefix_length
        if not (is_conditional and self.training and config.class_dropout):
            return before
        device = before.device if generator is None else generator.device
        draw = torch.rand(len(before), generator=generator, device=device).to(before.device)
        hidden = (draw < config.class_dropout)[:, None, None]
        return torch.where(hidden, self.class_embedding.weight[-1], before)

    def _checked(self, prefixes: Prefixes) -> Prefixes:
        wanted = (self.config.prefix_length, self.config.prefix_width)
        if not wanted[0] or prefixes.shape[1:] != wanted:
            takes = f"{wanted[0]} vectors of {wanted[1]} numbers" if wanted[0] else "no prefixes"
            raise UserError(
                f"this prior takes {takes}, but got prefixes of {tuple(prefixes.shape[1:])}; they "
                "are float [batch, place, feature]"
            )
        return prefixes


def rotation_of(config: PriorConfig) -> Rotary:
    """What queries and keys are turned by, at the class and then at the cells in raster order."""
    net = config.transformer
    places = max(1, config.prefix_length)
    rotary = rotary_table(*config.grid, net.head_dim, net.rope_base, prefix=places)
    if not config.class_has_key:
        rotary[:places] = 0  # cosine and sine: queries and keys that are zero
    return rotary


def parameter_census(config: PriorConfig) -> dict[str, int]:
    """Parameters by role; their sum is checked against the module.

    With 16384 codes and 1000 classes it gives every count of the paper's Table 2 to the three
    digits printed there. QK-norm, which those counts leave out, adds 2 * head_dim a layer: 4,608
    of 775 million.
    """
    net = config.transformer
    census = {
        "token_embedding": config.codebook_size * net.width,
        "class_embedding": (config.num_classes + 1) * net.width,
        "prefix_projection": config.prefix_width * net.width,
        "attention": net.depth * 4 * net.width**2,
        "feed_forward": net.depth * 3 * net.width * net.hidden,
        "query_key_norms": config.query_key_norm * net.depth * 2 * net.head_dim,
        "norms": (2 * net.depth + 1) * net.width,
        "head": config.codebook_size * net.width,
    }
    with torch.device("meta"):
        module = Prior(config)
    assert sum(census.values()) == sum(weight.numel() for weight in module.parameters())
    return census


def flops_per_token(config: PriorConfig) -> int:
    """FLOPs of the forward pass for each token predicted; training costs three times as much.

    Counts what runs, a multiply-add as two: the matrices a token meets (look-ups are free), and
    causal attention over (T + 1) / 2 positions on average, its scores and its mix:

        2 * (depth * (4 width^2 + 3 width hidden) + width codes)  +  depth * 2 width (T + 1)

    A prefix is shared among the tokens of its picture.
    """
    net, places = config.transformer, config.num_places
    layer = 4 * net.width**2 + 3 * net.width * net.hidden
    matrices = config.num_tokens * net.width * config.codebook_size + places * net.depth * layer
    matrices += config.prefix_length * config.prefix_width * net.width
    mixed = net.depth * 2 * net.width * places * (places + 1)
    return round((2 * matrices + mixed) / config.num_tokens)


def paper_flops(config: PriorConfig, pictures: int) -> float:
    """A training's place on the paper's axis: 6 N a picture of 256 tokens, embeddings included.

    The axis counts a picture as one token, and pictures of 400 or 576 tokens as 400/256 and 576/256
    of one (section 3.3; inferred from the ticks of its figures).
    """
    return float(kaplan_flops_per_token(config)) * pictures * config.num_tokens / 256


def kaplan_flops_per_token(config: PriorConfig) -> int:
    """Training FLOPs for each token by the convention 6 N, embeddings included in N.

    The paper's compute axis is this times batch and iterations, a picture counted as *one* token:
    divide by the tokens of a picture to place a run on its curves.
    """
    return 6 * sum(parameter_census(config).values())
