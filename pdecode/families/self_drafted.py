"""Draft-and-verify whose drafter works on the target's own cache."""

from pdecode.contracts import Decoder


def self_drafted(base: Decoder) -> Decoder:
    """`base`, a `draft_verify`, whose drafter's state is (its own, the target's cache).

    The drafter gets the cache as it stands before the verifying call and may write to
    it; what it wrote is forgotten, so a draft leaves nothing behind.
    """

    def step(params, keys, state):
        shared = state._replace(drafter=(state.drafter, state.cache))
        after, info = base.step(params, keys, shared)
        return after._replace(drafter=after.drafter[0]), info

    return base._replace(step=step)
