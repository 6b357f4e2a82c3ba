"""Layer-wise feature analysis (Jebreel et al. 2023): do poisoned images stand out where classes come together?"""
