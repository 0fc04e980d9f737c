"""Shallop's TFLite writer beside its peers: `python -m bench.tflite`, or `make bench-tflite`.

For: accuracy, size, operators, latency in LiteRT, conversion time, peak memory and installed megabytes of
Shallop's INT8 twin, of onnx2tf and of litert-quantizer, with the same models and samples, in one run.
Not for: figures of a device; every latency here is this host's.
"""
