"""pdecode aot: what a decode needs on a machine that is not here."""

import json
import os

from pdecode.cli import arguments


def run(args) -> int:
    """Compiles for the target and prints the report; ValueError as `aot.report`."""
    import jax

    if not os.environ.get("JAX_PLATFORMS"):
        # libtpu would look for the hardware that is not here.
        jax.config.update("jax_platforms", "cpu")
    from pdecode import recipes
    from pdecode.hardware import aot, costs

    if args.set and args.method is None:
        raise ValueError("--set needs --method: knobs belong to a method")
    method = recipes.find(args.method).method if args.method else None
    found = aot.report(
        args.target,
        args.model,
        args.method,
        drafter=args.drafter,
        mesh=arguments.mesh(args.mesh),
        batch_size=args.batch_size,
        prompt_len=args.prompt_len,
        max_new_tokens=args.max_new_tokens,
        settings=arguments.settings(method, args.set),
    )
    print(json.dumps(found, indent=1) if args.json else costs.text(found))
    return 0
