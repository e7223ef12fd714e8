"""Cases of methods/uniform."""

CASES = {}

# Its model needs a second input stream, which no toy has: test_checkpoints.py
# replays recorded runs.
WITHOUT = {"diffusion_gemma"}
