"""Model servers side by side: the same ONNX models on Modelport and on its rivals."""
