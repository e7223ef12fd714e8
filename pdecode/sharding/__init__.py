"""Where arrays live: meshes, the table of placements, several processes."""

from pdecode.sharding.mesh import (
    constrain_rows,
    make_mesh,
    on_mesh,
    replicate,
    shard_params,
    shard_rows,
    warn_of_whole,
)

__all__ = [
    "constrain_rows",
    "make_mesh",
    "on_mesh",
    "replicate",
    "shard_params",
    "shard_rows",
    "warn_of_whole",
]
