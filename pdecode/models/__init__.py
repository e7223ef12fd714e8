"""Networks behind the `Model` record, and the small trained ones that come along."""

from pdecode.models.own import from_apply as from_apply
