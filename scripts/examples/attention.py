"""A block of self-attention that sorts digits.

Each token compares its query with the keys of all tokens of the sequence, and reads the mean of their values, weighted
by the softmax of these products. An embedding turns each digit into a vector, a second one adds its position, and layer
normalisation comes before each part, as in GPT-2. Trained on random sequences of ten digits, the program is tested on
new ones: all ten digits of the output must be right.

Sources: Vaswani et al., Attention is all you need, 2017, section 3.2; Karpathy's minGPT, which sorts, too.

    python scripts/examples/attention.py

The last line, with seed 0: 99.5% of 1000 new sequences are sorted without a mistake
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from minigrad import Tensor, nn, no_grad, ops, optim
from minigrad.random import generator

STEPS, BATCH = 400, 128
T, DIGITS = 10, 10  # tokens of a sequence; each is a digit 0 ... 9


class Attention(nn.Module):
    """Self-attention with several heads: softmax(query @ key^T / sqrt(size)) @ value, for tokens (N, T, D)."""

    def __init__(self, features: int, heads: int) -> None:
        self.query_key_value = nn.Dense(features, 3 * features)
        self.output = nn.Dense(features, features)
        self.heads, self.size = heads, features // heads

    def forward(self, x: Tensor) -> Tensor:
        N, T, _ = x.shape
        three = self.query_key_value(x).reshape(N, T, 3, self.heads, self.size)
        query, key, value = three.transpose(2, 0, 3, 1, 4)  # each (N, heads, T, size)
        weights = ops.softmax(query @ key.swapaxes(-1, -2) / math.sqrt(self.size))  # (N, heads, T, T), rows sum to 1
        read = (weights @ value).transpose(0, 2, 1, 3)  # (N, T, heads, size)
        return self.output(read.reshape(x.shape))


class Transformer(nn.Module):
    """Scores of the digits at each position, (N, T, DIGITS), from sequences of digits (N, T)."""

    def __init__(self, features: int = 64, heads: int = 4) -> None:
        self.digits = nn.Embedding(DIGITS, features)
        self.positions = nn.Embedding(T, features)
        self.norm1, self.attention = nn.LayerNorm(features), Attention(features, heads)
        self.norm2, self.norm3 = nn.LayerNorm(features), nn.LayerNorm(features)
        self.network = nn.Sequential(nn.Dense(features, 4 * features), nn.GELU(), nn.Dense(4 * features, features))
        self.scores = nn.Dense(features, DIGITS)

    def forward(self, sequences: np.ndarray) -> Tensor:
        x = self.digits(sequences) + self.positions(np.arange(T))  # (N, T, D)
        x = x + self.attention(self.norm1(x))
        x = x + self.network(self.norm2(x))
        return self.scores(self.norm3(x))


def train(model: Transformer, steps: int, batch_size: int = BATCH, seed: int = 0) -> Iterator[float]:
    """Minimise the cross-entropy of each digit of the sorted sequence with Adam; yields it for each step, in nats."""
    optimizer = optim.Adam(model.parameters(), optim.cosine_schedule(3e-3, steps, warmup=steps // 20))
    for step in range(steps):
        sequences = generator(seed, "sequences", step).integers(DIGITS, size=(batch_size, T))
        scores = model(sequences).reshape(-1, DIGITS)  # (N * T, DIGITS)
        loss = ops.softmax_cross_entropy(scores, np.sort(sequences).ravel())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def sort(model: Transformer, sequences: np.ndarray) -> np.ndarray:
    """The digits with the highest scores, (N, T)."""
    with no_grad():
        return model(sequences).numpy().argmax(axis=-1)


def main() -> None:
    model = Transformer()
    model.initialize(seed=0)
    test = generator(0, "test").integers(DIGITS, size=(1000, T))
    for step, loss in enumerate(train(model, STEPS), 1):
        if step % (STEPS // 5) == 0:
            right = sort(model, test) == np.sort(test)
            digits, sequences = right.mean(), right.all(axis=1).mean()
            print(f"step {step}: loss {loss:.4f}, right digits {digits:.1%}, right sequences {sequences:.1%}")
    print(*test[0], "->", *sort(model, test[:1])[0])
    print(f"{sequences:.1%} of {len(test)} new sequences are sorted without a mistake")


if __name__ == "__main__":
    main()
