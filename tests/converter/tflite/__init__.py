"""The TFLite writer, against ONNX's reference evaluator and ONNX Runtime."""
