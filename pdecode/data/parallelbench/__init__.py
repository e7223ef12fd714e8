"""Tasks that show where parallel decoding breaks, made here, with their scores.

ParallelBench: Kang et al., 2025, arXiv:2510.04767. Its synthetic part whole: waiting
lines (`lines`) and puzzles (`puzzles`), addition besides. `tasks.generate` makes
instances as text and `tasks.is_right` scores what a model wrote. Texts that other
models judge (paraphrases, summaries, grammar) are left out. What theory allows is in
`pdecode.evals.parallelbench.bounds`.
"""
