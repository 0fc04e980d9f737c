"""Repair: what can be done where quantization hurts a model.

For: equalizing channels before quantization, correcting biases after it, finding by measurement which tensors
hurt, which range suits each, and which few of them stay in float.
Not for: quantizing (`converter.quantize`), or judging a candidate (`wire.sla`): nothing here sees the samples
of the verdict (DESIGN.md section 7).
"""
