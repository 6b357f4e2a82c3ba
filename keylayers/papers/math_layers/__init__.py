"""Layers for mathematics (Nepal et al. 2025): are they made in pre-training, and kept by post-training?"""
