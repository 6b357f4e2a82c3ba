"""Thin shells over transformers.Trainer and peft: one training run, LoRA on exactly the asked layers, stage 1 of ILA."""
