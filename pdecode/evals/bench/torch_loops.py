"""The loops that `pdecode bench --suite hotpath` is measured against, in torch.

`transformers`' own generation for autoregression and prompt lookup, and two published
masked-diffusion loops told again over a transformers model: LLaDA (Nie et al., 2025,
arXiv:2502.09992) by low confidence, and Fast-dLLM's threshold (Wu et al., 2025,
arXiv:2505.22618), both greedy, without a cache, for one prompt. For the benchmark
alone: nothing else imports this module, which needs the `oracle` extra.
"""

import time
from collections.abc import Callable

import torch
import transformers

Timed = tuple[list[int], int, float]  # generated tokens, model calls, seconds


def make(folder: str, **sizes: int) -> None:
    """Writes a random llama-shaped checkpoint of `sizes` (LlamaConfig) to `folder`."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **sizes, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def load(folder: str):
    """The model of `folder` in float32, for inference."""
    made = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return made.eval()


def generate(model, prompt: list[int], num_new: int, lookup: int | None) -> Timed:
    """transformers' greedy generation; `lookup`: tokens of prompt lookup, or None."""
    ids = torch.tensor([prompt])
    settings = {} if lookup is None else {"prompt_lookup_num_tokens": lookup}
    return _timed(
        model,
        lambda: model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_new,
            min_new_tokens=num_new,
            do_sample=False,
            pad_token_id=0,
            **settings,
        )[0, len(prompt) :].tolist(),
    )


def diffuse(
    model, prompt: list[int], num_new: int, mask_id: int, choose: Callable
) -> Timed:
    """Fills `num_new` masks; `choose(confidence, num_open)` names what to commit.

    `confidence` [L] is the probability of the best token, -1 where not open.
    """
    size = len(prompt) + num_new
    everything = torch.zeros(1, 1, size, size)

    def fill():
        tokens = torch.full((1, size), mask_id)
        tokens[0, : len(prompt)] = torch.tensor(prompt)
        is_open = torch.arange(size)[None] >= len(prompt)
        while is_open.any():
            out = model(tokens, attention_mask=everything, use_cache=False).logits
            out[..., mask_id] = -torch.inf
            best, token = torch.softmax(out.float(), -1).max(-1)
            best = torch.where(is_open, best, -1.0)
            chosen = choose(best[0], int(is_open.sum()))
            tokens[0, chosen] = token[0, chosen]
            is_open[0, chosen] = False
        return tokens[0, len(prompt) :].tolist()

    return _timed(model, fill)


def low_confidence(num_new: int, steps: int) -> Callable:
    """LLaDA's quota: num_new / steps of the most confident a step."""
    quota = num_new // steps
    return lambda confidence, num_open: (
        torch.topk(confidence, min(quota, num_open)).indices
    )


def threshold(value: float) -> Callable:
    """Fast-dLLM: all above the threshold, at least the most confident."""

    def choose(confidence, num_open):
        del num_open
        above = torch.nonzero(confidence > value)[:, 0]
        return above if len(above) else confidence.argmax()[None]

    return choose


def _timed(model, run: Callable[[], list[int]]) -> Timed:
    calls = 0

    def count(*_):
        nonlocal calls
        calls += 1

    with torch.inference_mode():
        hook = model.model.register_forward_hook(count)
        run()  # warm up
        calls, began = 0, time.perf_counter()
        tokens = run()
        spent = time.perf_counter() - began
        hook.remove()
    return tokens, calls, spent
