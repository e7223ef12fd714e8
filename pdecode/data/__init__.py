"""Real text without a download: the interpreter's own library, and held-out snippets.

`corpus` finds and splits the sources, `stdlib_code` makes them a TensorFlow Datasets
builder, `packing` turns documents into rows, `snippets` serves the embedded held-out
files. Only `stdlib_code` imports TensorFlow Datasets (never TensorFlow).
"""
