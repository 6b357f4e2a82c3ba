"""ILA (Shi et al. 2025): are the layers that learned masks choose worth training?"""
