"""A trained FP32 model in, a measured and gated bundle out."""
