"""CLAT (Gopal et al. 2025): does adversarial training of the most fragile layers add robustness?"""
