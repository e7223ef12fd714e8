"""Cases of methods/masked."""

import jax
import jax.numpy as jnp

from cases import CAUSAL, EOS, MASKED, NEAR, ON_BLOCKS, ON_MASKS, TARGET, VOCAB, case
from pdecode.contracts import Background, Guard
from pdecode.models import filters, transformer

# Untrained: some positions pass, others do not.
FILTERED = {
    "model": (MASKED, filters.make_filter(4)),
    "params": {"model": TARGET, "filter": filters.init(4, jax.random.key(1))},
}

# The toy takes no second input stream.
CONFIG = transformer.Config(
    vocab_size=VOCAB + 1,
    width=8,
    num_layers=1,
    num_heads=2,
    predicts="masked",
    attention="bidirectional",
    mask_id=VOCAB,
    eos_ids=(EOS,),
)
TINY = {
    "model": transformer.make_model(CONFIG),
    "params": transformer.init(CONFIG, jax.random.key(3)),
}

# What a slot holds stands for what attention takes from it.
TELLS = MASKED._replace(
    observed=lambda cache: 1.0 + cache["keys"][:, 0, :, :1], name="toy that tells"
)

SHOWS = MASKED._replace(
    observed=lambda cache: 1.0 + cache["keys"][:, 0], name="toy that shows"
)

# Says when three tokens of one kind were committed.
GUARDED = {
    "model": (
        MASKED,
        Guard(
            lambda params, row: (
                (row.generated & ~row.masked & (row.tokens == params)).sum() >= 3
            )
        ),
    ),
    "params": {"model": TARGET, "guard": jnp.int32(2)},
}

RARE = {
    "model": (MASKED, Background(VOCAB + 1)),
    "params": {
        "model": TARGET,
        "background": jnp.array([0.4, 0.3, 0.2, 0.1, 0.0]),
    },
}
JUDGED = {"model": (MASKED, CAUSAL), "params": {"model": TARGET, "judge": NEAR}}

CASES = {
    "llada": case("llada", "lossy", steps=6, block_length=5, **ON_MASKS),
    "llada_guided": case(
        "llada", "lossy", knobs={"cfg_scale": 0.5}, max_calls=20, **ON_MASKS
    ),
    "dream_entropy": case("dream", "lossy", alg="entropy", steps=6, **ON_MASKS),
    "dream_origin": case("dream", "lossy", alg="origin", steps=6, **ON_MASKS),
    "mdlm": case("mdlm", "lossy", steps=8, **ON_MASKS),
    "maskgit": case("maskgit", "lossy", steps=4, **ON_MASKS),
    "threshold": case(
        "fast_dllm", "lossy", block_length=4, knobs={"threshold": 0.6}, **ON_MASKS
    ),
    "dual_cache": case(
        "fast_dllm",
        "lossy",
        block_length=4,
        cache="dual",
        knobs={"threshold": 0.6},
        **ON_MASKS,
    ),
    "prefix_cache": case(
        "fast_dllm",
        "lossy",
        block_length=4,
        cache="prefix",
        knobs={"factor": 1.0},
        **ON_MASKS,
    ),
    "eb_sampler": case("eb_sampler", "lossy", knobs={"gamma": 0.5}, **ON_MASKS),
    "remdm": case("remdm", "lossy", steps=12, max_calls=12, **ON_MASKS),
    "remdm_conf": case(
        "remdm", "lossy", steps=12, variant="conf", max_calls=12, **ON_MASKS
    ),
    "learn2pd": case("learn2pd", "lossy", knobs={"accept_thres": 0.5}, **FILTERED),
    "credit_decoding": case(
        "credit_decoding",
        "lossy",
        block_length=4,
        num_credits=2,
        knobs={"threshold": 0.6, "alpha": 0.7, "beta": 0.8, "gamma": 0.2},
        **ON_MASKS,
    ),
    "prophet": case(
        "prophet",
        "lossy",
        answer_start=1,
        answer_length=3,
        knobs={"high": 7.5, "middle": 2.0, "low": 1.0},
        **ON_MASKS,
    ),
    "dparallel": case(
        "dparallel",
        "lossy",
        block_length=4,
        knobs={"entropy_threshold": 0.5},
        **ON_MASKS,
    ),
    "local_leap": case(
        "local_leap",
        "lossy",
        block_length=5,
        radius=2,
        knobs={"threshold": 0.8, "relaxed_threshold": 0.5},
        **ON_MASKS,
    ),
    "dimple": case("dimple", "lossy", steps=6, alg="topk_margin", **ON_MASKS),
    "eoser": case("eoser", "lossy", steps=6, block_length=5, **ON_MASKS),
    "ascending_steps": case(
        "ascending_steps", "lossy", num_blocks=2, knobs={"g_min": 0.01}, **ON_MASKS
    ),
    "lavida": case(
        "lavida", "lossy", steps=6, block_length=5, knobs={"shift": 0.4}, **ON_MASKS
    ),
    "klass": case(
        "klass",
        "lossy",
        block_length=4,
        num_kept=3,
        knobs={"threshold": 0.5, "kl_threshold": 0.3},
        **ON_MASKS,
    ),
    "certainty_density": case(
        "certainty_density", "lossy", steps=5, sigma=1, **ON_MASKS
    ),
    "hierarchical": case(
        "hierarchical",
        "lossy",
        block_length=5,
        knobs={"threshold": 0.8, "low_threshold": 0.4},
        **ON_MASKS,
    ),
    "adablock": case(
        "adablock",
        "lossy",
        delimiter_ids=(2,),
        block_length=4,
        knobs={"threshold": 0.6, "delimiter_threshold": 0.4},
        **ON_MASKS,
    ),
    "audited": case("audited", "lossy", refusal_ids=(1, 0), steps=5, **GUARDED),
    "dream_blocks": case(
        "dream", "lossy", alg="entropy", steps=6, block_length=5, **ON_MASKS
    ),
    "dream_threshold": case(
        "dream",
        "lossy",
        alg="confidence_threshold",
        block_length=5,
        knobs={"threshold": 0.6},
        **ON_MASKS,
    ),
    "wino": case(
        "wino",
        "lossy",
        block_length=5,
        knobs={"threshold": 0.4, "threshold_back": 0.6},
        **ON_MASKS,
    ),
    "d2f": case(
        "d2f",
        "lossy",
        block_length=3,
        knobs={"threshold": 0.5, "block_add_threshold": 0.3},
        **ON_MASKS,
    ),
    "discrete_diffusion_vla": case(
        "discrete_diffusion_vla",
        "lossy",
        steps=4,
        knobs={"eta": 0.3, "drop": 0.5},
        **ON_MASKS,
    ),
    "genmol": case(
        "genmol", "lossy", knobs={"guidance_scale": 2.0}, max_calls=20, **ON_MASKS
    ),
    "halton": case("halton", "lossy", steps=4, row_length=4, **ON_MASKS),
    "hmar": case(
        "hmar", "lossy", sides=(1, 3), counts=(1, 2, 3, 4), max_calls=4, **ON_MASKS
    ),
    "llada2": case(
        "llada2",
        "lossy",
        block_length=5,
        max_post_steps=2,
        knobs={"threshold": 0.5, "editing_threshold": 0.8},
        max_calls=14,
        **ON_MASKS,
    ),
    "mmm": case("mmm", "lossy", steps=5, reference_length=8, max_calls=5, **ON_MASKS),
    "rcr": case("rcr", "lossy", steps=6, block_length=5, max_calls=6, **ON_MASKS),
    "refine": case("refine", "lossy", steps=6, block_length=5, **ON_MASKS),
    "remdm_llada": case(
        "remdm_llada",
        "lossy",
        block_length=5,
        remdm_steps=2,
        remdm_number=2,
        max_calls=14,
        **ON_MASKS,
    ),
    "bd3lm": case("bd3lm", "lossy", max_calls=13, **ON_BLOCKS),
    "fast_dllm_v2": case(
        "fast_dllm_v2",
        "lossy",
        small_block_size=2,
        use_block_cache=True,
        knobs={"threshold": 0.5, "top_p": 1.0},
        max_calls=13,
        **ON_BLOCKS,
    ),
    "dkv_cache": case("dkv_cache", "lossy", cache_steps=3, block_length=5, **ON_MASKS),
    "d2cache": case(
        "d2cache",
        "lossy",
        block_length=5,
        current_k=3,
        num_rollout=2,
        sigma=2,
        knobs={"rollout_p": 0.3},
        model=TELLS,
    ),
    "uncage": case(
        "uncage",
        "lossy",
        steps=6,
        row_length=5,
        knobs={"weight": 3.0},
        model=SHOWS,
    ),
    "freedave": case("freedave", "lossy", block_length=5, draft_steps=3, **ON_MASKS),
    "freedave_in_blocks": case(
        "freedave", "lossy", draft_steps=3, max_calls=13, **ON_BLOCKS
    ),
    "apd": case(
        "apd", "lossy", max_lookahead=4, knobs={"mixture_weight": 0.5}, **JUDGED
    ),
    "guided_diffusion": case(
        "guided_diffusion",
        "lossy",
        max_lookahead=5,
        test="threshold",
        knobs={"threshold": 0.3},
        **JUDGED,
    ),
    "latent_refinement": case(
        "latent_refinement",
        "lossy",
        block_length=5,
        t_refine=2,
        num_kept=3,
        max_calls=16,
        knobs={"tau_refine": 1e-4, "tau_decode": 1e-4, "r_f": 0.5},
        **TINY,
    ),
    "iteration_smoothing": case(
        "iteration_smoothing",
        "lossy",
        block_length=5,
        knobs={"threshold": 0.5, "threshold_decay": 0.2},
        **TINY,
    ),
    "recap": case(
        "recap",
        "lossy",
        steps=6,
        local_steps=2,
        max_calls=6,
        knobs={"choice_temperature": 1.0},
        **ON_MASKS,
    ),
    "assd": case("assd", "lossy", num_draft=3, **ON_MASKS),
    "set_block": case("set_block", "lossy", block_length=4, knobs={"gamma": 0.5}),
    "magnet": case(
        "magnet", "lossy", decoding_steps=(3, 2), span_len=2, max_calls=5, **ON_MASKS
    ),
    "magnet_rescored": case(
        "magnet_rescored",
        "lossy",
        decoding_steps=(3, 2),
        span_len=2,
        max_calls=5,
        **JUDGED,
    ),
    "pc_sampler": case("pc_sampler", "lossy", steps=5, **RARE),
    "free_cache": case(
        "free_cache", "lossy", steps=6, block_length=5, reach=5, **ON_MASKS
    ),
}
