"""What llama-perplexity prints, in the formats of tools/perplexity/perplexity.cpp, for values that a test makes up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HEADING = (
    "chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              Δp RMS"
    "            Same top p"
)
LOADING = """build: 5092 (d3bd7193) with cc (Debian 12.2.0) 12.2.0 for x86_64-linux-gnu
llama_model_loader: loaded meta data with 37 key-value pairs and 272 tensors from models/tiny-q4.gguf (version GGUF V3)
print_info: file type   = Q4_K - Medium
print_info: model params     = 134.52 M
llama_context: n_ctx         = {context}
system_info: n_threads = 2 (n_threads_batch = 2) / 2 | CPU : AVX2 = 1 |
"""


@dataclass(frozen=True)
class Tokens:
    """Values a token: rows are chunks, columns the tokens of a chunk that are scored."""

    nll: np.ndarray
    nll_base: np.ndarray
    kl: np.ndarray
    same: np.ndarray

    @classmethod
    def drawn(cls, chunks: int, context: int, *, seed: int = 0, spread: float = 0.3) -> Tokens:
        generator, shape = np.random.default_rng(seed), (chunks, context - 1 - context // 2)
        topic = generator.normal(0, spread, (chunks, 1))
        base = np.abs(generator.normal(2.2, 1.0, shape) + topic)
        kl = generator.exponential(0.05, shape) * np.exp(topic)
        return cls(base + generator.normal(0.02, 0.1, shape), base, kl, generator.random(shape) < 0.93)


def _mean(values: np.ndarray) -> tuple[float, float]:
    flat = values.ravel().astype(float)
    return float(flat.mean()), math.sqrt(float(flat.var()) / (flat.size - 1))


def perplexity(tokens: Tokens, context: int) -> str:
    """The output without --kl-divergence."""
    chunks = len(tokens.nll)
    body = "".join(f"[{k}]{math.exp(tokens.nll[:k].mean()):.4f}," for k in range(1, chunks + 1))
    mean, error = _mean(tokens.nll)
    return (
        LOADING.format(context=2048)
        + f"perplexity: calculating perplexity over {chunks} chunks, n_ctx={context}, batch_size=2048, n_seq=4\n"
        + f"perplexity: 0.10 seconds per pass - ETA 0.01 minutes\n{body}\n"
        + f"Final estimate: PPL = {math.exp(mean):.4f} +/- {math.exp(mean) * error:.5f}\n"
    )


def divergence(tokens: Tokens, context: int, *, stamp: str = "") -> str:
    """The output with --kl-divergence."""
    ratio = tokens.nll - tokens.nll_base
    lines = [LOADING.format(context=context)]
    for k in range(1, len(tokens.nll) + 1):
        nll, gap, kl = (_mean(values[:k]) for values in (tokens.nll, ratio, tokens.kl))
        share = tokens.same[:k].mean()
        among = math.sqrt(share * (1 - share) / (tokens.same[:k].size - 1))
        ppl = math.exp(nll[0])
        lines.append(
            f"\n{HEADING}\n{stamp}{k:4d}    {ppl:9.4f} ± {ppl * nll[1]:9.4f}    {gap[0]:10.5f} ± {gap[1]:10.5f}"
            f"    {kl[0]:10.5f} ± {kl[1]:10.5f}     1.200 ±  0.100 %    {100 * share:6.3f} ± {100 * among:6.3f} %\n"
        )
    return "".join([*lines, "\n", _blocks(tokens)])


def _blocks(tokens: Tokens) -> str:
    nll, base = _mean(tokens.nll), _mean(tokens.nll_base)
    gap, kl = _mean(tokens.nll - tokens.nll_base), _mean(tokens.kl)
    share, count = float(tokens.same.mean()), tokens.same.size
    ppl, ppl_base, values = math.exp(nll[0]), math.exp(base[0]), tokens.kl.ravel()
    return f"""====== Perplexity statistics ======
Mean PPL(Q)                   : {ppl:10.6f} ± {ppl * nll[1]:10.6f}
Mean PPL(base)                : {ppl_base:10.6f} ± {ppl_base * base[1]:10.6f}
Cor(ln(PPL(Q)), ln(PPL(base))):  99.29%
Mean ln(PPL(Q)/PPL(base))     : {gap[0]:10.6f} ± {gap[1]:10.6f}
Mean PPL(Q)/PPL(base)         : {math.exp(gap[0]):10.6f} ± {gap[1]:10.6f}
Mean PPL(Q)-PPL(base)         : {ppl - ppl_base:10.6f} ± {0.1:10.6f}

====== KL divergence statistics ======
Mean    KLD: {kl[0]:10.6f} ± {kl[1]:10.6f}
Maximum KLD: {values.max():10.6f}
99.9%   KLD: {np.quantile(values, 0.999):10.6f}
99.0%   KLD: {np.quantile(values, 0.99):10.6f}
95.0%   KLD: {np.quantile(values, 0.95):10.6f}
Median  KLD: {np.median(values):10.6f}
 0.1%   KLD: {np.quantile(values, 0.001):10.6f}
Minimum KLD: {values.min():10.6f}

====== Token probability statistics ======
Mean    Δp: -0.979 ± 0.015 %
Maximum Δp: 92.244%
99.9%   Δp: 27.470%
RMS Δp    :  5.843 ± 0.054 %
Same top p: {100 * share:6.3f} ± {100 * math.sqrt(share * (1 - share) / (count - 1)):5.3f} %
"""


def saved(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file
