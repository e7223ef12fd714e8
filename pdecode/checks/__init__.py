"""Exact invariants on parts of one's own: what `pdecode.check` answers from.

A part is tried on toys whose every probability is known (`models.toy`): a rule's law is
enumerated and not sampled, so a verdict is a number and an example, not an impression.
"""
