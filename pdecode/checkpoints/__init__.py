"""Files of others: read without torch, each tensor straight to its devices."""


def load(path_or_name, *, dtype=None, mesh=None, fused=False):
    """(model, params, tokenizer) of a checkpoint folder; see `loading.load`."""
    from pdecode.checkpoints import loading

    return loading.load(path_or_name, dtype=dtype, mesh=mesh, fused=fused)
