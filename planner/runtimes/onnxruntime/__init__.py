"""ONNX Runtime on CPU, through onnxruntime-genai: 2, 4 and 8 bits, mixed by unit."""
