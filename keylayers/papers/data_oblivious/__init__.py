"""Data-oblivious critical layers (Liu et al. 2025): does an untuned model show which blocks matter?"""
