"""What a quantizer wrote, proved from the files: which weights are packed in how many bits, and that they read back."""
