"""The training loop that distillation, quantization-aware training and the models made here share."""
