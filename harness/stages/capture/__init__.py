"""Stages that write down what a model says or sees: logits, texts, activation statistics."""
