"""Weight-only quantization of matrices and embeddings to 4 bits, one file per algorithm.

For: models that are mostly MatMul, where size is what hurts; activations stay in float.
Not for: speed. At MiniLM's scale 4 bits save size and no time (FACTS.md section 1).
"""
