"""Models behind the `Model` record."""


def load(path_or_name, *, dtype=None, mesh=None):
    """(model, params, tokenizer) of a checkpoint folder; see `models.loading.load`."""
    from pdecode.models import loading

    return loading.load(path_or_name, dtype=dtype, mesh=mesh)
