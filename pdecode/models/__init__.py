"""Networks behind the `Model` record, and the small trained ones that come along."""
